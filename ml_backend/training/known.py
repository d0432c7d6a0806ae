"""What a detector knows of a project's labels: what each begins with, and which it has been taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ml_backend.errors import WeightsError
from ml_backend.label_studio.schema import REST, plain_name
from ml_backend.models.memory import is_out_of_memory

#: Label -> class that it begins with, or several, of which the first that there is counts.
StartFrom = Mapping[str, str | Sequence[str]]

#: Where a checkpoint says which labels it has been taught.
LEARNT = "taught"
#: Where it says which it can see: those taught, and those that still have what an earlier detector knew.
KNOWN = "known"


def rows_to_begin_with(names: Sequence[str], start: Mapping[int, Any], start_from: StartFrom) -> dict[int, int]:
    """For each class of a new detector the class of another one that it begins with; those with none are left out.

    Args:
        names: the new classes.
        start: the other's classes.
        start_from: name -> the other's class, or several in order, of which the first that it has counts:
            :data:`REST` is the first class that belongs to no other name. A name that the other has too stands for
            itself.
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


def marks_of(
    classes: Sequence[str],
    taught: Sequence[str],
    start: tuple[Mapping[int, Any], Mapping[str, Any]] | None,
    start_from: StartFrom,
) -> dict[str, list[str]]:
    """What is written into a trained checkpoint, so that whoever has it knows what it knows.

    Args:
        start: class names and content of the checkpoint that it began with.
    """
    learnt, seen = set(taught), set(taught)
    if start is not None:
        names, content = start
        learnt |= learnt_by(names, content)
        # A detector without marks is a foreign one, which knows all its classes.
        known = known_of(content)
        for index, row in rows_to_begin_with(classes, names, start_from).items():
            if known is None or str(names[row]) in known:
                seen.add(classes[index])
        seen |= learnt & set(classes)
    return {LEARNT: sorted(learnt), KNOWN: sorted(seen)}


def learnt_by(names: Mapping[int, Any], content: Mapping[str, Any]) -> set[str]:
    """The classes that a checkpoint has been taught and still has."""
    return set(content.get(LEARNT) or ()) & set(map(str, names.values()))


def known_of(content: Mapping[str, Any]) -> frozenset[str] | None:
    """The classes that a checkpoint's marks say it can see; ``None``: it has none."""
    marks = content.get(KNOWN) or content.get(LEARNT)
    return None if marks is None else frozenset(map(str, marks))


@lru_cache(maxsize=16)
def known_classes(path: Path, sha256: str) -> frozenset[str] | None:
    """The classes that a trained detector can see; ``None``: it does not say.

    Args:
        sha256: of the file, which may be replaced.

    Raises:
        WeightsError: it cannot be read.
    """
    return known_of(read_checkpoint(path)[1])


def read_checkpoint(path: Path) -> tuple[Any, dict[str, Any]]:
    """Model and content of a checkpoint.

    Raises:
        WeightsError: missing or unreadable.
    """
    from ml_backend.models._ultralytics import setup_ultralytics

    setup_ultralytics()
    from ultralytics.nn.tasks import load_checkpoint

    if not path.is_file():
        raise WeightsError(f"No checkpoint at {path}.", "Start the training anew, or set YOLO_WEIGHTS to a checkpoint.")
    try:
        model, checkpoint = load_checkpoint(str(path))
    except Exception as error:  # unpickling foreign files raises anything
        if is_out_of_memory(error):
            raise
        raise WeightsError(
            f"{path} cannot be loaded as a YOLO model ({type(error).__name__}: {error}).",
            "The file may be damaged or of another kind; download it again, or start the training anew.",
        ) from error
    return model, checkpoint
