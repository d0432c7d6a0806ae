"""Which detector classes a label reaches: one that was taught on persons does not name bicycles by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ml_backend.label_studio.label_config import plain_name

#: Share of a label's objects that one detector class must have, or the label is bound to no class: its objects cross
#: classes, or the detector did not find most of them.
BOUND = 2 / 3
#: Share of a track's votes that a label's classes need: detectors confuse a car with a truck, but rarely with a person.
MIN_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class TaughtClasses:
    """The detector classes of each label's annotated objects.

    Attributes:
        classes: by label, without unknown ones; names as of :func:`plain_name`.
        bound: labels that reach only tracks of their classes.
    """

    classes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    bound: frozenset[str] = frozenset()

    @classmethod
    def of(cls, objects: Iterable[tuple[str, str]]) -> TaughtClasses:
        """Collect label and detector class of annotated objects; an empty class is unknown."""
        by_label: dict[str, Counter[str]] = {}
        for label, name in objects:
            by_label.setdefault(label, Counter())[plain_name(name)] += 1
        classes = {label: frozenset(filter(None, counts)) for label, counts in by_label.items()}
        bound = {
            label
            for label, counts in by_label.items()
            if max((counts[name] for name in classes[label]), default=0) >= BOUND * sum(counts.values())
        }
        return cls(classes, frozenset(bound))

    def reaches(self, label: str, class_scores: Mapping[str, float], *, trained: bool = False) -> bool:
        """Return whether a label may name a track: enough of its votes are for classes of the label's objects.

        Args:
            class_scores: the track's votes by detector class; without any, all labels reach it.
            trained: whether the detector's classes are the project's labels. Objects may have been annotated before it
                was trained, so that a class also stands for the classes of the objects of its label.
        """
        if label not in self.bound or not class_scores:
            return True
        own = self.classes[label]
        by_name: dict[str, frozenset[str]] = {}
        if trained:
            own |= {plain_name(label)}
            by_name = {plain_name(name): classes or own for name, classes in self.classes.items()}

        def is_own(name: str) -> bool:
            return not own.isdisjoint({name, *by_name.get(name, ())})

        votes = sum(score for name, score in class_scores.items() if is_own(plain_name(name)))
        return votes >= MIN_SHARE * sum(class_scores.values())
