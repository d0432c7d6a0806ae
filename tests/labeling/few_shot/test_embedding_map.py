"""The map of what has been learned."""

from __future__ import annotations

import numpy as np
import pytest

from ml_backend.labeling.few_shot.embedding_map import embedding_map, project_2d
from ml_backend.labeling.few_shot.pattern_bank import Exemplars
from ml_backend.labeling.few_shot.pattern_store import ExemplarOrigin


def make_exemplars(vectors: np.ndarray) -> tuple[Exemplars, dict[int, ExemplarOrigin]]:
    ids = np.arange(10, 10 + len(vectors))
    labels = tuple("ab"[n % 2] for n in range(len(vectors)))
    sources = {int(i): ExemplarOrigin(label, 5, f"r{i}", 3) for i, label in zip(ids, labels, strict=True)}
    return Exemplars(ids, np.asarray(vectors, np.float32), labels, np.arange(len(vectors))), sources


def test_what_looks_alike_lies_together() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 16) * 5, 20, axis=0)
    points = project_2d(centres + rng.normal(0, 0.1, centres.shape))
    groups = points.reshape(3, 20, 2)
    spread = max(np.linalg.norm(group - group.mean(0), axis=1).max() for group in groups)
    means = groups.mean(1)
    apart = min(np.linalg.norm(means[i] - means[j]) for i in range(3) for j in range(i))
    assert apart > 3 * spread
    assert np.abs(points).max() == pytest.approx(1.0)


def test_the_same_vectors_give_the_same_map() -> None:
    vectors = np.random.default_rng(1).normal(size=(30, 8))
    assert np.array_equal(project_2d(vectors), project_2d(vectors.copy()))


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (2, 8), (5, 1), (3, 2)])
def test_few_vectors(shape: tuple[int, int]) -> None:
    points = project_2d(np.random.default_rng(2).normal(size=shape))
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()


def test_equal_vectors_lie_in_the_middle() -> None:
    assert np.array_equal(project_2d(np.ones((4, 8))), np.zeros((4, 2)))


def test_points_name_what_they_are() -> None:
    (first, *others) = embedding_map(*make_exemplars(np.eye(6, 8)))
    assert len(others) == 5
    assert {key: first[key] for key in ("id", "label", "task", "frame")} == {
        "id": 10,
        "label": "a",
        "task": 5,
        "frame": 3,
    }
    assert len(embedding_map(*make_exemplars(np.eye(6, 8)), limit=4)) == 4
    assert embedding_map(*make_exemplars(np.zeros((0, 8)))) == []
