"""Who gives a track its label, and what the region says of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ml_backend.core.settings import Settings
from ml_backend.core.types import UNLABELLED
from ml_backend.detectors.weights import MOTION
from ml_backend.embeddings.crop_embeddings import MemoryCropEmbeddings, embed_tracks
from ml_backend.inference.pipeline import detect_tracks, predict_video
from ml_backend.label_studio.label_config import VideoControl, parse_label_config
from ml_backend.label_studio.regions import make_region
from ml_backend.labeling.few_shot.pattern_bank import NOTHING, PatternMatch
from ml_backend.labeling.label_assignment import (
    ACCEPT_TEXT,
    DetectorLabels,
    LabelDecision,
    LabelledTracks,
    LabelScores,
    decide_label,
    label_tracks,
)
from ml_backend.tracking.track_record import TrackRecord, TrackSet
from tests.builders import label_config, make_clip

NAMES = ("person", "chair", "car")


def control(*labels: str, **predicted: str) -> VideoControl:
    return parse_label_config(label_config(*labels, predicted=predicted)).video_controls[0]


def make_record(track_id: int = 1, **changes: Any) -> TrackRecord:
    key = {"frame": 1, "enabled": True, "x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "time": 0.04}
    value = {"framesCount": 50, "duration": 2.0, "sequence": [key]}
    return replace(TrackRecord(track_id, 0, 50, 0.625, {"person": 5.0}, value, ()), **changes)


def make_set(*records: TrackRecord, agnostic: bool = False) -> TrackSet:
    return TrackSet(records, ("object",) if agnostic else NAMES, agnostic, 640, 360, 50)


def verdict(label: str | None, probability: float = 0.8, *, best: str = "", others: Sequence[str] = ()) -> PatternMatch:
    """The bank's: ``label``, or ``None`` with what would have been ``best``."""
    name = best or label or ""
    probabilities = {name: probability, **dict.fromkeys(others, 0.01)}
    return PatternMatch(label, probability, name, probabilities, 0.91234, 7)


NEAREST = {"label": "fallen", "task": 12, "region": "r1", "frame": 34}


# -- decide


def who(decision: LabelDecision | None) -> tuple[str, str, float] | None:
    if decision is None:
        return None
    return decision.meta.get("label_source", "detector"), decision.label, decision.label_score


DETECTOR = [None, "person", UNLABELLED]
PATTERNS = {
    "nobody": None,
    "nothing": NOTHING,
    "sure": verdict("fallen", 0.8),
    "abstains": verdict(None, 0.4, best="fallen"),
    "tie": verdict(None, 0.9, best="fallen", others=("medic",)),
}
TEXT: dict[str, Mapping[str, float]] = {
    "nobody": {},
    "sure": {"medic": 0.7, "fallen": 0.1},
    "surer": {"medic": 0.85},
    "unsure": {"medic": 0.45, "fallen": 0.2},
    "of the taught": {"fallen": 0.99},
}


def expected(detector: str | None, patterns: str, text: str) -> tuple[str, str, float] | None:
    """What the rules say: patterns, then names of labels without exemplars, then the detector."""
    taught = {"sure": {"fallen"}, "abstains": {"fallen"}, "tie": {"fallen", "medic"}}.get(patterns, set())
    named = max(((p, label) for label, p in TEXT[text].items() if label not in taught), default=(0.0, ""))
    if named[0] >= ACCEPT_TEXT and (patterns != "sure" or named[0] > 0.8):
        return "text", named[1], named[0]
    if patterns == "sure":
        return "patterns", "fallen", 0.8
    return None if detector is None else ("detector", detector, 1.0)


