"""The exceptions of the project.

Every error that users see derives from :class:`BackendError`. Its message names the cause, ``hint`` the remedy, and
``http_status`` is the status of the HTTP response. ``retryable`` tells the queue whether trying again later can help
(a server that is down) or not (a corrupt file). ``expected`` ones belong to normal operation, and are not logged.
"""

from __future__ import annotations


class BackendError(Exception):
    """Base of all errors that are raised on purpose.

    Args:
        message: what is wrong, in one sentence.
        hint: how to fix it, an imperative sentence; shown after the message.
    """

    http_status: int = 500
    retryable: bool = False
    expected: bool = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class RequestError(BackendError):
    """The request is malformed."""

    http_status = 400


class Conflict(BackendError):
    """The request conflicts with the current state."""

    http_status = 409


class ConfigError(BackendError):
    """A label config or a setting is invalid or incomplete."""

    http_status = 422


class VideoError(BackendError):
    """The file is not a usable video: corrupt, empty, audio only, no frame rate."""

    http_status = 422


class MediaError(BackendError):
    """The media cannot be fetched or read: 401, 404, not allowed, too large."""

    http_status = 422


class MediaRefused(MediaError):
    """Our settings or our token do not permit access to the media; works once an operator has changed them."""


class MediaUnavailable(MediaError):
    """The media cannot be fetched at the moment (timeout, 5xx)."""

    http_status = 503
    retryable = True


class WeightsError(BackendError):
    """Model weights are missing or unusable."""

    http_status = 503


class LabelStudioError(BackendError):
    """Label Studio refused a call: unknown task, wrong token, invalid prediction."""

    http_status = 502


class LabelStudioUnavailable(LabelStudioError):
    """Label Studio does not respond."""

    http_status = 503
    retryable = True


class QueueUnavailable(BackendError):
    """Redis does not respond."""

    http_status = 503
    retryable = True


class PredictionFailed(BackendError):
    """The prediction job failed; the message is the job's."""

    http_status = 422


class StorageError(BackendError):
    """The database or the disk cannot be written: full, read-only, locked."""

    http_status = 507
    retryable = True


class UnstorableValue(StorageError):
    """A value does not fit into its column: a number that is too large, a NUL character in a text."""

    http_status = 400
    retryable = False


class Interrupted(BackendError):
    """The process was asked to stop during a long job; the job is resumed later."""

    http_status = 503
    retryable = True


class Postponed(Interrupted):
    """Another process is doing the same work; the job is retried after ``delay_s``."""

    delay_s: int = 15


class TrainingFailed(BackendError):
    """A training failed: bad data, out of memory, a crash."""

    http_status = 422
