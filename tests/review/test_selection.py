"""What to annotate next: chosen by hand, by brute force, and with what is known already."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.review.selection import MAX_CANDIDATES, choose_diverse

#: Three directions of which none resembles another one more than usual.
X, Y, Z = np.eye(3)


def indices(*arguments: Any, **values: Any) -> list[int]:
    return [item.index for item in choose_diverse(*arguments, **values)]


def test_the_uncertain_first_and_then_what_looks_otherwise() -> None:
    needs, vectors = [1.0, 0.9, 0.8, 0.5], [X, X, Y, Z]
    assert indices(needs, vectors, 3) == [0, 2, 3], "the second looks like the first"
    assert indices(needs, vectors, 1) == [0]
    assert indices(needs, vectors, 9) == [0, 2, 3], "the second would add nothing"
    first, *_ = choose_diverse(needs, vectors, 3)
    assert first.gain == pytest.approx(1.9), "with the one that looks the same"
    assert (first.covers, first.likeness) == (1, 0.0)


def test_many_that_look_alike_count_more_than_one_that_is_a_little_less_certain() -> None:
    assert indices([0.9, 0.4, 0.4, 0.4], [X, Y, Y, Y], 1) == [1]


def test_what_was_annotated_need_not_be_chosen_again() -> None:
    needs, vectors = [0.8, 0.5, 0.5], [X, Y, Z]
    assert indices(needs, vectors, 2, known=[X]) == [1, 2]
    (only,) = choose_diverse(needs, vectors, 1, known=[0.6 * X + 0.8 * Y])
    assert only.index == 2
    half = choose_diverse([1.0, 0.1], [X, Y], 2, known=[0.6 * X + 0.8 * Z])
    assert [item.index for item in half] == [0, 1]
    assert half[0].likeness == pytest.approx(0.5), "of 0.6, where 0.2 is usual"
    assert half[0].gain == pytest.approx(0.5)


def test_a_budget_of_work() -> None:
    needs, vectors = [1.0, 0.9, 0.8], [X, Y, Z]
    assert indices(needs, vectors, 10, costs=[10, 5, 5]) == [1, 2], "more for the same time"
    assert indices(needs, vectors, 7, costs=[10, 5, 5]) == [1]
    assert indices(needs, vectors, 4, costs=[10, 5, 5]) == []
    assert indices(needs, vectors, 20, costs=[10, 5, 5]) == [1, 2, 0]


def test_what_has_no_embedding_is_like_nothing_else() -> None:
    assert indices([0.5, 0.6, 0.7], np.zeros((3, 4)), 2) == [2, 1]
    assert indices([0.5, 0.6], [0 * X, X], 2, known=[X]) == [0]


@pytest.mark.parametrize(("needs", "vectors"), [([], np.zeros((0, 3))), ([0.0, -1.0], [X, Y])])
def test_nothing_to_choose(needs: list[float], vectors: Any) -> None:
    assert choose_diverse(needs, vectors, 5) == []


def test_what_all_have_in_common_is_not_new() -> None:
    street = np.array([X + 0.1 * Y, X - 0.1 * Y, X + 0.1 * Z])
    seen = choose_diverse([1.0, 1.0, 1.0], street, 3, known=[X, Y, Z])
    assert min(item.likeness for item in seen) > 0.9, "they look like the first that is known"


def test_all_look_the_same() -> None:
    assert indices([0.3, 0.4, 0.2], [X, X, X], 3) in ([0], [1], [2]), "one stands for all"


def test_more_than_can_be_compared() -> None:
    count = MAX_CANDIDATES + 50
    needs = np.linspace(0.01, 1.0, count)
    vectors = np.random.default_rng(0).normal(size=(count, 8))
    assert min(indices(needs, vectors, 5)) >= 50, "the most certain are not compared"


def worth(needs: Any, similarity: Any, chosen: Any) -> float:
    return float(needs @ similarity[:, list(chosen)].max(axis=1))


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_near_the_best_of_all_choices(seed: int, budget: int) -> None:
    random = np.random.default_rng(seed)
    count = 8
    needs, vectors = random.uniform(0.1, 1, count), random.normal(size=(count, 3))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    usual = max((cosine.sum() - count) / (count * (count - 1)), 0)
    similarity = np.clip((cosine - usual) / (1 - usual), 0, 1)
    found = choose_diverse(needs, vectors, budget)
    reached = worth(needs, similarity, [item.index for item in found])
    assert sum(item.gain for item in found) == pytest.approx(reached)
    best = max(worth(needs, similarity, chosen) for chosen in combinations(range(count), budget))
    assert reached >= (1 - 1 / np.e) * best - 1e-9
    gains = [item.gain for item in found]
    assert gains == sorted(gains, reverse=True)
    # Each is the best next one.
    chosen: list[int] = []
    for item in found:
        options = {j: worth(needs, similarity, [*chosen, j]) for j in range(count)}
        assert options[item.index] == pytest.approx(max(options.values()))
        chosen.append(item.index)