@pytest.mark.parametrize("detector", DETECTOR)
@pytest.mark.parametrize("patterns", PATTERNS)
@pytest.mark.parametrize("text", TEXT)
def test_who_decides(detector: str | None, patterns: str, text: str) -> None:
    opinion = LabelScores(PATTERNS[patterns], NEAREST if PATTERNS[patterns] else None, TEXT[text])
    decision = decide_label(make_record(), detector, opinion)
    assert who(decision) == expected(detector, patterns, text)
    if decision is None:
        return
    asked = patterns not in ("nobody", "nothing") or text != "nobody"
    assert ("label_source" in decision.meta) == asked
    assert json.loads(json.dumps(decision.meta)) == decision.meta
    assert decision.meta["detector_score"] == 0.625
    assert decision.meta["label_score"] == decision.label_score
    if asked:
        assert decision.meta["detector_label"] == (detector or "")
    assert ("pattern_label" in decision.meta) == (patterns not in ("nobody", "nothing"))
    assert ("text_label" in decision.meta) == (text != "nobody")


def test_examples_win_over_the_detector() -> None:
    decision = decide_label(make_record(), "person", LabelScores(verdict("fallen", 0.51), NEAREST))
    assert who(decision) == ("patterns", "fallen", 0.51)


def test_an_equally_sure_name_does_not_win_over_examples() -> None:
    for text, source in ((0.8, "patterns"), (0.81, "text")):
        decision = decide_label(make_record(), "person", LabelScores(verdict("fallen", 0.8), NEAREST, {"medic": text}))
        assert decision is not None
        assert decision.meta["label_source"] == source


@pytest.mark.parametrize(("chance", "label"), [(ACCEPT_TEXT, "medic"), (ACCEPT_TEXT - 0.001, "person")])
def test_a_name_is_believed_from_one_half_on(chance: float, label: str) -> None:
    decision = decide_label(make_record(), "person", LabelScores(text={"medic": chance, "person": 0.2}))
    assert decision is not None
    assert decision.label == label


def test_the_likeliest_name_counts() -> None:
    decision = decide_label(make_record(), None, LabelScores(text={"a": 0.1, "b": 0.6, "c": 0.3}))
    assert who(decision) == ("text", "b", 0.6)


def test_a_name_of_a_label_with_exemplars_is_left_to_them() -> None:
    opinion = LabelScores(verdict(None, 0.3, best="fallen", others=("medic",)), NEAREST, {"fallen": 0.9, "medic": 0.05})
    decision = decide_label(make_record(), "person", opinion)
    assert who(decision) == ("detector", "person", 1.0)
    assert decision is not None
    assert decision.meta["text_label"] == ""
    assert decision.meta["text_score"] == 0


# -- what a region says


def test_what_examples_say() -> None:
    decision = decide_label(make_record(), "person", LabelScores(verdict("fallen", 0.81239), NEAREST, {"medic": 0.25}))
    assert decision is not None
    assert decision.meta == {
        "label_source": "patterns",
        "detector_label": "person",
        "detector_score": 0.625,
        "label_score": 0.8124,
        "pattern_label": "fallen",
        "pattern_score": 0.8124,
        "nearest_exemplar": {"label": "fallen", "task": 12, "region": "r1", "frame": 34, "similarity": 0.9123},
        "text_label": "medic",
        "text_score": 0.25,
        "text": "fallen (0.81) from examples; like task 12, frame 34 (similarity 0.91); text: medic 0.25; "
        "detector: person 0.62",
    }


def test_what_an_imported_example_says() -> None:
    nearest = {"label": "fallen", "origin": "bank-1f"}
    decision = decide_label(make_record(), None, LabelScores(verdict("fallen"), nearest))
    assert decision is not None
    assert decision.meta["nearest_exemplar"] == {**nearest, "similarity": 0.9123}
    assert decision.meta["text"] == (
        "fallen (0.80) from examples; like bank-1f (similarity 0.91); detector: person 0.62"
    )


