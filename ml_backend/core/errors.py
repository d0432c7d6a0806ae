"""The error tree of the project.

Every error that a user can meet derives from :class:`BackendError`. Its message names the cause, ``hint`` says
what to do about it, and ``http_status`` is what the web layer answers. ``retryable`` tells the queue whether
trying again later can help (a server that is down) or not (a corrupt file).
"""

from __future__ import annotations


class BackendError(Exception):
    """Base of all errors that are raised on purpose.

    Args:
        message: what is wrong, in one sentence.
        hint: what the reader can do about it; shown after the message.
    """

    http_status: int = 500
    retryable: bool = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class RequestError(BackendError):
    """The caller sent something that cannot be understood."""

    http_status = 400


class ConfigError(BackendError):
    """A label config or a setting lacks what the work needs."""

    http_status = 422


class VideoError(BackendError):
    """The file cannot be used as video: corrupt, empty, audio only, no frame rate."""

    http_status = 422


class MediaError(BackendError):
    """The media cannot be fetched or read: 401, 404, not allowed, too large."""

    http_status = 422


class MediaRefused(MediaError):
    """A setting of ours, or our token, keeps the media away: worth another try once somebody has changed that."""


class MediaUnavailable(MediaError):
    """The media cannot be fetched just now (time-out, 5xx): worth another try."""

    http_status = 503
    retryable = True


class WeightsError(BackendError):
    """Model weights are missing or unusable."""

    http_status = 503


class LabelStudioError(BackendError):
    """Label Studio refused a call: unknown task, wrong token, invalid prediction."""

    http_status = 502


class LabelStudioUnavailable(LabelStudioError):
    """Label Studio does not answer: worth another try."""

    http_status = 503
    retryable = True


class QueueUnavailable(BackendError):
    """Redis does not answer."""

    http_status = 503
    retryable = True


class PredictionFailed(BackendError):
    """The job that was to make a prediction failed; the message is that job's."""

    http_status = 422


class StorageError(BackendError):
    """The database or the disk cannot take data: full, read-only, locked."""

    http_status = 507
    retryable = True


class Interrupted(BackendError):
    """The process was asked to end in the middle of long work, which is taken up again."""

    http_status = 503
    retryable = True


class Postponed(Interrupted):
    """The work cannot be done just now, because somebody else is at it; it is taken up again a little later."""

    delay_s: int = 15


class TrainingFailed(BackendError):
    """A training came to nothing: bad data, too little memory, a crash."""

    http_status = 422
