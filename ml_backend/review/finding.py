"""What a single check finds."""

from __future__ import annotations

from dataclasses import dataclass, field

from ml_backend.review.kinds import MomentKind
from ml_backend.review.repairs import Repair


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