def test_what_a_name_says() -> None:
    decision = decide_label(make_record(), None, LabelScores(verdict("fallen", 0.55), NEAREST, {"medic": 0.9}))
    assert decision is not None
    assert decision.meta["label_source"] == "text"
    assert decision.meta["text"] == ("medic (0.90) from the label's name; patterns: fallen 0.55; detector: person 0.62")


def test_what_the_detector_says_where_others_were_asked() -> None:
    abstains = LabelScores(verdict(None, 0.4, best="fallen"), NEAREST, {"medic": 0.3})
    for label, named in (("person", "person"), (UNLABELLED, "no label")):
        decision = decide_label(make_record(), label, abstains)
        assert decision is not None
        assert decision.meta["label_source"] == "detector"
        assert decision.meta["text"] == (
            f"{named} (1.00) from the detector; patterns: fallen 0.40; text: medic 0.30; detector: person 0.62"
        )


def test_the_detector_alone_says_how_sure_it_is() -> None:
    decision = decide_label(make_record(), "person", LabelScores(), 0.75)
    assert decision == LabelDecision("person", 0.625, 0.75, {"detector_score": 0.625, "label_score": 0.75})
    assert decide_label(make_record(), None, LabelScores()) is None


@pytest.mark.parametrize(("probabilities", "score"), [({}, 0.5), ({"vest": 0.0}, 0.5), ({"vest": 0.9}, 0.9)])
def test_what_is_found_by_text_is_as_certain_as_people_have_taught(
    probabilities: dict[str, float], score: float
) -> None:
    abstains = LabelScores(replace(verdict("vest", 0.9), label=None, probabilities=probabilities), NEAREST)
    record = make_record(score=0.5)
    decision = decide_label(record, "vest", abstains, found_by_text=True)
    assert decision
    assert (decision.label, decision.score, decision.meta["detector_score"]) == ("vest", score, 0.5)
    by_detector = decide_label(record, "vest", abstains)
    assert by_detector
    assert by_detector.score == 0.5


def test_the_class_that_is_named_is_the_detector_s() -> None:
    """Not the label that the class is mapped to."""
    record = make_record(class_scores={"car": 3.0, "person": 1.0})
    decision = decide_label(record, "Vehicle", LabelScores(verdict("fallen", 0.8), NEAREST))
    assert decision is not None
    assert decision.meta["detector_label"] == "Vehicle"
    assert decision.meta["text"].endswith("; detector: car 0.62")


@pytest.mark.parametrize(("exists", "labelled", "score"), [(0.9, 0.6, 0.6), (0.5, 0.95, 0.5), (0.7, 0.7, 0.7)])
def test_a_region_is_as_sure_as_the_less_sure_of_existence_and_label(
    exists: float, labelled: float, score: float
) -> None:
    decision = decide_label(make_record(score=exists), "person", LabelScores(verdict("fallen", labelled), NEAREST))
    assert decision is not None
    assert (decision.detector_score, decision.label_score, decision.score) == (exists, labelled, score)
    region = make_region(make_record().value, control("fallen"), 1, "fallen", decision.score, "person", decision.meta)
    assert (region["score"], region["meta"]["detector_score"], region["meta"]["label_score"]) == (
        score,
        exists,
        labelled,
    )


def test_region_ids_do_not_depend_on_why() -> None:
    record = make_record()
    regions = [
        make_region(record.value, control("person"), 1, "person", 0.5, "person", why)
        for why in (None, {}, {"label_source": "detector"}, {"nearest_exemplar": {"task": 5}, "text": "x"})
    ]
    assert len({region["id"] for region in regions}) == 1
    assert regions[0]["meta"] == regions[1]["meta"] == {"original_class": "person"}
    assert regions[2]["meta"] == {"original_class": "person", "label_source": "detector"}
    others = [
        make_region(record.value, control("person"), 2, "person", 0.5, "person"),
        make_region(record.value, control("person"), 1, "chair", 0.5, "person"),
    ]
    assert len({region["id"] for region in [*others, regions[0]]}) == 3


# -- all tracks of a video


