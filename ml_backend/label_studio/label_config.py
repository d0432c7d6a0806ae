"""What a label config asks of us: its video controls, their labels and frame rate."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from ml_backend.core.errors import ConfigError

#: Label Studio's frame rate where the config gives none that it can use.
DEFAULT_FRAME_RATE = 24.0

#: Far above any hand-written config; keeps a hostile one from filling the memory.
MAX_CONFIG_CHARS = 2_000_000

_EXAMPLE = (
    '<View><Video name="video" value="$video" frameRate="$fps"/><VideoRectangle name="box" toName="video"/>'
    '<Labels name="label" toName="video"><Label value="person"/></Labels></View>'
)
_FIELD = re.compile(r"\$([\w\[\].{}]+)")


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """One label of a ``Labels`` control.

    Attributes:
        value: what Label Studio stores in results: the ``alias`` if the tag has one, else its ``value``.
        predicted_values: model classes that the config assigns to this label, as written, without blanks around.
        background: CSS colour, or empty.
        attrs: all attributes of the tag, names in lower case.
    """

    value: str
    predicted_values: tuple[str, ...] = ()
    background: str = ""
    attrs: Mapping[str, str] = field(default_factory=dict)


def clip_prompts(label: LabelSpec) -> tuple[str, ...]:
    """What a label's ``clip_prompt`` says it looks like: descriptions separated by ``|``; empty without one."""
    return tuple(part.strip() for part in label.attrs.get("clip_prompt", "").split("|") if part.strip())


