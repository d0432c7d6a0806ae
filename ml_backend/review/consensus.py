"""What several people who annotated the same video agree on, and where one annotation differs from the others.

Tracks are matched over people as two people's are, see :mod:`ml_backend.review.agreement`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ml_backend.core.types import BoolArray
from ml_backend.label_studio.regions import MALFORMED, Region, RegionKeys, stated_frames, visible_frames
from ml_backend.label_studio.timeline import MAX_TIMELINE
from ml_backend.review.agreement import SampledTrack, best_pairs, compared_frames, sampled_tracks, track_overlaps
from ml_backend.review.region_repairs import keyframe_sequence
from ml_backend.review.repair_json import RepairJson, digest

Regions = Sequence[Mapping[str, Any]]
#: Stands for an annotation that is nobody's among people, whose names are never empty.
_NOBODY = ""


@dataclass(frozen=True, slots=True)
class ConsensusTrack:
    """An object that at least one of several people has annotated.

    Attributes:
        label: of most people who have it.
        labels: by person who has it.
        kept: whether more than half of all people have it; if half of them, whether the model has it, too.
        model: the model's track of it; ``None``: it has none, or was not asked.
        members: of the people who have it.
    """

    label: str
    labels: Mapping[str, str]
    kept: bool
    model: SampledTrack | None = field(repr=False)
    members: Sequence[SampledTrack] = field(repr=False)

    @property
    def first(self) -> int:
        """First frame on which anybody shows it, from 1."""
        return min(item.first for item in self.members)

    @property
    def last(self) -> int:
        return max(item.last for item in self.members)

    def region(self, min_iou: float) -> Region:
        """Return the region that combines those of all people who have it.

        Frames on which at least half of them show it are kept; where exactly half do, a track of the model decides.
        Boxes are the median of theirs. Keyframes that are the same in all stay as they are.

        Args:
            min_iou: of the boxes between keyframes with the combined ones.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: a region is malformed, or too long.
        """
        regions = [item.region for item in self.members]
        ids = Counter(str(region.get("id", "")) for region in regions)
        own: Region = {name: regions[0][name] for name in ("from_name", "to_name", "type") if name in regions[0]}
        own = {"id": ids.most_common(1)[0][0], **own, "origin": "manual"}
        value = regions[0]["value"]
        sequence = value["sequence"]
        if any(region["value"]["sequence"] != sequence for region in regions):
            keys = [RegionKeys.read(region) for region in regions]
            if any(item.rotation is not None for item in keys):  # of who annotated last: upright ones lose it
                own["id"] = str(regions[-1].get("id", ""))
                value = regions[-1]["value"]
                return own | {"value": {**value, "labels": [self.label] if self.label else []}}
            count = max(map(stated_frames, regions))
            first, last = max(1, min(int(k.frames[0]) for k in keys)), max(count, *(int(k.frames[-1]) for k in keys))
            if last > MAX_TIMELINE:
                raise ValueError(f"it has a keyframe at frame {last}")
            frames = np.arange(first, last + 1)
            found = [item.boxes(100, 100, frames) for item in keys]
            visible: BoolArray = np.stack([item for _, item in found])
            votes = 2 * visible.sum(axis=0)
            shown, tie = votes > len(found), votes == len(found)
            if self.model is not None:
                tie &= RegionKeys.read(self.model.region).boxes(100, 100, frames)[1]
            shown |= tie
            if not shown.any():
                raise ValueError("no frame is shown by half of the people")
            boxes = np.stack([np.where(item[:, None], xyxy, np.nan)[shown] for xyxy, item in found])
            xyxy = np.nanmedian(boxes, axis=0)
            seconds = float(value.get("duration") or 0)
            rate = count / seconds if seconds else 1.0
            sequence = keyframe_sequence(frames[shown] - 1, xyxy, frames[:0], last, rate, min_iou)
        return own | {"value": {**value, "sequence": sequence, "labels": [self.label] if self.label else []}}


def find_consensus(people: Mapping[str, Regions], model: Regions | None = None) -> list[ConsensusTrack]:
    """Return the objects that any of several people have annotated in a video, by first frame.

    Args:
        people: ``videorectangle`` results by person; malformed ones are left out. Of labels that equally many people
            give, and the model does not, the last of these people decides.
        model: the model's results, which decide ties of the people; ``None``: it is not asked.
    """
    found = []
    for members, by_model in _objects(people, model or ()):
        labels = {name: members[name].label for name in people if name in members}
        share = 2 * len(members)
        kept = share > len(people) or (share == len(people) and by_model is not None)
        label = _majority(labels, by_model)
        found.append(ConsensusTrack(label, labels, kept, by_model, [members[name] for name in labels]))
    return sorted(found, key=lambda item: (item.first, item.last, item.label))


def consensus_regions(tracks: Sequence[ConsensusTrack], min_iou: float) -> list[Region]:
    """Return the regions of the tracks that are kept, each with an id of its own; malformed ones are left out."""
    out: list[Region] = []
    for track in tracks:
        if not track.kept:
            continue
        try:
            region = track.region(min_iou)
        except MALFORMED:
            continue
        if any(region["id"] == other["id"] for other in out):
            region["id"] = digest(region, len(out))[:10]
        out.append(region)
    return out


@dataclass(frozen=True, slots=True)
class DisputedTrack:
    """A track in which an annotation differs from other people's.

    Attributes:
        region: of the annotation; ``None``: it has no such track.
        label: of the track there, or of those who have it.
        first, last: frames from 1.
        repair: proposed: what the others have.
        score: share of the people who differ, 0..1.
        boxes: number of boxes that the repair changes.
        reason: a sentence for people.
        sides: what each person says: a label, or ``None`` without the track.
    """

    region: Mapping[str, Any] | None
    label: str
    first: int
    last: int
    repair: RepairJson
    score: float
    boxes: int
    reason: str
    sides: Mapping[str, str | None]


def find_disputed(
    people: Mapping[str, Regions], annotation: Regions, author: str | None, min_iou: float
) -> Iterator[DisputedTrack]:
    """Yield the tracks in which the annotation of a video that counts differs from those of other people.

    Args:
        people: ``videorectangle`` results by person.
        annotation: of ``author``.
        author: one of ``people``; ``None``: nobody. Then only what at least half of the people dispute is returned.
        min_iou: see :meth:`ConsensusTrack.region`.
    """
    name = _NOBODY if author is None else author
    for members, _ in _objects({**people, name: annotation}, ()):
        own = members.get(name)
        having = {person: members[person] for person in people if person in members}
        sides = {person: having[person].label if person in having else None for person in people}
        others = {person: item.label for person, item in having.items() if person != name}
        if own is None:
            track = ConsensusTrack(_majority(others, None), others, True, None, list(having.values()))
            try:
                added = track.region(min_iou)
            except MALFORMED:
                continue
            added["id"] = digest(added)[:10]
            repair = {
                "do": "add",
                "added": added,
                "label": track.label,
                "first": added["value"]["sequence"][0]["frame"],
            }
            said = f"{_names(others)} {'has' if len(others) == 1 else 'have'} a track here"
            reason = f"{said}{f', which {author} has not' if author is not None else ''}."
            span, share = (track.first, track.last), len(having) / len(people)
            found = DisputedTrack(None, track.label, *span, repair, share, visible_frames(added), reason, sides)
        else:
            if not having:  # a reviewer has added it to what is nobody's
                continue
            lacking = [person for person, label in sides.items() if label is None]
            differing = {person: label for person, label in others.items() if label != own.label}
            if not (lacking or differing):
                continue
            disputing = max(len(lacking), len(differing))
            if len(lacking) > len(differing):
                repair = {"do": "delete", "region": str(own.region.get("id", ""))}
                verb = "has" if len(lacking) == 1 else "have"
                reason = f"{_names(lacking)} {verb} no track here{f', {author} has one' if author is not None else ''}."
            else:
                label = _majority(differing, None)
                repair = {"do": "relabel", "region": str(own.region.get("id", "")), "label": label}
                said = "; ".join(f"{person}: {differing[person] or 'no label'}" for person in differing)
                reason = f"Labelled {own.label or 'nothing'}{f' by {author}' if author is not None else ''}; {said}."
            boxes, share = visible_frames(own.region), disputing / len(people)
            found = DisputedTrack(own.region, own.label, own.first, own.last, repair, share, boxes, reason, sides)
        if author is not None or found.score >= 0.5:
            yield found


def _objects(
    people: Mapping[str, Regions], model: Regions
) -> list[tuple[dict[str, SampledTrack], SampledTrack | None]]:
    """Match the tracks of people, and those of the model with what any of them has.

    People join one after the other, those with the most tracks first; a track joins the object with whose tracks it
    overlaps best on average, one to one.

    Returns:
        Of each object the tracks by person, and the model's.
    """
    frames = compared_frames([region for regions in (*people.values(), model) for region in regions])
    tracks = {name: sampled_tracks(regions, frames) for name, regions in people.items()}
    objects: list[dict[str, SampledTrack]] = []
    for name in sorted(tracks, key=lambda name: -len(tracks[name])):
        matched = _matched(objects, tracks[name])
        for index, track in matched.items():
            objects[index][name] = track
        taken = {id(track) for track in matched.values()}
        objects += [{name: track} for track in tracks[name] if id(track) not in taken]
    by_model = _matched(objects, sampled_tracks(model, frames))
    return [(members, by_model.get(index)) for index, members in enumerate(objects)]


def _matched(objects: Sequence[Mapping[str, SampledTrack]], tracks: Sequence[SampledTrack]) -> dict[int, SampledTrack]:
    """Return the tracks that show an object which is known already, by its index."""
    members = [(owner, track) for owner, own in enumerate(objects) for track in own.values()]
    owners = np.array([owner for owner, _ in members], np.int64)
    overlap = np.zeros((len(objects), len(tracks)))
    np.add.at(overlap, owners, track_overlaps([track for _, track in members], tracks))
    pairs = best_pairs(overlap / np.bincount(owners, minlength=len(objects))[:, None])
    return {index: tracks[number] for index, number in pairs}


def _majority(labels: Mapping[str, str], model: SampledTrack | None) -> str:
    """Return the label of most people; of several the model's, or else that of the last person."""
    counts = Counter(labels.values())
    tied = [label for label in labels.values() if counts[label] == max(counts.values())]
    return model.label if model is not None and model.label in tied else tied[-1]


def _names(people: Sequence[str] | Mapping[str, str]) -> str:
    *first, last = people
    return f"{', '.join(first)} and {last}" if first else last