def refuse() -> NoReturn:
    raise AssertionError("the video is opened")


@dataclass
class Thinks:
    """Has an opinion on each track, by its id."""

    opinions_by_id: Mapping[int, LabelScores]

    def label_scores(self, tracks: TrackSet, *_: Any) -> list[LabelScores]:
        return [self.opinions_by_id.get(record.track_id, LabelScores()) for record in tracks.tracks]


def label(tracks: TrackSet, where: VideoControl, opinions: Mapping[int, LabelScores] | None = None) -> LabelledTracks:
    hybrid: Any = None if opinions is None else Thinks(opinions)
    return label_tracks(tracks, where, hybrid, MemoryCropEmbeddings(), refuse)


def labels_of(labelled: LabelledTracks) -> list[list[str]]:
    return [region["value"]["labels"] for region in labelled.regions]


SCORES: list[dict[str, float]] = [
    {"person": 3.0, "car": 2.0},
    {"car": 1.0},
    {"chair": 4.0, "person": 1.0},
    {},
    {"person": 1.0, "chair": 1.0},
]


def test_without_others_the_detector_labels() -> None:
    where = control("person", "vehicle", vehicle="car")
    tracks = make_set(*(make_record(number, class_scores=scores) for number, scores in enumerate(SCORES)))
    detector = DetectorLabels(where, NAMES, class_agnostic=False)
    labelled = label(tracks, where)
    expected = [found for scores in SCORES if (found := detector(scores)) is not None]
    assert labels_of(labelled) == [[name] for name in expected] == [["person"], ["vehicle"]]
    assert [record.track_id for record, _ in labelled.kept] == [0, 1]
    assert [(decision.label, decision.label_score) for _, decision in labelled.kept] == [
        ("person", 0.6),
        ("vehicle", 1),
    ]
    assert [region["score"] for region in labelled.regions] == [0.6, 0.625]
    assert dict(labelled.unmapped) == {"chair": 2, "object": 1}
    assert [region["meta"] for region in labelled.regions] == [
        {"original_class": "person", "detector_score": 0.625, "label_score": 0.6},
        {"original_class": "car", "detector_score": 0.625, "label_score": 1.0},
    ]
    assert labelled.regions == label(tracks, where, {}).regions  # nobody has an opinion: the same, byte for byte


@pytest.mark.parametrize(
    ("where", "classes"),
    [
        (control("first_responder", "person", first_responder="person"), ("first_responder", "person")),
        (control("vehicle", "car", vehicle="car,truck"), ("vehicle", "car")),
    ],
)
def test_a_trained_detector_means_the_labels_that_its_classes_are_named_after(
    where: VideoControl, classes: tuple[str, ...]
) -> None:
    records = [make_record(number, class_scores={name: 1.0}) for number, name in enumerate(classes)]
    tracks = replace(make_set(*records), class_names=classes)
    labelled = label_tracks(tracks, where, None, MemoryCropEmbeddings(), refuse, trained=True)
    assert labels_of(labelled) == [[name] for name in classes]
    assert labels_of(label(tracks, where)) == [[classes[0]]] * 2, "of another detector predicted_values come first"


def test_a_trained_detector_knows_labels_that_were_renamed() -> None:
    detector = DetectorLabels(control("helper", "person", helper="medic"), ("medic", "Person"), False, trained=True)
    assert (detector({"medic": 1.0}), detector({"Person": 1.0})) == ("helper", "person")


def test_what_nobody_has_taught_is_not_known() -> None:
    where = control("helper", "person", "car", helper="medic")
    classes = ("medic", "person", "car")
    taught = frozenset({"medic", "car"})
    assert DetectorLabels(where, classes, False, trained=True, trained_classes=taught).trained_labels == (
        "helper",
        "car",
    )
    assert DetectorLabels(where, classes, False, trained=True).trained_labels == ("helper", "person", "car")


