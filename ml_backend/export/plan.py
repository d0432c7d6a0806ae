"""What the videos of a dataset are called, and which part of it each belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ml_backend.errors import MediaError
from ml_backend.export.layout import Picker
from ml_backend.export.names import UniqueNames
from ml_backend.export.sampling import Sampling, SplitBy, split_videos
from ml_backend.export.source import Part, Source
from ml_backend.label_studio.media import canonical_uri


@dataclass(frozen=True, slots=True)
class Planned:
    """One video of one task (and person) in a dataset.

    Attributes:
        name: of its files; unique in the dataset.
        split: the part that it belongs to as a whole; ``None``: its pictures are split.
        by: how they are split.
        same_as: name of the first that has the same video; chance is drawn for that one.
        shared: whether there are others with the same video. A picture lies in the same part for all of them.
    """

    name: str
    split: str | None
    by: SplitBy
    same_as: str
    shared: bool

    @property
    def rule(self) -> Any:
        """All of this that decides where pictures go, as JSON."""
        return self.split or [self.by, self.same_as, self.shared]


def plan_videos(
    source: Source, sampling: Sampling, whole_videos: bool, picker: Picker | None = None
) -> tuple[list[Planned], tuple[str, ...]]:
    """All videos in the source's order, and all labels: those of the config, then others as they appear.

    Args:
        whole_videos: whether the format has no other parts than whole videos.
        picker: says for each picture to which part it belongs.
    """
    names, labels = UniqueNames(), dict[str, None]()
    if source.config:
        labels.update(dict.fromkeys(source.config.labels))
    taken: list[str] = []
    firsts: dict[str, str] = {}
    same_as: list[str] = []
    for part in source.parts():
        name = picker.name(part) if picker else source.file_stem(part)
        taken.append(names.take(name, part.task_id))
        same_as.append(firsts.setdefault(_video_key(part, source.url) or f"only {taken[-1]}", taken[-1]))
        labels.update(dict.fromkeys(part.labels))
    videos = list(firsts.values())
    by = sampling.for_videos(len(videos))
    splits: Sequence[str | None] = [None] * len(videos)
    if not picker and whole_videos and sampling.split != "video":
        splits = ["train"] * len(videos)
    elif not picker and by == "video":
        splits = split_videos(len(videos), sampling)
    split_of = dict(zip(videos, splits, strict=True))
    tasks = Counter(same_as)
    plan = [
        Planned(name, split_of[first], by, first, tasks[first] > 1) for name, first in zip(taken, same_as, strict=True)
    ]
    return plan, tuple(labels)


def _video_key(part: Part, label_studio_url: str) -> str:
    """The same for the same video in several tasks; empty where nothing is known."""
    try:
        return canonical_uri(part.uri, label_studio_url)
    except MediaError:
        return part.uri
