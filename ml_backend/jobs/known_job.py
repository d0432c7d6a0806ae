"""RQ jobs that are safe to read from a Redis that others can write to: JSON, our own functions, checked arguments.

RQ imports and calls whatever function, callback or webhook a job's record names, and its default serializer unpickles.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import typing
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from redis import Redis
from rq.exceptions import DeserializationError
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.core.errors import BackendError

#: Job function -> its module in ``ml_backend.jobs``. Workers run nothing else.
JOB_MODULES = {
    function: module
    for module, functions in {
        "predict": ("prepare_many", "prepare_task", "predict"),
        "learn": ("learn", "catch_up", "refresh"),
        "train": ("train",),
        "chunks": ("help_detect",),
        "draw": ("follow_regions", "track_box", "warm"),
        "api_jobs": (
            "init_models",
            "auto_label",
            "import_video",
            "count_statistics",
            "describe_patterns",
            "find_similar",
            "measure_agreement",
        ),
        "search_text": ("search_text",),
        "annotate_next": ("choose_next", "order_tasks"),
        "match_objects": ("list_objects", "match_objects"),
        "review": ("review", "render_moment", "render_frames"),
        "api_file_jobs": ("render_video", "render_custom_video", "export_project"),
    }.items()
    for function in functions
}
_PACKAGE = "ml_backend.jobs."


class JobRefused(BackendError):
    """A job in the queue is none of ours, or its arguments are not what its function takes."""

    http_status = 422


class KnownJob(Job):  # type: ignore[misc]
    """A job whose record may have been written by anybody.

    A record that names something else than a function of :data:`JOB_MODULES` fails as :class:`JobRefused` when it is
    run. Its callbacks and webhooks are ignored: we use none.
    """

    def __init__(self, id: str | None = None, connection: Redis | None = None, serializer: Any = None) -> None:
        super().__init__(id, connection=connection, serializer=JSONSerializer)

    success_callback = failure_callback = stopped_callback = None
    _func_name: Any
    _args: Any
    _kwargs: Any

    def restore(self, raw_data: Any) -> Any:
        super().restore(raw_data)
        self.webhooks.clear()

    def _deserialize_data(self) -> None:
        """Read function and arguments; a record that has none that can be read names the function ``""``."""
        try:
            super()._deserialize_data()
            if isinstance(self._func_name, str) and isinstance(self._args, list):
                return
        except DeserializationError:
            pass
        self._func_name, self._instance, self._args, self._kwargs = "", None, [], {}  # keeps the record as it is

    @property
    def function(self) -> str:
        """Name of the job's function, without its module."""
        return str(self.func_name).rpartition(".")[2]

    @property
    def func(self) -> Callable[..., Any]:
        """The job's function.

        Raises:
            JobRefused: it is none of ours.
        """
        if not self.func_name:
            raise self._refused("A job in the queue was written by another program or release.")
        # Earlier releases had other modules; the functions' names are unique.
        module = JOB_MODULES.get(self.function) if self.func_name.startswith(_PACKAGE) else None
        if module is None or self.instance is not None or self.kwargs:
            raise self._refused(f"The queue has a job {self.func_name[:80]!r}, which is no job of this program.")
        function: Callable[..., Any] = getattr(importlib.import_module(_PACKAGE + module), self.function)
        return function

    def _refused(self, message: str) -> JobRefused:
        error = JobRefused(
            message, "Request the work again, and see who else can write to REDIS_URL: give that Redis a password."
        )
        self.meta["error"], self.retries_left = str(error), 0
        self.save_meta()
        return error


def checked_arguments(function: Callable[..., Any], args: Sequence[Any]) -> list[Any]:
    """Return a job's arguments, checked against the types of its function's parameters after the first.

    Raises:
        JobRefused: one has another type, is missing or unknown.
    """
    model = _arguments_model(function)
    names = list(model.model_fields)
    try:
        values = model.model_validate_json(json.dumps(dict(zip(names, args, strict=False))))
    except (ValidationError, TypeError, ValueError) as error:
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        where = f" {error.errors()[0]['loc'][0]!r}" if isinstance(error, ValidationError) else "s"
        raise JobRefused(
            f"The job {function.__name__!r} was queued with an unusable argument{where}: {detail}.",
            "Request the work again.",
        ) from error
    if len(args) > len(names):
        raise JobRefused(
            f"The job {function.__name__!r} takes {len(names)} arguments, but was queued with {len(args)}.",
            "Request the work again.",
        )
    return [getattr(values, name) for name in names]


@functools.cache
def _arguments_model(function: Callable[..., Any]) -> type[BaseModel]:
    hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    fields: dict[str, Any] = {
        item.name: (hints[item.name], ... if item.default is item.empty else item.default) for item in parameters
    }
    return create_model("Arguments", __config__=ConfigDict(strict=True), **fields)