def test_no_tracks() -> None:
    for opinions in (None, {}):
        labelled = label(make_set(), control("person"), opinions)
        assert (labelled.regions, labelled.kept, dict(labelled.unmapped)) == ([], [], {})


def test_a_class_without_label_can_still_get_a_learned_one() -> None:
    tracks = make_set(*(make_record(number, class_scores={"chair": 2.0}) for number in range(3)))
    opinions = {0: LabelScores(verdict("throne"), NEAREST), 1: LabelScores(text={"throne": 0.7})}
    labelled = label(tracks, control("person", "throne"), opinions)
    assert labels_of(labelled) == [["throne"], ["throne"]]
    assert [region["meta"]["label_score"] for region in labelled.regions] == [0.8, 0.7]
    assert [region["meta"]["label_source"] for region in labelled.regions] == ["patterns", "text"]
    assert all(region["meta"]["original_class"] == "chair" for region in labelled.regions)
    assert dict(labelled.unmapped) == {"chair": 1}


def test_what_only_moves_can_get_a_learned_label() -> None:
    records = [make_record(number, class_scores={"object": 3.0}) for number in range(3)]
    opinions = {1: LabelScores(verdict("fallen"), NEAREST), 2: LabelScores(verdict(None, 0.2, best="fallen"), NEAREST)}
    several = label(make_set(*records, agnostic=True), control("fallen", "medic"), opinions)
    assert labels_of(several) == [[], ["fallen"], []]
    assert "label_source" not in several.regions[0]["meta"]
    assert several.regions[2]["meta"]["label_source"] == "detector"
    one = label(make_set(*records, agnostic=True), control("fallen"), opinions)
    assert labels_of(one) == [["fallen"]] * 3
    assert not several.unmapped
    assert not one.unmapped


def test_regions_are_in_the_order_of_the_tracks_and_ids_are_their_own() -> None:
    tracks = make_set(*(make_record(number) for number in (5, 2, 9)))
    labelled = label(tracks, control("person"))
    assert [record.track_id for record, _ in labelled.kept] == [5, 2, 9]
    assert len({region["id"] for region in labelled.regions}) == 3


def test_a_changed_reason_alone_changes_no_id() -> None:
    tracks = make_set(make_record())
    ids = {
        label(tracks, control("person", "fallen"), {1: opinion}).regions[0]["id"]
        for opinion in (
            LabelScores(),
            LabelScores(verdict(None, 0.3, best="fallen"), NEAREST),
            LabelScores(verdict(None, 0.1, best="fallen"), {"origin": "x"}),
            LabelScores(text={"fallen": 0.2}),
        )
    }
    assert len(ids) == 1


def test_what_is_left_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    tracks = make_set(*(make_record(n, class_scores={"chair" if n else "car": 1.0}) for n in range(3)))
    with caplog.at_level("INFO", logger="ml_backend.labeling.label_assignment"):
        label(tracks, control("elephant"))
    assert "2 x chair, 1 x car" in caplog.text


@pytest.mark.slow
def test_motion_in_a_real_video(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    clip, values = make_clip(tmp_path / "a.mp4"), settings(detector="motion")
    tracks = detect_tracks(clip, 20, values, MOTION)
    assert tracks.class_agnostic
    for where in (control("thing"), control("a", "b")):
        assert label(tracks, where).regions == predict_video(clip, where, 20, values).regions
    learned = label(tracks, control("a", "b"), {tracks.tracks[0].track_id: LabelScores(verdict("b"), NEAREST)})
    assert labels_of(learned) == [["b"]]


# -- looks


def test_tracks_without_views_are_not_looked_at() -> None:
    tracks = make_set(make_record(1), make_record(2))
    wanted = [record.crops for record in tracks.tracks]
    found = embed_tracks(wanted, refuse, "m", MemoryCropEmbeddings(), lambda: nullcontext(Path()), 4)
    assert found == [[], []]
