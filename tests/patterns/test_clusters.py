"""How many looks a label has."""

from __future__ import annotations

import numpy as np
import pytest

from ml_backend.patterns.clusters import LabelClusters, find_clusters
from tests.patterns.builders import direction, views


def cluster(things: list[np.ndarray]) -> LabelClusters:
    sizes = [len(thing) for thing in things]
    return find_clusters(np.concatenate(things), np.arange(sum(sizes)) + 7, np.repeat(np.arange(len(things)), sizes))


@pytest.mark.parametrize("looks", [1, 2, 3, 5])
def test_as_many_clusters_as_looks(looks: int) -> None:
    things = [views(direction(look), 3, 10 * look + i) for look in range(looks) for i in range(4 + look)]
    found = cluster(things)
    assert len(found) == looks
    truth = np.repeat(np.arange(looks), [3 * (4 + look) for look in range(looks)])
    assert all(len(np.unique(found.assignment[truth == look])) == 1 for look in range(looks))
    assert found.sizes.tolist() == sorted((3 * (4 + look) for look in range(looks)), reverse=True)
    assert np.bincount(found.assignment).tolist() == found.sizes.tolist()
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-5)


def test_many_views_of_few_objects_are_no_looks_of_their_own() -> None:
    things = [views(direction(1), 40, i, spread=0.5, own=0.01) for i in range(6)]
    assert len(cluster(things)) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_copies_are_one_look(count: int) -> None:
    found = cluster([direction(1)[None]] * count)
    assert found.sizes.tolist() == [count]
    assert found.ids.tolist() == list(range(7, 7 + count))
    np.testing.assert_allclose(found.centroids[0], direction(1), atol=1e-6)
