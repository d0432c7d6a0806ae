"""Labels from their names, with a tiny CLIP and with vectors whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ml_backend.core.settings import Settings
from ml_backend.core.types import FloatArray
from ml_backend.embeddings.clip import ClipEmbedder
from ml_backend.label_studio.label_config import LabelSpec, parse_label_config
from ml_backend.labeling.zero_shot import OTHERS, TEMPERATURES, TEMPLATES, ZeroShot, clip_prompts, discount_undetected
from tests.model_builders import make_tiny_clip


def unit(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def toy(scale: float = 20.0, *, temperature: float = 1.0) -> ZeroShot:
    """Labels a, b, c are axes of space; so is, twice, what is none of them."""
    axes = np.eye(5, dtype=np.float32)
    return ZeroShot(("a", "b", "c"), axes[:3], axes[3:], scale, temperature)


def view(*weights: float) -> FloatArray:
    """One view, so much like each axis."""
    row = np.zeros((1, 5), np.float32)
    row[0, : len(weights)] = weights
    return unit(row)


def config_labels(attributes: str) -> tuple[LabelSpec, ...]:
    xml = (
        f'<View><Labels name="label" toName="video"><Label {attributes}/></Labels><Video name="video" value="$video"/>'
        '<VideoRectangle name="box" toName="video"/></View>'
    )
    return parse_label_config(xml).video_controls[0].labels


# -- prompts


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("person", "person"),
        ("fallen_person", "fallen person"),
        ("first-responder", "first responder"),
        ("  traffic__light - red ", "traffic light red"),
        ("Fußgänger", "Fußgänger"),
        ("a {0} %s", "a {0} %s"),
    ],
)
def test_prompts_from_a_name(name: str, readable: str) -> None:
    prompts = clip_prompts(LabelSpec(name))
    assert len(prompts) == len(TEMPLATES) > 1
    assert prompts[0] == f"a photo of a {readable}."
    assert all(f" {readable}" in prompt for prompt in prompts)


@pytest.mark.parametrize("attribute", ["prompt", "PROMPT", "clip_prompt", "Clip_Prompt"])
def test_prompts_of_the_config_come_first(attribute: str) -> None:
    (label,) = config_labels(f'value="fallen" {attribute}=" a person lying on the ground |someone who fell|| "')
    assert clip_prompts(label) == ("a person lying on the ground", "someone who fell")


@pytest.mark.parametrize("text", ["", "   ", "|", " | | "])
def test_an_empty_prompt_is_none(text: str) -> None:
    (label,) = config_labels(f'value="fallen" clip_prompt="{text}"')
    assert clip_prompts(label) == clip_prompts(LabelSpec("fallen"))


# -- probabilities


@hypothesis_settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5), min_size=1, max_size=6).filter(
        lambda rows: all(np.linalg.norm(row) > 0.1 for row in rows)
    ),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_probabilities_add_up_below_one(rows: list[list[float]], temperature: float) -> None:
    chances = toy(10.0, temperature=temperature).probabilities(unit(np.array(rows, np.float32)))
    assert list(chances) == ["a", "b", "c"]
    assert all(0 < chance < 1 for chance in chances.values())
    assert sum(chances.values()) < 1


def test_probabilities_are_the_softmax_of_the_mean() -> None:
    embeddings = np.concatenate([view(1.0), view(0.0, 1.0)])
    chances = toy(4.0).probabilities(embeddings)
    logits = 4.0 * np.array([0.5, 0.5, 0.0, 0.0])  # the last one: none of the labels, its likeliest prompt
    softmax = np.exp(logits) / np.exp(logits).sum()
    assert list(chances.values()) == pytest.approx(softmax[:3].tolist())


def test_what_is_none_of_the_labels_gets_little() -> None:
    nothing = toy().probabilities(view(0.0, 0.0, 0.0, 1.0))
    assert sum(nothing.values()) < 0.01
    assert toy().probabilities(view(0.0, 0.0, 0.0, 0.0, 1.0)) == nothing  # any of the others counts
    assert toy().probabilities(view(0.0, 1.0))["b"] > 0.99


def test_a_single_label_can_be_refused() -> None:
    one = ZeroShot(("a",), np.eye(3, dtype=np.float32)[:1], np.eye(3, dtype=np.float32)[1:], 20.0)
    assert one.probabilities(np.float32([[1, 0, 0]]))["a"] > 0.99
    assert one.probabilities(np.float32([[0, 0, 1]]))["a"] < 0.01


@pytest.mark.parametrize("shape", [(0, 5), (5,), (1, 4), (1, 6), (1, 1, 5)])
def test_views_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected embeddings of shape \(m >= 1, 5\)"):
        toy().probabilities(np.zeros(shape, np.float32))


# -- temperature


def chance_of(zero_shot: ZeroShot, label: str, embeddings: FloatArray) -> float:
    return zero_shot.probabilities(embeddings)[label]


RIGHT = [("a", view(1.0, 0.8)), ("b", view(0.8, 1.0)), ("c", view(0.7, 0.0, 1.0))] * 10
HALF_WRONG = [("a", view(1.0, 0.2)), ("b", view(1.0, 0.2))] * 10


def test_a_model_that_is_right_becomes_surer() -> None:
    surer = toy(5.0).calibrate(RIGHT)
    assert surer.temperature > 1.2
    assert chance_of(surer, "a", view(1.0, 0.8)) > chance_of(toy(5.0), "a", view(1.0, 0.8))


def test_a_model_that_is_often_wrong_becomes_less_sure() -> None:
    humbler = toy(20.0).calibrate(HALF_WRONG)
    assert humbler.temperature < 0.8
    assert 0.5 < chance_of(humbler, "a", view(1.0, 0.2)) < chance_of(toy(20.0), "a", view(1.0, 0.2))


def test_a_handful_of_objects_moves_it_only_a_little() -> None:
    few, many = toy(20.0).calibrate(HALF_WRONG[:2]), toy(20.0).calibrate(HALF_WRONG)
    assert many.temperature < few.temperature <= 1


def test_the_temperature_stays_within_its_bounds() -> None:
    low, high = float(TEMPERATURES.min()), float(TEMPERATURES.max())
    assert (low, high) == (pytest.approx(0.25), pytest.approx(4.0))
    assert toy(50.0).calibrate([("b", view(1.0))] * 500).temperature == pytest.approx(low)
    assert toy(0.5).calibrate(RIGHT * 50).temperature == pytest.approx(high)


def test_no_evidence_is_no_change() -> None:
    for objects in ([], [("unknown", view(1.0)), ("", view(1.0))]):
        assert toy().calibrate(objects).temperature == 1
    assert toy(20.0).calibrate([*HALF_WRONG, ("unknown", view(1.0))] * 2).temperature == pytest.approx(
        toy(20.0).calibrate(HALF_WRONG * 2).temperature
    )


def test_calibrating_again_begins_anew() -> None:
    once = toy(20.0).calibrate(HALF_WRONG)
    assert once.calibrate(HALF_WRONG).temperature == once.temperature
    assert once.labels == toy().labels
    assert once.logit_scale == 20.0


def test_the_best_label_does_not_depend_on_the_temperature() -> None:
    embeddings = view(0.5, 0.6, 0.1, 0.2)
    for temperature in (0.25, 1.0, 4.0):
        chances = toy(temperature=temperature).probabilities(embeddings)
        assert max(chances, key=lambda label: chances[label]) == "b"


# -- with the detector


def test_what_the_detector_knows_and_did_not_see_is_less_likely() -> None:
    before = {"person": 0.6, "car": 0.3, "fallen": 0.08}
    after = discount_undetected(before, {"car": 1.0}, ["person", "car"])
    assert after["person"] < before["person"]
    assert after["car"] > before["car"]
    assert after["fallen"] > before["fallen"]  # nobody but CLIP can tell
    assert after["person"] / after["car"] == pytest.approx(0.05 * 0.6 / 0.3)
    assert sum(after.values()) < 1


def test_the_detector_has_no_say_in_labels_that_it_does_not_know() -> None:
    chances = {"fallen": 0.7, "medic": 0.2}
    assert discount_undetected(chances, {"person": 1.0}, []) == pytest.approx(chances)
    assert discount_undetected(chances, {}, ["person"]) == pytest.approx(chances)


def test_the_floor() -> None:
    chances = {"person": 0.9}
    strict = discount_undetected(chances, {}, ["person"], floor=0.0)
    assert strict == {"person": 0.0}
    lenient = discount_undetected(chances, {}, ["person"], floor=0.5)
    assert lenient["person"] == pytest.approx(0.45 / 0.55)


def test_nothing_that_is_possible_stays_as_it_was() -> None:
    assert discount_undetected({"person": 1.0}, {}, ["person"], floor=0.0) == {"person": 1.0}
    assert discount_undetected({}, {}, []) == {}


@hypothesis_settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.001, 1), min_size=1),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1)),
    st.sets(st.sampled_from("abcd")),
)
def test_the_outcome_is_probabilities(weights: dict[str, float], shares: dict[str, float], known: set[str]) -> None:
    total = sum(weights.values()) * 1.1
    after = discount_undetected({name: w / total for name, w in weights.items()}, shares, sorted(known))
    assert after.keys() == weights.keys()
    assert all(0 <= chance <= 1 for chance in after.values())
    assert sum(after.values()) <= 1 + 1e-9


# -- with a real model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def clip(folder: Path, settings: Callable[..., Settings]) -> ClipEmbedder:
    return ClipEmbedder(folder, settings(device="cpu"))


def test_prompts_become_vectors(clip: ClipEmbedder) -> None:
    labels = (LabelSpec("fallen_person"), LabelSpec("medic", attrs={"clip_prompt": "a nurse|a doctor"}))
    made = ZeroShot.from_prompts(clip, labels)
    assert made.labels == ("fallen_person", "medic")
    assert made.text.shape == (2, clip.dim)
    assert made.text.dtype == np.float32
    assert np.linalg.norm(made.text, axis=1) == pytest.approx(np.ones(2), abs=1e-5)
    assert np.allclose(made.others, clip.embed_text(OTHERS), atol=1e-5)
    assert (made.logit_scale, made.temperature) == (clip.logit_scale, 1.0)
    assert np.allclose(made.text[1], unit(clip.embed_text(["a nurse", "a doctor"]).mean(axis=0)), atol=1e-5)


def test_of_several_labels_of_one_name_the_first_counts(clip: ClipEmbedder) -> None:
    first, second = LabelSpec("a", attrs={"clip_prompt": "one"}), LabelSpec("a", attrs={"clip_prompt": "two"})
    made = ZeroShot.from_prompts(clip, (first, LabelSpec("b"), second))
    assert made.labels == ("a", "b")
    assert np.allclose(made.text[0], clip.embed_text(["one"])[0], atol=1e-5)


def test_pictures_are_compared_with_labels(clip: ClipEmbedder) -> None:
    labels = tuple(LabelSpec(name) for name in ("person", "car", "dog"))
    made = ZeroShot.from_prompts(clip, labels)
    pictures = np.random.default_rng(0).integers(0, 255, (5, 40, 30, 3), np.uint8)
    embeddings = clip.embed(list(pictures))
    chances = made.probabilities(embeddings)
    assert sum(chances.values()) < 1
    similar = made.logit_scale * (embeddings @ made.text.T).mean(axis=0)
    none = made.logit_scale * (embeddings @ made.others.T).mean(axis=0).max()
    expected = np.exp(similar) / (np.exp(similar).sum() + np.exp(none))
    assert list(chances.values()) == pytest.approx(expected.tolist(), rel=1e-3)
    taught = made.calibrate([("car", embeddings[:2]), ("dog", embeddings[2:])])
    assert taught.temperature in TEMPERATURES
