"""Objects that were seen before keep their label, however little their label's other objects look like them."""

from __future__ import annotations

import numpy as np
import pytest

from ml_backend.core.types import FloatArray
from ml_backend.labeling.few_shot.exemplar_sampling import sample_exemplars
from ml_backend.labeling.few_shot.pattern_bank import Exemplars, PatternBank
from ml_backend.labeling.few_shot.reidentification import MIN_OTHERS, fit_reidentification

DIM = 64


def unit(values: FloatArray) -> FloatArray:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True), np.float32)


def views(number: int, count: int = 4, noise: float = 0.35, seed: int = 0) -> FloatArray:
    """Views of object ``number``: all objects share a direction, as people do, and each has one of its own."""
    own = np.random.default_rng(1000 + number).normal(size=DIM)
    shared = np.random.default_rng(1).normal(size=DIM)
    rng = np.random.default_rng(100 * number + seed)
    return unit(own + 1.5 * shared + noise * rng.normal(size=(count, DIM)))


def bank_of(labels: dict[int, str]) -> PatternBank:
    parts = [views(number) for number in labels]
    rows = [label for label, part in zip(labels.values(), parts, strict=True) for _ in part]
    groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return PatternBank.fit(Exemplars(np.arange(len(rows)), np.concatenate(parts), tuple(rows), groups))


def test_objects_of_a_label_that_do_not_look_alike_are_told_again() -> None:
    """Three people are medics; nothing in their looks says so."""
    labels = {number: "medic" if number < 3 else "person" for number in range(15)}
    bank = bank_of(labels)
    for number, label in labels.items():
        verdict = bank.classify(views(number, seed=1))
        assert verdict.label == label
        assert sum(verdict.probabilities.values()) <= 1 + 1e-9


def test_strangers_are_rarely_taken_for_twins() -> None:
    twins = fit_reidentification(sample_exemplars(*arrays({number: int(number >= 3) for number in range(15)})))
    assert twins is not None
    strangers = np.concatenate([views(number) for number in range(50, 70)])
    found = twins.probabilities(strangers, np.arange(0, len(strangers), 4), 2)
    again = np.concatenate([views(number, seed=1) for number in range(15)])
    told = twins.probabilities(again, np.arange(0, len(again), 4), 2)
    assert (told.max(axis=1) >= 0.5).mean() > 0.9
    assert (found.max(axis=1) >= 0.5).mean() < 0.3


def test_an_object_between_two_twins_gets_neither_label_for_that() -> None:
    sample = sample_exemplars(*arrays({number: number % 2 for number in range(12)}))
    twins = fit_reidentification(sample)
    assert twins is not None
    both = unit(views(0, seed=1) + views(1, seed=1))
    (found,) = twins.probabilities(both, np.array([0]), 2)
    assert found.max() < 0.5 or abs(found[0] - found[1]) < 0.2


def arrays(of: dict[int, int], count: int = 4) -> tuple[FloatArray, np.ndarray, np.ndarray, np.ndarray]:
    parts = [views(number, count) for number in of]
    rows = np.repeat(np.array(list(of.values())), count)
    return np.concatenate(parts), rows, np.arange(len(rows)), np.repeat(np.arange(len(of)), count)


@pytest.mark.parametrize("others", [0, 1, MIN_OTHERS - 1])
def test_too_few_others_to_know_likeness_from_chance(others: int) -> None:
    of = {0: 0, **{number + 1: 1 for number in range(others)}}
    assert fit_reidentification(sample_exemplars(*arrays(of))) is None


def test_single_views_tell_nothing_of_an_object_s_likeness_to_itself() -> None:
    assert (
        fit_reidentification(sample_exemplars(*arrays({number: number % 2 for number in range(12)}, count=1))) is None
    )


def test_background_counts_as_others() -> None:
    of = {0: 0, **dict.fromkeys(range(1, 1 + MIN_OTHERS), -1)}
    twins = fit_reidentification(sample_exemplars(*arrays(of)))
    assert twins is not None
    again, stranger = views(0, seed=1), views(99)
    found = twins.probabilities(np.concatenate([again, stranger]), np.array([0, len(again)]), 1)
    assert found[0, 0] > 0.5 > found[1, 0]


def test_objects_that_all_look_the_same_are_not_told_apart() -> None:
    one = views(0, 48)
    of = np.repeat(np.arange(12) % 2, 4)
    assert fit_reidentification(sample_exemplars(one, of, np.arange(48), np.repeat(np.arange(12), 4))) is None


def test_the_order_of_the_exemplars_does_not_matter() -> None:
    embeddings, of, ids, groups = arrays({number: number % 3 for number in range(15)})
    order = np.random.default_rng(0).permutation(len(of))
    first = fit_reidentification(sample_exemplars(embeddings, of, ids, groups))
    second = fit_reidentification(sample_exemplars(embeddings[order], of[order], ids[order], groups[order]))
    assert first is not None
    assert second is not None
    tracks = np.concatenate([views(3, seed=1), views(77)])
    starts = np.array([0, 4])
    np.testing.assert_allclose(
        first.probabilities(tracks, starts, 3), second.probabilities(tracks, starts, 3), atol=1e-6
    )
