"""Parse label configs: video controls, their labels and frame rate; map detector classes to labels."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser
from xml.sax.saxutils import quoteattr

from ml_backend.core.errors import ConfigError

#: Label Studio's frame rate if the config has no valid one.
DEFAULT_FRAME_RATE = 24.0

#: Far more than any hand-written config; limits memory for hostile ones.
MAX_CONFIG_CHARS = 2_000_000

_EXAMPLE = (
    '<View><Video name="video" value="$video" frameRate="$fps"/><VideoRectangle name="box" toName="video"/>'
    '<Labels name="label" toName="video"><Label value="person"/></Labels></View>'
)
_FIELD = re.compile(r"\$([\w\[\].{}]+)")
#: A start tag, and an attribute in it with its value.
_START_TAG = re.compile(rb"""<(?:[^>"']|"[^"]*"|'[^']*')*>""")
_ATTRIBUTE = re.compile(rb"""\s([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")
#: Attributes with a label's descriptions, the former name last.
_PROMPTS = ("prompt", "clip_prompt")


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """One label of a ``Labels`` control.

    Attributes:
        value: label in results: the tag's ``alias``, or else its ``value``.
        predicted_values: model classes that the config assigns to this label, stripped.
        background: CSS colour, or empty.
        attrs: all attributes of the tag, names in lower case.
    """

    value: str
    predicted_values: tuple[str, ...] = ()
    background: str = ""
    attrs: Mapping[str, str] = field(default_factory=dict)


def label_prompts(label: LabelSpec) -> tuple[str, ...]:
    """Return the descriptions in a label's ``prompt``, separated there by ``|``; empty without one.

    The attribute may also have its former name, ``clip_prompt``.
    """
    return split_prompts(_prompt_of(label.attrs))


def _prompt_of(attrs: Mapping[str, str]) -> str:
    return next(filter(None, map(attrs.get, _PROMPTS)), "")


def split_prompts(text: str) -> tuple[str, ...]:
    """Return the descriptions in a text that separates them by ``|``."""
    return tuple(prompt.strip() for prompt in text.split("|") if prompt.strip())


def readable_name(label: LabelSpec) -> str:
    """Return a label's name as words: ``fallen person`` for ``fallen_person``."""
    return " ".join(label.value.replace("_", " ").replace("-", " ").split()) or label.value


def config_digest(xml: str) -> str:
    """Return a digest of a label config as it is written, 16 hex digits: whether somebody has changed it meanwhile."""
    return hashlib.sha256(xml.encode()).hexdigest()[:16]


def prompts_digest(config: LabelConfig) -> str:
    """Return a digest of the labels' names, prompts and ``predicted_values``; 40 hex digits."""
    prompts = [
        [[label.value, *label_prompts(label), *filter(None, [label.predicted_values])] for label in c.labels]
        for c in config.video_controls
    ]
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class VideoControl:
    """One ``VideoRectangle`` with its ``Video`` and the labels of its boxes.

    Attributes:
        from_name: name of the ``VideoRectangle``.
        to_name: name of the ``Video``.
        value_key: path of the task field that holds the video's address, from ``value="$video"``.
        labels_name: name of the (first) ``Labels`` control.
        labels: labels of all ``Labels`` controls of this video, in order.
        frame_rate: the ``Video``'s ``frameRate`` as written: ``"25"``, ``"$fps"``; empty if absent.
    """

    from_name: str
    to_name: str
    value_key: str
    labels_name: str
    labels: tuple[LabelSpec, ...]
    frame_rate: str = ""

    @property
    def rate_field(self) -> str | None:
        """The task field in ``frameRate="$field"``, if it is a plain name."""
        name = self.frame_rate[1:]
        return name if self.frame_rate.startswith("$") and name.isidentifier() else None

    def frame_rate_for(self, task_data: Mapping[str, Any]) -> float:
        """Return the frames per second of Label Studio's timeline for a task, computed as its player does."""
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
        """Return the address of the video in a task, or ``None``."""
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

    def meant_label(self, name: str) -> str:
        """Return the label with a typed name, apart from spaces around it; if there is none, the name without them.

        To Label Studio, names that differ in a space are different labels.
        """
        if name in self.labels:
            return name
        return next((label for label in self.labels if label.strip() == name.strip()), name.strip())


def lookup(data: Any, path: str) -> Any:
    """Return ``data["a"]["b"][0]`` for ``"a.b[0]"``; a key equal to ``path`` takes precedence; ``None`` if missing."""
    if isinstance(data, Mapping) and path in data:
        return data[path]
    for key in re.findall(r"[^.\[\]]+", path):
        if isinstance(data, Mapping):
            data = data.get(key)
        elif isinstance(data, list) and key.isdigit() and int(key) < len(data):
            data = data[int(key)]
        else:
            return None
    return data


def _js_number(value: Any) -> float:
    """Convert JSON to a number like JavaScript's ``Number(value)``."""
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else math.nan
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:  # JSON integers are unbounded
            return math.inf if value > 0 else -math.inf
    if not isinstance(value, str) or "_" in value:
        return math.nan
    try:
        return float(value.strip() or 0)
    except ValueError:
        return math.nan


class _NoDoctype(TreeBuilder):
    """Rejects a DOCTYPE before its entities can be expanded."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ConfigError(
            "The label config has a DOCTYPE, which is not accepted: it could declare entities of any size.",
            "Remove it in the project's settings.",
        )


def _parse(xml: str) -> Element:
    if not isinstance(xml, str) or not xml.strip():
        raise ConfigError("The label config is empty.", f"Set one up in the project's settings, such as {_EXAMPLE}")
    if len(xml) > MAX_CONFIG_CHARS:
        raise ConfigError(
            f"The label config has {len(xml)} characters, more than the maximum of {MAX_CONFIG_CHARS}.",
            "Shorten it in the project's settings.",
        )
    parser = XMLParser(target=_NoDoctype())  # noqa: S314 - entities need a DOCTYPE, which is rejected
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
    # Label Studio's frontend ignores the case of tag and attribute names.
    return {name.lower(): value for name, value in node.attrib.items()}


def _label_specs(labels: Element) -> list[LabelSpec]:
    specs = []
    for node in labels.iter():
        if _tag(node) != "label":
            continue
        attrs = _attrs(node)
        value = attrs.get("alias") or attrs.get("value", "")
        if value and not _FIELD.fullmatch(value):  # a field's labels differ from task to task
            predicted = attrs.get("predicted_values", "")
            names = tuple(name.strip() for name in predicted.split(",") if name.strip())
            specs.append(LabelSpec(value, names, attrs.get("background", ""), attrs))
    return specs


def parse_label_config(xml: str) -> LabelConfig:
    """Parse a label config.

    Args:
        xml: the project's labeling configuration.

    Raises:
        ConfigError: it is not XML, or has no ``Video`` with ``VideoRectangle`` and labels. What a ``Repeater`` makes
            of a task's data does not count, nor do labels from the data (``value="$labels"``).
    """
    root = _parse(xml)
    repeated: set[Element] = set()
    for node in root.iter():
        if _tag(node) == "repeater" and node not in repeated:
            repeated.update(node.iter())
    nodes = [(node, _tag(node), _attrs(node)) for node in root.iter() if node not in repeated]
    videos = {attrs["name"]: attrs for _, tag, attrs in nodes if tag == "video" and attrs.get("name")}
    objects = [
        attrs["name"] for _, _, attrs in nodes if attrs.get("name") and "value" in attrs and "toname" not in attrs
    ]
    if not videos and any(_tag(node) == "video" for node in repeated):
        raise ConfigError(
            "The label config has its Video in a Repeater, which is not supported.",
            f"Write each Video with its tags outside of it, as in {_EXAMPLE}",
        )
    if not videos:
        raise ConfigError("The label config has no Video tag with a name.", f"Add one, as in {_EXAMPLE}")

    def target(attrs: Mapping[str, str]) -> str:
        # Like Label Studio: a missing toName means the only object tag.
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
            continue  # Label Studio's player uses the first control of a video
        video = videos[video_name]
        match = _FIELD.fullmatch(video.get("value", "").strip())
        if not match:
            raise ConfigError(
                f'Video "{video_name}" has value="{video.get("value", "")}", which names no task field.',
                'Write the field with a dollar sign, such as value="$video".',
            )
        label_tags = [
            (node, a) for node, tag, a in nodes if tag == "labels" and a.get("name") and target(a) == video_name
        ]
        specs = tuple(spec for node, _ in label_tags for spec in _label_specs(node))
        if not specs:
            values = [_attrs(inner).get("value", "") for node, _ in label_tags for inner in node.iter()]
            if fields := list(filter(_FIELD.fullmatch, values)):
                raise ConfigError(
                    f'The labels of Video "{video_name}" come from the tasks (value="{fields[0]}"), which is not'
                    " supported.",
                    'Write them into the config, such as <Label value="person"/> inside of the Labels tag.',
                )
            raise ConfigError(
                f'Video "{video_name}" has no Labels tag with labels.',
                f'Add <Labels name="label" toName="{video_name}"><Label value="person"/></Labels> to the config.',
            )
        controls[video_name] = VideoControl(
            from_name=name,
            to_name=video_name,
            value_key=match.group(1),
            labels_name=label_tags[0][1]["name"],
            labels=specs,
            frame_rate=video.get("framerate", ""),
        )
    return LabelConfig(tuple(controls.values()))


def with_prompts(xml: str, label: str, prompts: Sequence[str]) -> str:
    """Return a label config in which a label has these descriptions beside its own; the other text is kept as it is.

    Args:
        xml: as for :func:`parse_label_config`.
        label: see :meth:`LabelConfig.meant_label`; a new one is added to the first video's labels.

    Raises:
        ConfigError: see :func:`parse_label_config`; a description has characters that XML cannot hold, the label
            has the name of a field, or there is no place for it.
    """
    from xml.parsers import expat  # which a start does not need

    config = parse_label_config(xml)
    controls, label = config.video_controls, config.meant_label(label)
    videos = {"", *(control.to_name for control in controls)}
    text = xml.strip().encode()
    found: list[tuple[int, dict[str, str]]] = []
    ends: list[int] = []
    open_labels: list[dict[str, str]] = []
    parser = expat.ParserCreate("utf-8")

    def start(tag: str, attributes: dict[str, str]) -> None:
        attrs = {name.lower(): value for name, value in attributes.items()}
        if tag.lower() == "labels":
            open_labels.append(attrs)
            return
        of_video = bool(open_labels) and open_labels[-1].get("toname", "") in videos
        if tag.lower() == "label" and of_video and label == (attrs.get("alias") or attrs.get("value")):
            found.append((parser.CurrentByteIndex, attrs))

    def end(tag: str) -> None:
        if tag.lower() == "labels" and open_labels.pop().get("name") == controls[0].labels_name:
            ends.append(parser.CurrentByteIndex)

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.Parse(text, True)
    if not found:
        tag = f"<Label value={quoteattr(label)} prompt={quoteattr('|'.join(prompts))}/>".encode()
        text = text[: ends[0]] + tag + text[ends[0] :]
    for position, attrs in reversed(found):  # from the end, so that the positions before it stay right
        own = split_prompts(_prompt_of(attrs))
        if set(prompts) <= set(own):
            continue
        attribute = f" prompt={quoteattr('|'.join(dict.fromkeys([*own, *prompts])))}".encode()
        tag = _START_TAG.match(text, position)[0]  # type: ignore[index]  # the parser has found one there
        kept = _ATTRIBUTE.sub(lambda m: b"" if m[1].decode().lower() in _PROMPTS else m[0], tag)
        content = kept.rstrip(b"/> \t\r\n")
        text = text[:position] + content + attribute + kept[len(content) :] + text[position + len(tag) :]
    changed = xml.replace(xml.strip(), text.decode())  # with the white space around it
    if label not in parse_label_config(changed).labels:
        raise ConfigError(
            f"The label config cannot be given a label {label!r}.",
            "Choose a name that is not blank and does not start with $, or write it into the project's settings.",
        )
    return changed


def read_label_config(path: Path, hint: str = "Use another --config.") -> LabelConfig:
    """Read a label config from a file.

    Args:
        hint: of the error if the file cannot be read.

    Raises:
        ConfigError: the file is not readable or not UTF-8, or see :func:`parse_label_config`.
    """
    try:
        return parse_label_config(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The label config {path} cannot be read: {error.strerror}.", hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The label config {path} is not UTF-8: {error}.", "Save it as UTF-8.") from error


def plain_name(name: str) -> str:
    """Normalise a name for comparison: ignore case, and treat space, ``_`` and ``-`` alike."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


#: Wildcard in ``predicted_values`` for all classes that no other label has.
REST = "*"


def classes_for(label: LabelSpec) -> tuple[str, ...]:
    """Return the classes that :class:`LabelMapper` maps to a label, best first, possibly including :data:`REST`."""
    listed = [name for name in label.predicted_values if name != REST]
    names = [*listed, label.value, label.attrs.get("value", ""), *(set(label.predicted_values) & {REST})]
    return tuple(dict.fromkeys(filter(None, names)))


class LabelMapper:
    """Maps a model's class names to a config's labels.

    A class maps to the label that lists it in ``predicted_values``, else to the label of the same name, else to the
    label with ``predicted_values="*"``; names are compared by :func:`plain_name`. If several labels match, the first
    is used, but an exact name takes precedence over other spellings of it.

    Args:
        labels: the control's labels.
        class_names: the model's classes.
        trained: whether the classes are labels of the project, so that an exact name takes precedence over
            ``predicted_values``, which are for the original detector and renamed labels.
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
        """Return the label of a class, or ``None``."""
        exact = class_name if class_name in self._values else None  # other labels may differ only in case or hyphens
        if exact is not None and self._trained:
            return exact
        key = plain_name(class_name)
        return self._by_prediction.get(key) or exact or self._by_name.get(key) or self._rest

    @property
    def table(self) -> dict[str, str]:
        """The label of each class of the model that has one."""
        return {name: label for name in self._class_names if (label := self.map(name)) is not None}
