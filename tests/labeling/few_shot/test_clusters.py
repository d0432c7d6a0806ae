"""How many looks a label has."""

from __future__ import annotations

import numpy as np
import pytest

from ml_backend.labeling.few_shot.clusters import count_clusters
from tests.labeling.few_shot.builders import direction, views


def clusters(things: list[np.ndarray]) -> int:
    return count_clusters(np.concatenate(things), np.repeat(np.arange(len(things)), [len(thing) for thing in things]))


@pytest.mark.parametrize("looks", [1, 2, 3, 5])
def test_as_many_clusters_as_looks(looks: int) -> None:
    assert (
        clusters([views(direction(look), 3, 10 * look + i) for look in range(looks) for i in range(4 + look)]) == looks
    )


def test_many_views_of_few_objects_are_no_looks_of_their_own() -> None:
    assert clusters([views(direction(1), 40, i, spread=0.5, own=0.01) for i in range(6)]) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_copies_are_one_look(count: int) -> None:
    assert clusters([direction(1)[None]] * count) == 1
