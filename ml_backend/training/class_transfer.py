"""Class transfer: which class of the start checkpoint each label starts from, and which labels were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ml_backend.core.errors import WeightsError
from ml_backend.core.memory import is_out_of_memory
from ml_backend.label_studio.label_config import REST, LabelMapper, LabelSpec, parse_label_config, plain_name

#: Label -> class of the start checkpoint that it starts from, or several, of which the first that exists counts.
StartFrom = Mapping[str, str | Sequence[str]]

#: Key of a checkpoint that lists the labels it was trained on.
TRAINED = "taught"
#: Key that lists the labels it can detect: trained ones, and those that kept an earlier detector's weights.
DETECTABLE = "known"


def transferred_rows(names: Sequence[str], start: Mapping[int, Any], start_from: StartFrom) -> dict[int, int]:
    """Map each class of a new detector to the class of the start checkpoint whose weights it starts with.

    Args:
        names: classes of the new detector.
        start: class id -> name of the start checkpoint.
        start_from: label -> class of the start checkpoint, or several in order of preference. :data:`REST` stands for
            the first class that belongs to no other label. A label that the checkpoint has too maps to itself.

    Returns:
        new class id -> class id of the start checkpoint; classes without a counterpart are left out.
    """
    wanted = {name: (value,) if isinstance(value, str) else tuple(value) for name, value in start_from.items()}
    rows = {plain_name(str(name)): index for index, name in reversed(list(start.items()))}
    exact = {str(name): index for index, name in reversed(list(start.items()))}
    claimed = {plain_name(name) for name in (*names, *(one for several in wanted.values() for one in several))}
    rest = next((index for index, name in start.items() if plain_name(str(name)) not in claimed), None)
    pairs: dict[int, int] = {}
    for index, name in enumerate(names):
        candidates = [one for one in wanted.get(name, ()) if one != REST] + [name]
        found = [exact.get(one, rows.get(plain_name(one))) for one in candidates]
        if REST in wanted.get(name, ()):
            found.append(rest)
        row = next((row for row in found if row is not None), None)
        if row is not None:
            pairs[index] = row
    return pairs


def known_rows(
    names: Sequence[str], start: Mapping[int, Any], content: Mapping[str, Any], label_config: str
) -> dict[int, list[int]]:
    """Map each label to the classes of a detector whose objects have that label in predictions.

    Args:
        names: labels.
        start: class id -> name of the detector.
        content: of its checkpoint.
        label_config: of the project; empty: a class has the label of its name.

    Returns:
        label index -> class ids; labels that the detector cannot detect are left out.
    """
    detectable = detectable_classes_of(content)
    controls = parse_label_config(label_config).video_controls if label_config else ()
    specs = [label for control in controls for label in control.labels] or [LabelSpec(name) for name in names]
    table = LabelMapper(specs, map(str, start.values()), trained=detectable is not None).table
    rows: dict[int, list[int]] = {}
    for class_id, name in start.items():
        if (detectable is None or str(name) in detectable) and (label := table.get(str(name))) in names:
            rows.setdefault(names.index(label), []).append(class_id)
    return rows


def checkpoint_metadata(
    classes: Sequence[str],
    trained_classes: Sequence[str],
    start: tuple[Mapping[int, Any], Mapping[str, Any]] | None,
    start_from: StartFrom,
) -> dict[str, list[str]]:
    """Return the entries of a trained checkpoint that record which labels it was trained on and can detect.

    Args:
        start: class names and content of the start checkpoint.
    """
    trained, detectable = set(trained_classes), set(trained_classes)
    if start is not None:
        names, content = start
        trained |= labels_trained_by(names, content)
        # A checkpoint without these entries is not ours: it detects all its classes.
        start_detectable = detectable_classes_of(content)
        for index, row in transferred_rows(classes, names, start_from).items():
            if start_detectable is None or str(names[row]) in start_detectable:
                detectable.add(classes[index])
        detectable |= trained & set(classes)
    return {TRAINED: sorted(trained), DETECTABLE: sorted(detectable)}


def labels_trained_by(names: Mapping[int, Any], content: Mapping[str, Any]) -> set[str]:
    """Return the classes that a checkpoint was trained on and still has."""
    return set(content.get(TRAINED) or ()) & set(map(str, names.values()))


def detectable_classes_of(content: Mapping[str, Any]) -> frozenset[str] | None:
    """Return the classes that a checkpoint records it can detect; ``None`` where it records nothing."""
    classes = content.get(DETECTABLE) or content.get(TRAINED)
    return None if classes is None else frozenset(map(str, classes))


@lru_cache(maxsize=16)
def detectable_classes(path: Path, sha256: str) -> frozenset[str] | None:
    """Return the classes that a trained detector can detect; ``None`` where the checkpoint does not say.

    Args:
        sha256: of the file; part of the cache key, since the file may be replaced.

    Raises:
        WeightsError: it cannot be read.
    """
    return detectable_classes_of(read_checkpoint(path)[1])


def read_checkpoint(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return model and content of a checkpoint.

    Raises:
        WeightsError: missing or unreadable.
    """
    from ml_backend.detectors.setup import setup_ultralytics

    setup_ultralytics()
    from ultralytics.nn.tasks import load_checkpoint

    if not path.is_file():
        raise WeightsError(
            f"No checkpoint at {path}.", "Start the training again, or set YOLO_WEIGHTS to a checkpoint."
        )
    try:
        model, checkpoint = load_checkpoint(str(path))
    except Exception as error:  # unpickling foreign files raises anything
        if is_out_of_memory(error):
            raise
        raise WeightsError(
            f"{path} cannot be loaded as a YOLO model ({type(error).__name__}: {error}).",
            "The file may be damaged or of another kind; download it again, or start the training again.",
        ) from error
    return model, checkpoint
