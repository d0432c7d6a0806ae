"""Find suspicious moments in the tracks of a video, most worthwhile first.

    for moment in find_moments(ReviewVideo(tracks, fps=30, width=1920, height=1080, frames=300)):
        print(moment.kind, moment.first, moment.reason)
        tracks = apply_repair(tracks, moment.repair)

More is found with more evidence: boxes alone tell jumps, breaks, duplicates, frozen and impossible boxes; embedded
crops tell who is who; detections tell what is missing and what shows nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from ml_backend.review import coverage, identity, labels, shape
from ml_backend.review.finding import Finding
from ml_backend.review.kinds import MOMENT_KINDS, MomentKind
from ml_backend.review.repairs import Join, Repair, SplitAt, SwapFrom, changed_boxes
from ml_backend.review.video import Evidence, ReviewVideo

#: Score from which a moment is rather a fault than not, so that nobody should train on the tracks before looking at it.
SEVERE = 0.7
#: Seconds that two moments of one track may be apart and still have one cause, such as the jump at a swap.
SAME_CAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that is probably wrong.

    Attributes:
        task: id of the task.
        tracks: ids of the tracks concerned; empty for an object without a box.
        first, last: frames between which it is seen.
        score: 0..1, how certain it is.
        changed: boxes that the repair changes.
        reason: a sentence for people.
        repair: proposed.
    """

    kind: MomentKind
    task: int
    tracks: tuple[int, ...]
    first: int
    last: int
    score: float
    changed: int
    reason: str
    repair: Repair = field(compare=False)

    @property
    def gain(self) -> float:
        """Number of boxes that the repair is expected to put right."""
        return self.score * self.changed

    @property
    def severe(self) -> bool:
        return self.score >= SEVERE

    @property
    def shown(self) -> int:
        """The frame at which the repair shows best."""
        if isinstance(self.repair, SplitAt | SwapFrom):
            return self.repair.frame
        if isinstance(self.repair, Join) or self.kind == "overstay":
            return self.last
        return (self.first + self.last) // 2


def sound_evidence(video: ReviewVideo) -> Evidence:
    """Return what is derived from a video's tracks without their impossible boxes."""
    return Evidence(replace(video, tracks=shape.sound_boxes(video.tracks, video.width, video.height)))


def find_moments(video: ReviewVideo, evidence: Evidence | None = None) -> list[Moment]:
    """Return what is probably wrong with the tracks of a video, the largest expected gain first.

    One cause is one moment: of several findings about the same tracks at the same time the most certain is kept.

    Args:
        evidence: see :func:`sound_evidence`, for those who need it, too.
    """
    evidence = evidence or sound_evidence(video)
    findings = chain(shape.find(video), coverage.find(evidence), identity.find(evidence), labels.find(evidence))
    moments = [
        Moment(
            finding.kind,
            video.task,
            finding.tracks,
            finding.first,
            finding.last,
            finding.score,
            changed_boxes(video.tracks, finding.repair),
            finding.reason,
            finding.repair,
        )
        for finding in _one_per_cause(sorted(findings, key=lambda f: -f.score), SAME_CAUSE_S * video.fps)
    ]
    return sorted(moments, key=lambda moment: (-moment.gain, moment.first, moment.tracks))


#: By kind, the kinds that explain it at the same place and time.
_EXPLAINED_BY: dict[MomentKind, tuple[MomentKind, ...]] = {
    "jump": tuple(kind for kind in MOMENT_KINDS if kind != "label"),
    "jitter": ("no_object", "duplicate", "frozen", "geometry"),
    "identity_jump": ("identity_jump", "no_object", "duplicate", "frozen"),
    "overstay": ("no_object", "duplicate", "frozen", "geometry", "overstay"),
    "frozen": ("no_object", "duplicate", "frozen", "overstay"),
    "label": ("no_object", "duplicate"),
    "broken_life": ("no_object", "duplicate", "identity_jump"),
}


def _one_per_cause(findings: Sequence[Finding], slack: float) -> Iterator[Finding]:
    """Yield the findings that no other one explains, given the most certain first; jumps are looked at last."""
    kept: list[Finding] = []
    for finding in sorted(findings, key=lambda f: f.kind == "jump"):
        causes = _EXPLAINED_BY.get(finding.kind, ())
        if not any(
            other.kind in causes
            and set(other.tracks) & set(finding.tracks)
            and other.first - slack <= finding.last
            and finding.first <= other.last + slack
            for other in kept
        ):
            kept.append(finding)
    yield from kept
