"""Probabilities that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from ml_backend.labeling.few_shot.calibration import Evidence, fit_acceptance, fit_temperature, make_evidence


def evidence(genuine: np.ndarray, other: np.ndarray, background: int = 0, labels: int = 1) -> Evidence:
    """Rows of one object each; the last ``background`` of ``other`` are weak."""
    n = len(genuine) + len(other)
    weak = np.zeros(n, bool)
    weak[n - background :] = background > 0
    return make_evidence(
        np.concatenate([genuine, other]),
        np.repeat([True, False], [len(genuine), len(other)]),
        np.arange(n) % labels,
        np.ones(n),
        weak,
    )


ZERO = np.zeros(1, np.int64)


def test_probabilities_are_those_of_the_scores() -> None:
    rng = np.random.default_rng(0)
    # Two Gaussians of equal spread: the log odds are linear, 4 a unit, and even where the shares of 0.6 and 0.4 say.
    accept = fit_acceptance(evidence(rng.normal(2, 0.5, 4000), rng.normal(1, 0.5, 4000)), 1, 3.0)
    assert accept.slope == pytest.approx(4, rel=0.1)
    assert accept.thresholds[0] == pytest.approx(1.5 - np.log(0.6 / 0.4) / 4, abs=0.03)


def test_one_object_makes_nobody_certain() -> None:
    accept = fit_acceptance(evidence(np.array([0.9]), np.array([0.1])), 1, 1.0)
    few = float(accept(np.ones(1), ZERO)[0])
    more = fit_acceptance(evidence(np.full(50, 0.9), np.full(50, 0.1)), 1, 1.0)
    assert 0.5 < few <= 0.75
    assert float(more(np.ones(1), ZERO)[0]) > 0.95


def test_a_label_gets_a_threshold_of_its_own_as_far_as_its_objects_demand() -> None:
    def gap(count: int) -> float:
        easy = evidence(np.full(count, 0.9), np.full(count, 0.5))
        hard = easy.copy()
        hard["score"] -= 0.45
        hard["label"] += 1
        thresholds = fit_acceptance(np.concatenate([easy, hard]), 2, 1.0).thresholds
        return float(thresholds[0] - thresholds[1])

    assert 0 < gap(1) < gap(5) < gap(50)


def test_background_counts_only_as_far_as_genuine_exemplars_stay() -> None:
    rng = np.random.default_rng(1)
    genuine, other = rng.normal(0.8, 0.05, 20), rng.normal(0.2, 0.05, 20)
    plain = fit_acceptance(evidence(genuine, other), 1, 1.0)
    near = np.concatenate([other, rng.normal(0.55, 0.05, 20)])
    tighter = fit_acceptance(evidence(genuine, near, background=20), 1, 1.0)
    assert plain.thresholds[0] < tighter.thresholds[0] < 0.75
    # All of the background is what was looked for.
    same = np.concatenate([other, rng.normal(0.8, 0.05, 60)])
    kept = fit_acceptance(evidence(genuine, same, background=60), 1, 1.0)
    assert (kept(genuine, np.zeros(20, np.int64)) >= 0.5).mean() >= 0.8


@pytest.mark.parametrize("near", [0.6, 0.8, 0.95])
def test_background_as_near_as_exemplars_does_not_open_the_door(near: float) -> None:
    """A label's few objects are all that is known, and what was left out looks as much like them as they do."""
    plain = fit_acceptance(evidence(np.full(2, 0.6), np.zeros(0)), 1, 1.0)
    told = fit_acceptance(evidence(np.full(2, 0.6), np.full(1, near), background=1), 1, 1.0)
    assert told.thresholds[0] >= plain.thresholds[0]
    assert float(told(np.zeros(1), ZERO)[0]) < 0.4


def test_after_one_picture_background_says_how_far_it_reaches() -> None:
    """Nothing else does: what was assumed gives way, in both directions."""
    alone = fit_acceptance(evidence(np.zeros(0), np.zeros(0)), 1, 1.0).thresholds[0]
    far, near = (
        fit_acceptance(evidence(np.zeros(0), np.full(5, at), background=5), 1, 1.0).thresholds[0] for at in (0.2, 0.95)
    )
    assert 0.2 < far < alone < near < 1


def test_views_of_a_label_that_stands_alone_reach_no_further_than_strangers() -> None:
    """People among each other have a cosine of .58, and one of .32 to the street around them."""
    accept = fit_acceptance(evidence(np.full(2, 0.58), np.zeros(0)), 1, 1.0)
    assert 0.25 < accept.thresholds[0] < 0.58


def test_without_impostors_the_spread_decides() -> None:
    def reach(score: float) -> float:
        return 1 - float(fit_acceptance(evidence(np.full(4, score), np.zeros(0)), 1, 1.0).thresholds[0])

    assert 0 < reach(0.95) < reach(0.8) < 1
    assert reach(0.8) > 0.2
    nothing = fit_acceptance(evidence(np.zeros(0), np.zeros(0)), 1, 1.0)
    assert 0.7 < nothing.thresholds[0] < 0.9


def test_the_temperature_follows_the_confusion() -> None:
    rng = np.random.default_rng(2)
    own = rng.integers(3, size=300)
    clear = np.eye(3)[own] + rng.normal(0, 0.1, (300, 3))
    mixed = np.eye(3)[own] + rng.normal(0, 1.0, (300, 3))
    assert fit_temperature(clear, own, np.ones(300)) < fit_temperature(mixed, own, np.ones(300))


def test_the_temperature_ignores_what_cannot_be_compared() -> None:
    total = np.array([[1.0, 0.0], [np.nan, 1.0], [0.2, 0.9]])
    alone = fit_temperature(total[:1], np.array([0]), np.ones(1))
    assert fit_temperature(total[:2], np.array([0, 0]), np.ones(2)) == alone
    assert fit_temperature(total[1:2], np.array([0]), np.ones(1)) > 0
