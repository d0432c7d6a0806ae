"""What a bank decides, on made-up objects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.core.types import UNLABELLED
from ml_backend.labeling.few_shot.pattern_bank import Exemplars, PatternBank
from tests.labeling.few_shot.builders import D, direction, exemplars, shuffled, unit, views

NAMES = "abcd"


def objects(count: int, *, names: str = NAMES, per_object: int = 3, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """``count`` objects of each label."""
    return {
        name: [views(direction(ord(name)), per_object, 1000 * ord(name) + seed + i) for i in range(count)]
        for name in names
    }


def strangers(count: int, seed: int = 0) -> list[np.ndarray]:
    """Objects of looks that no label has."""
    return [views(direction(500 + seed + i), 3, seed + i) for i in range(count)]


def fresh(name: str, seed: int = 0) -> np.ndarray:
    return views(direction(ord(name)), 3, 77_000 + 100 * ord(name) + seed)


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_new_objects_get_their_label(count: int) -> None:
    bank = PatternBank.fit(exemplars(objects(count)))
    assert bank.labels == tuple(NAMES)
    for name in NAMES:
        verdict = bank.classify(fresh(name))
        assert (verdict.best, verdict.label) == (name, name)
        assert verdict.probability == verdict.probabilities[name] >= 0.5


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_objects_of_no_label_are_left_alone(count: int) -> None:
    bank = PatternBank.fit(exemplars(objects(count)))
    verdicts = [bank.classify(thing) for thing in strangers(40)]
    assert sum(verdict.label is None for verdict in verdicts) >= 38
    assert all(verdict.best in NAMES and verdict.probability < 0.9 for verdict in verdicts)


def test_the_nearest_exemplar_is_named() -> None:
    given_ = exemplars(objects(3))
    row = 4
    verdict = PatternBank.fit(given_).classify(given_.embeddings[row][None])
    assert verdict.nearest == given_.ids[row]
    assert verdict.similarity == pytest.approx(1.0, abs=1e-5)


def test_an_object_between_two_labels_gets_none() -> None:
    bank = PatternBank.fit(exemplars(objects(5)))
    between = unit(direction(ord("a")) + direction(ord("b")))[None]
    verdict = bank.classify(between)
    assert verdict.label is None
    assert {name for name, p in verdict.probabilities.items() if p > 0.05} <= {"a", "b"}


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_order_does_not_matter(seed: int, count: int) -> None:
    learned = exemplars({**objects(count), UNLABELLED: strangers(3)})
    one, other = PatternBank.fit(learned), PatternBank.fit(shuffled(learned, seed))
    thing = views(direction(ord(NAMES[seed % 4])), 3, seed)
    assert one.classify(thing) == other.classify(thing)
    assert one.thresholds == other.thresholds
    assert one.safe_thresholds == other.safe_thresholds
    assert one.clusters == other.clusters


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*NAMES, UNLABELLED]), st.lists(st.integers(1, 4), min_size=1, max_size=4), max_size=5
    ),
    st.floats(0, 2),
    st.integers(0, 99),
)
def test_whatever_was_annotated_probabilities_are_some(sizes: dict[str, list[int]], spread: float, seed: int) -> None:
    learned = exemplars(
        {
            name: [views(direction(i), size, seed + i, spread, spread / 3) for i, size in enumerate(each)]
            for name, each in sizes.items()
        }
    )
    bank = PatternBank.fit(learned)
    verdict = bank.classify(views(direction(0), 2, seed + 50, spread))
    assert set(verdict.probabilities) == set(bank.labels) == set(sizes) - {UNLABELLED}
    assert all(0 <= p <= 1 for p in verdict.probabilities.values())
    assert sum(verdict.probabilities.values()) <= 1 + 1e-9
    assert all(-1 <= bank.thresholds[name] <= 1 for name in bank.labels)
    assert (verdict.nearest is None) == (not bank.labels)


@pytest.mark.parametrize("as_objects", [True, False])
def test_copies_of_a_view_change_nothing(as_objects: bool) -> None:
    plain = objects(3)
    copies = {name: list(things) for name, things in plain.items()}
    if as_objects:  # the same picture annotated again and again
        copies["a"] += [plain["a"][0][:1]] * 300
    else:  # a parked car, annotated in every frame
        copies["a"][0] = np.concatenate([plain["a"][0], plain["a"][0][:1].repeat(300, axis=0)])
    one, other = PatternBank.fit(exemplars(plain)), PatternBank.fit(exemplars(copies))
    for name in NAMES:
        a, b = one.classify(fresh(name)), other.classify(fresh(name))
        assert a.label == b.label == name
        assert b.probability == pytest.approx(a.probability, abs=0.02)


def test_one_exemplar_stands_against_hundreds() -> None:
    learned = {**objects(300, names="a", per_object=1), **objects(1, names="b", per_object=1)}
    bank = PatternBank.fit(exemplars(learned))
    assert [bank.classify(fresh("b", i)).best for i in range(10)] == ["b"] * 10
    assert [bank.classify(fresh("a", i)).label for i in range(10)] == ["a"] * 10


def test_only_labels_of_the_present_config_compete() -> None:
    bank = PatternBank.fit(exemplars(objects(5)))
    verdict = bank.classify(fresh("a"), allowed=["b", "c", "new"])
    assert set(verdict.probabilities) == {"b", "c"}
    assert verdict.label is None
    assert bank.classify(fresh("b"), allowed={"b", "c"}).label == "b"
    nothing = bank.classify(fresh("a"), allowed=[])
    assert (nothing.best, nothing.label, nothing.nearest, nothing.probabilities) == (None, None, None, {})


def test_a_label_without_exemplars_is_gone() -> None:
    learned = objects(4)
    del learned["d"]
    bank = PatternBank.fit(exemplars(learned))
    assert (
        bank.labels == tuple(bank.clusters) == tuple(bank.thresholds) == tuple(bank.safe_thresholds) == ("a", "b", "c")
    )
    assert bank.classify(fresh("d")).label is None


def test_a_single_picture_accepts_what_is_almost_a_copy_only() -> None:
    bank = PatternBank.fit(exemplars({"a": [direction(1)[None]]}))
    assert bank.classify(unit(direction(1) + 0.05 * direction(2))[None]).label == "a"
    assert bank.classify(unit(direction(1) + 2 * direction(2))[None]).label is None


def test_the_spread_of_one_object_says_how_far_its_label_reaches() -> None:
    thing = unit(direction(1) + 0.6 * direction(2))[None]
    narrow = PatternBank.fit(exemplars({"a": [views(direction(1), 6, 1, spread=0, own=0.2)]}))
    wide = PatternBank.fit(exemplars({"a": [views(direction(1), 6, 1, spread=0, own=0.8)]}))
    assert narrow.thresholds["a"] > wide.thresholds["a"]
    assert narrow.classify(thing).probability < wide.classify(thing).probability


def test_background_tightens() -> None:
    look = direction(ord("a"))
    near = [views(unit(look + 0.9 * direction(600)), 3, 40 + i, spread=0.3) for i in range(8)]
    thing = views(unit(look + 0.9 * direction(600)), 3, 99, spread=0.3)
    learned = {"a": [views(look, 4, 3, own=0.7)]}
    without = PatternBank.fit(exemplars(learned))
    told = PatternBank.fit(exemplars({**learned, UNLABELLED: near}))
    assert without.classify(thing).label == "a"
    assert told.classify(thing).label is None
    assert told.classify(fresh("a")).label == "a"


@pytest.mark.parametrize("missed", [4, 12])
def test_background_that_holds_objects_of_a_label_does_not_silence_it(missed: int) -> None:
    hidden = [fresh("a", 500 + i) for i in range(missed)]
    bank = PatternBank.fit(exemplars({**objects(6), UNLABELLED: strangers(12) + hidden}))
    labels = [bank.classify(fresh("a", i)).label for i in range(20)]
    assert labels.count("a") >= 16
    assert set(labels) <= {"a", None}


def test_background_that_is_one_of_the_objects_does_not_let_strangers_in() -> None:
    """One person, annotated in one task and left out in another."""
    look = direction(901, 384)
    taught = [views(look, 4, seed, spread=0.8) for seed in (1, 2)]
    bank = PatternBank.fit(exemplars({"a": taught, UNLABELLED: [views(look, 5, 1, spread=0.8)[4:]]}))
    assert [bank.classify(direction(500 + i, 384)[None]).label for i in range(40)].count("a") <= 2


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_strangers_are_told_from_two_labels_of_one_picture_each(names: str) -> None:
    """What is left out when there is little else looks stranger than strangers do."""
    d, hits, strange = 384, 0, 0
    for seed in range(10):
        common, looks = direction(700 + seed, d), [direction(100 * seed + i, d) for i in range(13)]
        # Cosines of .4 between any two objects, as of crops of one video.
        things = [views(unit(0.4**0.5 * common + 0.6**0.5 * look), 4, i, 0, 0.4) for i, look in enumerate(looks)]
        bank = PatternBank.fit(exemplars({name: [things[i][:1]] for i, name in enumerate(names)}))
        hits += sum(bank.classify(things[i][1:]).label == name for i, name in enumerate(names))
        strange += sum(bank.classify(thing).label is not None for thing in things[3:])
    assert hits == 10 * len(names)
    assert strange <= 5


def test_two_looks_of_one_label_are_both_known() -> None:
    mixed = [views(direction(look), 3, 10 * look + i) for look in (901, 902) for i in range(4)]
    bank = PatternBank.fit(exemplars({**objects(4, names="ab"), "mixed": mixed}))
    assert bank.clusters["mixed"] == 2
    assert [bank.classify(views(direction(look), 3, 5000 + look)).label for look in (901, 902)] == ["mixed", "mixed"]


def test_rank_puts_the_label_first_and_knows_what_is_safe() -> None:
    bank = PatternBank.fit(exemplars({**objects(12), UNLABELLED: strangers(10)}))
    tracks = [fresh("b", 1), *strangers(10, seed=300), fresh("a", 2), fresh("b", 3)]
    scores = bank.rank("b", tracks)
    assert scores.shape == (13,)
    assert set(np.argsort(-scores)[:2].tolist()) == {0, 12}
    assert (scores >= bank.safe_thresholds["b"]).nonzero()[0].tolist() == [0, 12]
    for track, score in zip(tracks, scores, strict=True):
        assert score == pytest.approx(bank.classify(track).probabilities["b"], abs=1e-5)
    assert bank.rank("b", []).shape == (0,)
    with pytest.raises(ValueError, match="'z'"):
        bank.rank("z", tracks)


def test_nothing_is_safe_after_one_exemplar() -> None:
    bank = PatternBank.fit(exemplars(objects(1, per_object=1)))
    assert (bank.rank("a", [fresh("a", i) for i in range(10)]) < bank.safe_thresholds["a"]).all()


@pytest.mark.parametrize("learned", [{}, {UNLABELLED: strangers(2)}], ids=["nothing", "background only"])
def test_without_labels_nothing_is_recognised(learned: dict[str, list[np.ndarray]]) -> None:
    bank = PatternBank.fit(exemplars(learned))
    assert bank.labels == ()
    assert bank.classify(fresh("a")).best is None


def test_wrong_input_is_refused() -> None:
    bank = PatternBank.fit(exemplars(objects(1)))
    with pytest.raises(ValueError, match=rf"{D}\), got \(2, 7\)"):
        bank.classify(np.ones((2, 7), np.float32))
    with pytest.raises(ValueError, match=r"got \(0, "):
        bank.classify(np.zeros((0, D), np.float32))
    broken = fresh("a")
    broken[1, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        bank.classify(broken)
    with pytest.raises(ValueError, match="finite"):
        bank.rank("a", [fresh("a"), broken])
    with pytest.raises(ValueError, match="finite"):
        exemplars({"a": [broken]})
    with pytest.raises(ValueError, match=r"groups of shape \(1,\), got \(2,\)"):
        Exemplars(np.zeros(1, np.int64), np.ones((1, 4), np.float32), ("a",), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="expected 1 classes, got 2"):
        Exemplars(np.zeros(1, np.int64), np.ones((1, 4), np.float32), ("a",), np.zeros(1, np.int64), ("x", "y"))


# -- classes of the detector


def test_labels_that_do_not_reach_a_track_are_out_of_the_question() -> None:
    bank = PatternBank.fit(exemplars(objects(3)))
    plain, limited = bank.classify(fresh("a")), bank.classify(fresh("a"), unreached=["a"])
    assert plain.label == "a"
    assert limited.label is None
    assert limited.best != "a"
    assert limited.probabilities["a"] == 0
    assert set(limited.probabilities) == set(NAMES)
    nothing = bank.classify(fresh("a"), ["a"], ["a"])
    assert (nothing.label, nothing.best, nothing.probabilities) == (None, None, {"a": 0.0})


def test_a_bank_knows_the_classes_of_its_objects() -> None:
    given_ = exemplars({"a": [fresh("a", n) for n in range(3)], "b": [fresh("b")], UNLABELLED: strangers(2)})
    classes = tuple({"a": "person", "b": "", UNLABELLED: "dog"}[label] for label in given_.labels)
    bank = PatternBank.fit(replace(given_, classes=classes))
    assert bank.taught.classes == {"a": {"person"}, "b": frozenset()}
    assert bank.taught.bound == {"a"}
    assert PatternBank.fit(given_).taught.bound == frozenset()


def test_labels_of_other_classes_do_not_make_a_label_more_careful() -> None:
    """Nobody asks whether a car is a lifeguard, so that cars that look alike are no reason to doubt one."""
    near = unit(direction(ord("a")) + 0.5 * direction(ord("b")))
    learned = exemplars({**objects(5, names="ac"), "b": [views(near, 3, 900 + n) for n in range(5)]})
    told = replace(learned, classes=tuple("car" if label == "b" else "person" for label in learned.labels))
    plain, with_classes = PatternBank.fit(learned), PatternBank.fit(told)
    for seed in range(5):
        before, after = (bank.classify(fresh("a", seed), None, ["b"]) for bank in (plain, with_classes))
        assert after.probabilities["a"] > before.probabilities["a"]


# -- exemplars that contradict their label


def with_a_mistake(count: int, mistakes: int = 1) -> Exemplars:
    """``count`` objects of each label, and as many of ``b`` that were labelled ``a``."""
    given_ = objects(count)
    return exemplars({**given_, "a": [*given_["a"], *(fresh("b", 50 + n) for n in range(mistakes))]})


@pytest.mark.parametrize("count", [3, 10])
def test_an_object_that_was_labelled_by_mistake_is_suspicious(count: int) -> None:
    given_ = with_a_mistake(count)
    bank = PatternBank.fit(given_)
    wrong = {int(i) for i, group in zip(given_.ids, given_.groups, strict=True) if group == count}
    assert bank.suspicious == wrong
    assert PatternBank.fit(exemplars(objects(count))).suspicious == frozenset()


def test_it_counts_less() -> None:
    """Other objects like it keep their own label."""
    taken = 0.0
    for seed in range(10):
        match = PatternBank.fit(with_a_mistake(4)).classify(fresh("b", seed))
        assert match.best == "b"
        taken += match.probabilities["a"]
    assert taken / 10 < 0.1


def test_few_objects_cannot_tell_a_mistake_from_another_appearance() -> None:
    assert PatternBank.fit(with_a_mistake(1)).suspicious == frozenset()
    alone = exemplars({"a": [*objects(4)["a"], fresh("b")]})
    assert PatternBank.fit(alone).suspicious == frozenset()