def prompts_digest(config: LabelConfig) -> str:
    """Digest of the labels' names and prompts; 40 hex digits."""
    described = [[[label.value, *clip_prompts(label)] for label in c.labels] for c in config.video_controls]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class VideoControl:
    """One ``VideoRectangle`` with the ``Video`` that it draws on and the labels that its boxes can carry.

    Attributes:
        from_name: name of the ``VideoRectangle``.
        to_name: name of the ``Video``.
        value_key: path of the task field that holds the video's address, from ``value="$video"``.
        labels_name: name of the (first) ``Labels`` control.
        labels: labels of all ``Labels`` controls of this video, in order.
        frame_rate: the ``Video``'s ``frameRate`` as written: ``"25"``, ``"$fps"``; empty where absent.
    """

    from_name: str
    to_name: str
    value_key: str
    labels_name: str
    labels: tuple[LabelSpec, ...]
    frame_rate: str = ""

    @property
    def rate_field(self) -> str | None:
        """The task field that ``frameRate="$field"`` names, if it names a plain one."""
        name = self.frame_rate[1:]
        return name if self.frame_rate.startswith("$") and name.isidentifier() else None

    def frame_rate_for(self, task_data: Mapping[str, Any]) -> float:
        """Frames per second of Label Studio's timeline for this task, found as its player does."""
        match = _FIELD.fullmatch(self.frame_rate)
        if match:
            raw = lookup(task_data, match.group(1))
        else:
            raw = _FIELD.sub(lambda m: str(lookup(task_data, m.group(1))), self.frame_rate)
        rate = _js_number(raw)
        if not math.isfinite(rate) or rate <= 0:
            return DEFAULT_FRAME_RATE
        return 1.0 / rate if rate < 1 else rate

    def media_uri(self, task_data: Mapping[str, Any]) -> str | None:
        """The video's address in a task, or ``None`` where the task has none."""
        value = lookup(task_data, self.value_key)
        return value if isinstance(value, str) and value.strip() else None


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """A parsed label config."""

    video_controls: tuple[VideoControl, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """All label names, each once, in order."""
        return tuple(dict.fromkeys(label.value for control in self.video_controls for label in control.labels))


def lookup(data: Any, path: str) -> Any:
    """``data["a"]["b"][0]`` for ``"a.b[0]"``; a key that is literally ``path`` wins; ``None`` where nothing is."""
    if isinstance(data, Mapping) and path in data:
        return data[path]
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and part.isdigit() and int(part) < len(data):
            data = data[int(part)]
        else:
            return None
    return data


def _js_number(value: Any) -> float:
    """JavaScript's ``Number(value)`` for what JSON can hold; NaN where it is none."""
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else math.nan
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:  # JSON's integers have no bounds
            return math.inf if value > 0 else -math.inf
    if not isinstance(value, str) or "_" in value:
        return math.nan
    try:
        return float(value.strip() or 0)
    except ValueError:
        return math.nan


class _NoDoctype(TreeBuilder):
    """Refuses a DOCTYPE before any entity that it declares can be used."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ConfigError(
            "The label config has a DOCTYPE, which is not read: it could declare entities of any size.",
            "Remove it in the project's settings.",
        )


def _parse(xml: str) -> Element:
    if not isinstance(xml, str) or not xml.strip():
        raise ConfigError("The label config is empty.", f"Set one up in the project's settings, such as {_EXAMPLE}")
    if len(xml) > MAX_CONFIG_CHARS:
        raise ConfigError(
            f"The label config has {len(xml)} characters, more than the {MAX_CONFIG_CHARS} that are read.",
            "Shorten it in the project's settings.",
        )
    parser = XMLParser(target=_NoDoctype())  # noqa: S314 - without a DOCTYPE nothing can be declared, so not expanded
    try:
        parser.feed(xml.strip())
        root: Element = parser.close()
    except ParseError as error:
        raise ConfigError(
            f"The label config is not well-formed XML: {error}.", "Correct it in the project's settings."
        ) from error
    except ValueError as error:
        raise ConfigError(f"The label config cannot be read: {error}.", "Save it as UTF-8 text.") from error
    return root


def _tag(node: Element) -> str:
    return node.tag.lower() if isinstance(node.tag, str) else ""


def _attrs(node: Element) -> dict[str, str]:
    # Label Studio's frontend is blind to the case of tag and attribute names.
    return {name.lower(): value for name, value in node.attrib.items()}


def _label_specs(labels: Element) -> list[LabelSpec]:
    specs = []
    for node in labels.iter():
        if _tag(node) != "label":
            continue
        attrs = _attrs(node)
        value = attrs.get("alias") or attrs.get("value", "")
        if value:
            predicted = attrs.get("predicted_values", "")
            names = tuple(name.strip() for name in predicted.split(",") if name.strip())
            specs.append(LabelSpec(value, names, attrs.get("background", ""), attrs))
    return specs


def parse_label_config(xml: str) -> LabelConfig:
    """Read a label config.

    Args:
        xml: the project's labeling configuration.

    Raises:
        ConfigError: not XML, or without what pre-annotation of video needs; the message names cause and hint.
    """
    nodes = [(node, _tag(node), _attrs(node)) for node in _parse(xml).iter()]
    videos = {attrs["name"]: attrs for _, tag, attrs in nodes if tag == "video" and attrs.get("name")}
    objects = [
        attrs["name"] for _, _, attrs in nodes if attrs.get("name") and "value" in attrs and "toname" not in attrs
    ]
    if not videos:
        raise ConfigError("The label config has no Video tag with a name.", f"Add one, as in {_EXAMPLE}")

    def target(attrs: Mapping[str, str]) -> str:
        # Label Studio fills in a missing toName where there is only one object.
        return attrs.get("toname") or (objects[0] if len(objects) == 1 else "")

    rectangles = [attrs for _, tag, attrs in nodes if tag == "videorectangle" and attrs.get("name")]
    if not rectangles:
        raise ConfigError(
            "The label config has no VideoRectangle tag with a name.",
            f'Add <VideoRectangle name="box" toName="{next(iter(videos))}"/> to it.',
        )
    controls: dict[str, VideoControl] = {}
    for attrs in rectangles:
        name, video_name = attrs["name"], target(attrs)
        if video_name not in videos:
            raise ConfigError(
                f'VideoRectangle "{name}" has toName="{video_name}", and no Video has that name.',
                f"Use one of: {', '.join(sorted(videos))}.",
            )
        if video_name in controls:
            continue  # Label Studio's player itself draws with the first control of a video
        video = videos[video_name]
        match = _FIELD.fullmatch(video.get("value", "").strip())
        if not match:
            raise ConfigError(
                f'Video "{video_name}" has value="{video.get("value", "")}", which names no task field.',
                'Write the field with a dollar sign, such as value="$video".',
            )
        sets = [(node, a) for node, tag, a in nodes if tag == "labels" and a.get("name") and target(a) == video_name]
        specs = tuple(spec for node, _ in sets for spec in _label_specs(node))
        if not specs:
            raise ConfigError(
                f'Video "{video_name}" has no Labels tag with labels.',
                f'Add <Labels name="label" toName="{video_name}"><Label value="person"/></Labels> to the config.',
            )
        controls[video_name] = VideoControl(
            from_name=name,
            to_name=video_name,
            value_key=match.group(1),
            labels_name=sets[0][1]["name"],
            labels=specs,
            frame_rate=video.get("framerate", ""),
        )
    return LabelConfig(tuple(controls.values()))


def read_label_config(path: Path, hint: str = "Give --config.") -> LabelConfig:
    """Read a label config from a file.

    Args:
        hint: what to do where the file cannot be read.

    Raises:
        ConfigError: not readable, not UTF-8, or as :func:`parse_label_config`.
    """
    try:
        return parse_label_config(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The label config {path} cannot be read: {error.strerror}.", hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The label config {path} is not UTF-8: {error}.", "Save it as UTF-8.") from error


def plain_name(name: str) -> str:
    """A name as names are compared: case does not matter, nor whether words are joined by a blank, ``_`` or ``-``."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


#: What stands in ``predicted_values`` for all classes that no other label has.
REST = "*"


def classes_for(label: LabelSpec) -> tuple[str, ...]:
    """The classes that would get a label from :class:`LabelMapper`, the surest first; :data:`REST` among them."""
    listed = [name for name in label.predicted_values if name != REST]
    names = [*listed, label.value, label.attrs.get("value", ""), *(set(label.predicted_values) & {REST})]
    return tuple(dict.fromkeys(filter(None, names)))


class LabelMapper:
    """From a model's class names to a config's labels.

    A class goes to the label that lists it in ``predicted_values``, else to the label of the same name, else to
    the label with ``predicted_values="*"``; names are compared as :func:`plain_name` has them. Of several labels that
    claim one class the first has it, but one that is called exactly so comes before others of the same name.

    Args:
        labels: the control's labels.
        class_names: the model's classes.
        trained: the classes are labels of the project: before all else a class is the label of exactly its name. What
            ``predicted_values`` says is of the detector that it was trained from, and of labels that were renamed.
    """

    def __init__(self, labels: Iterable[LabelSpec], class_names: Iterable[str] = (), *, trained: bool = False) -> None:
        self._trained = trained
        self._values: set[str] = set()
        self._by_prediction: dict[str, str] = {}
        self._by_name: dict[str, str] = {}
        self._rest: str | None = None
        self._class_names = tuple(class_names)
        for label in labels:
            self._values.add(label.value)
            self._by_name.setdefault(plain_name(label.value), label.value)
            if written := label.attrs.get("value"):
                self._by_name.setdefault(plain_name(written), label.value)
            for name in label.predicted_values:
                if name == REST:
                    self._rest = self._rest or label.value
                else:
                    self._by_prediction.setdefault(plain_name(name), label.value)

    def map(self, class_name: str) -> str | None:
        """The label for a class, or ``None``."""
        exactly = class_name if class_name in self._values else None  # others may differ in case, or a hyphen, only
        if exactly is not None and self._trained:
            return exactly
        key = plain_name(class_name)
        return self._by_prediction.get(key) or exactly or self._by_name.get(key) or self._rest

    @property
    def table(self) -> dict[str, str]:
        """The model's classes that have a label, with it."""
        return {name: label for name in self._class_names if (label := self.map(name)) is not None}
