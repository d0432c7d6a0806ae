"""What a single check finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ml_backend.review.repairs import Repair

MomentKind = Literal[
    "identity_jump",
    "broken_life",
    "label",
    "jump",
    "jitter",
    "duplicate",
    "no_object",
    "no_box",
    "frozen",
    "overstay",
    "geometry",
]
MOMENT_KINDS: tuple[MomentKind, ...] = get_args(MomentKind)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found; see :class:`Moment`."""

    kind: MomentKind
    tracks: tuple[int, ...]
    first: int
    last: int
    score: float
    reason: str
    repair: Repair = field(compare=False)
