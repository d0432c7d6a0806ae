"""The base class that models derive from."""

from __future__ import annotations

from typing import Any

from label_studio_sdk.label_interface import LabelInterface

_cache: dict[tuple[str, str], Any] = {}


class LabelStudioMLBase:
    """See the package's docstring."""

    INITIAL_MODEL_VERSION = "0.0.1"

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.use_label_config(label_config)
        if not self.model_version:
            self.set("model_version", self.INITIAL_MODEL_VERSION)
        self.setup()

    def setup(self) -> None:
        """For subclasses."""

    def use_label_config(self, label_config: str) -> None:
        self.label_interface = LabelInterface(config=label_config)
        if self.get("label_config") != label_config:
            self.set("label_config", label_config)

    def get(self, key: str) -> Any:
        return _cache.get((self.project_id, key))

    def set(self, key: str, value: Any) -> None:
        _cache[self.project_id, key] = value

    def has(self, key: str) -> bool:
        return (self.project_id, key) in _cache

    def set_extra_params(self, extra_params: Any) -> None:
        self.set("extra_params", extra_params)

    @property
    def label_config(self) -> Any:
        return self.get("label_config")

    @property
    def model_version(self) -> Any:
        return self.get("model_version")
