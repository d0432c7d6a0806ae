"""What is thought of tracks beside the detector: with tiny real models, a real clip and a real database."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from ml_backend.core.errors import ConfigError, Interrupted, WeightsError
from ml_backend.core.settings import Mode, Settings
from ml_backend.core.types import UNLABELLED, FloatArray
from ml_backend.db.storage import Storage
from ml_backend.embeddings.crop_embeddings import CropEmbedding, CropEmbeddingStore, MemoryCropEmbeddings, embed_tracks
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK, CropBox
from ml_backend.embeddings.hub import ResolvedModel
from ml_backend.embeddings.loading import use_embedder
from ml_backend.label_studio.label_config import VideoControl, parse_label_config
from ml_backend.labeling.few_shot.digest import bank_digests
from ml_backend.labeling.few_shot.pattern_bank import Exemplars, PatternBank
from ml_backend.labeling.few_shot.pattern_store import NewExemplar, PatternStore
from ml_backend.labeling.label_assignment import DetectorLabels, LabelScores, label_tracks
from ml_backend.labeling.modes import ClassifierModels, classifier_models, mode_part, require_embedder
from ml_backend.labeling.track_classifier import TrackClassifier, TrackClassifierFactory, embeddings_by_object
from ml_backend.tracking.track_record import TrackRecord, TrackSet
from ml_backend.video.writer import VideoWriter
from tests.builders import label_config
from tests.model_builders import make_tiny_clip, make_tiny_dinov2

MakeSettings = Callable[..., Settings]
WIDTH, HEIGHT, FRAMES = 320, 240, 16


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_dinov2(tmp_path_factory.mktemp("models") / "dinov2")


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def make(settings: MakeSettings, dinov2: Path, clip_model: Path) -> MakeSettings:
    """Settings with the tiny models, on the CPU."""

    def build(**values: Any) -> Settings:
        given = {"dinov2_model": str(dinov2), "clip_model": str(clip_model), "device": "cpu"}
        return settings(**(given | values))

    return build


# -- which models


def kinds(models: ClassifierModels) -> tuple[str | None, str | None]:
    return tuple(model.kind if model else None for model in (models.embedder, models.clip))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("yolo", (None, None)),
        ("yolo_dinov2", ("dinov2", None)),
        ("yolo_clip", (None, "clip")),
        ("universal", ("dinov2", "clip")),
    ],
)
def test_models_of_each_mode(make: MakeSettings, mode: Mode, expected: tuple[str | None, str | None]) -> None:
    models = classifier_models(make(), mode)
    assert (models.mode, kinds(models), models.notes) == (mode, expected, ())
    assert len(models.ids) == sum(kind is not None for kind in expected)


def test_what_replaces_dinov2_is_noted(make: MakeSettings) -> None:
    values = make(dinov2_model="facebook/dinov2-base")
    for mode in ("yolo_dinov2", "universal"):
        models = classifier_models(values, mode)
        assert models.embedder is not None
        assert models.embedder.kind == "fallback"
        (note,) = models.notes
        assert "facebook/dinov2-base is not available" in note
        assert "DINOV2_MODEL" in note
    assert classifier_models(values, "yolo_clip").notes == ()
    assert classifier_models(make(embedder="fallback"), "yolo_dinov2").notes == ()  # it is what was asked for


def test_a_missing_clip_is_noted(make: MakeSettings) -> None:
    values = make(clip_model="someone/clip")
    for mode, ids in (("yolo_clip", 0), ("universal", 1)):
        models = classifier_models(values, mode)
        assert models.clip is None
        assert len(models.ids) == ids
        (note,) = models.notes
        assert "someone/clip is not available" in note
        assert "CLIP_MODEL" in note
    assert classifier_models(values, "yolo_dinov2").notes == ()


def test_a_configured_folder_that_is_not_there(make: MakeSettings, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(WeightsError, match="does not exist"):
        classifier_models(make(dinov2_model=missing), "universal")
    with pytest.raises(WeightsError, match="does not exist"):
        classifier_models(make(clip_model=missing), "yolo_clip")
    assert classifier_models(make(dinov2_model=missing, clip_model=missing), "yolo").ids == ()


def test_patterns_need_a_mode_that_has_them(make: MakeSettings) -> None:
    models = classifier_models(make(), "universal")
    assert require_embedder(models) == models.embedder
    for mode in ("yolo", "yolo_clip"):
        with pytest.raises(ConfigError, match=f"Mode {mode} learns no patterns") as failure:
            require_embedder(classifier_models(make(), mode))
        assert "universal" in failure.value.hint


# -- a mode's part of the version

EMBEDDER, CLIP = ResolvedModel("dinov2", "d", "dinov2-1"), ResolvedModel("clip", "c", "clip-1")
ALL = {
    "yolo": ClassifierModels("yolo"),
    "yolo_dinov2": ClassifierModels("yolo_dinov2", EMBEDDER),
    "yolo_clip": ClassifierModels("yolo_clip", None, CLIP),
    "universal": ClassifierModels("universal", EMBEDDER, CLIP),
    "universal without clip": ClassifierModels("universal", EMBEDDER),
}


@pytest.mark.parametrize("nothing", [{}, {"dinov2-1": "", "clip-1": ""}, {"dinov2-1": None, "clip-1": None}])
def test_the_mode_alone_while_labels_are_the_detector_s(nothing: dict[str, str | None]) -> None:
    for name in ("yolo", "yolo_dinov2", "universal without clip"):
        assert mode_part(ALL[name], nothing) == ALL[name].mode
    for name in ("yolo_clip", "universal"):  # CLIP gives labels without having learned any
        assert mode_part(ALL[name], nothing) == mode_part(ALL[name], {}) != name


def test_the_part_changes_with_what_matters() -> None:
    parts = {
        mode_part(models, digests)
        for models in ALL.values()
        for digests in ({"dinov2-1": "x", "clip-1": "y"}, {"dinov2-1": "z", "clip-1": "y"}, {"dinov2-1": "x"})
    }
    # yolo 1, yolo_dinov2 2, yolo_clip 2, universal 3, universal without CLIP 2
    assert len(parts) == 10
    other = replace(EMBEDDER, model_id="dinov2-2")
    assert mode_part(ClassifierModels("yolo_dinov2", other), {"dinov2-2": "x"}) not in parts
    other = replace(CLIP, model_id="clip-2")
    assert mode_part(ClassifierModels("yolo_clip", None, other), {"clip-2": "y"}) not in parts


def test_the_part_does_not_change_with_what_does_not() -> None:
    digests: dict[str, str | None] = {"dinov2-1": "x", "clip-1": "y"}
    for models in ALL.values():
        same = replace(models, notes=("a note",))
        assert mode_part(same, {**digests, "another": "z"}) == mode_part(models, digests)
        assert mode_part(models, dict(reversed(digests.items()))) == mode_part(models, digests)
    moved = replace(EMBEDDER, name="renamed", path=Path("/elsewhere"), note="x")
    assert mode_part(ClassifierModels("yolo_dinov2", moved), digests) == mode_part(ALL["yolo_dinov2"], digests)
    assert mode_part(ALL["yolo_dinov2"], {**digests, "clip-1": "other"}) == mode_part(ALL["yolo_dinov2"], digests)


def test_the_part_is_one_of_a_version() -> None:
    part = mode_part(ALL["universal"], {"dinov2-1": "x"})
    mode, digest = part.split("-")
    assert mode == "universal"
    assert len(digest) == 8
    assert "." not in part


# -- a clip with a red and a striped object

RED, STRIPES = (20.0, 20.0, 120.0, 100.0), (200.0, 140.0, 300.0, 220.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    image[:120, :160] = (20, 20, 220)
    image[120:, 160:] = np.tile(np.repeat([[0], [255]], 8, axis=0), (8, 3))[:120, None, :]
    with VideoWriter(path, WIDTH, HEIGHT, 8) as writer:
        for _ in range(FRAMES):
            writer.write(image)
    return path


def record(track_id: int, box: tuple[float, ...], *frames: int, **scores: float) -> TrackRecord:
    key = {"frame": 1, "enabled": True, "x": 0, "y": 0, "width": 9, "height": 9, "rotation": 0, "time": 0.1}
    value = {"framesCount": 16, "duration": 2.0, "sequence": [key]}
    crops = tuple(CropBox(frame, (box[0], box[1], box[2], box[3]), 0.9) for frame in frames)
    return TrackRecord(track_id, 0, FRAMES, 0.6, scores or {"person": 2.0, "chair": 2.0}, value, crops)


def make_set(*records: TrackRecord) -> TrackSet:
    return TrackSet(records, ("person", "chair"), False, WIDTH, HEIGHT, FRAMES)


TRACKS = make_set(record(1, RED, 0, 5, 9), record(2, STRIPES, 2, 7, 12), record(3, RED), record(4, STRIPES, 3))


def control(*labels: str) -> VideoControl:
    return parse_label_config(label_config(*labels)).video_controls[0]


def refuse() -> NoReturn:
    raise AssertionError("opened although everything is known")


def opinions(
    hybrid: TrackClassifier,
    where: VideoControl,
    clip: Path | None,
    crop_embeddings: CropEmbeddingStore | None = None,
    **changes: Any,
) -> list[LabelScores]:
    def open_video() -> AbstractContextManager[Path]:
        return nullcontext(clip) if clip else refuse()

    detector = DetectorLabels(where, TRACKS.class_names, class_agnostic=False)
    return hybrid.label_scores(
        TRACKS, where, detector, crop_embeddings or MemoryCropEmbeddings(), open_video, **changes
    )


def see(values: Settings, model: ResolvedModel, clip: Path) -> dict[int, FloatArray]:
    """What a model sees in each track."""
    found = embed_tracks(
        [item.crops for item in TRACKS.tracks],
        lambda: use_embedder(model, values),
        model.model_id,
        MemoryCropEmbeddings(),
        lambda: nullcontext(clip),
        CROPS_PER_TRACK,
    )
    pairs = zip(TRACKS.tracks, found, strict=True)
    return {item.track_id: np.stack([crop.vector for crop in mine]) for item, mine in pairs if mine}


@pytest.fixture
def store(tmp_path: Path) -> PatternStore:
    return PatternStore(Storage(f"sqlite:///{tmp_path / 'db'}"))


def teach(
    store: PatternStore,
    model: ResolvedModel,
    vectors: dict[str, FloatArray],
    *,
    project: int = 1,
    task: int = 10,
    detector_class: str = "",
) -> None:
    """One object a label, of these views."""
    wanted = []
    for number, (label, rows) in enumerate(vectors.items()):
        crops = [CropEmbedding(n, (float(number), 0.0, 50.0, 50.0), row, b"") for n, row in enumerate(rows)]
        store.crop_embeddings(f"taught-{task}").add(model.model_id, crops)
        keys = [crop.key(f"taught-{task}", model.model_id) for crop in crops]
        wanted += [NewExemplar(f"r-{label}", label, key, detector_class=detector_class) for key in keys]
    store.replace_task(project, model.model_id, task, 1, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("embedder", ["dinov2", "fallback"])
def test_opinions_of_patterns(make: MakeSettings, store: PatternStore, clip: Path, embedder: str) -> None:
    values = make(embedder=embedder)
    models = classifier_models(values, "yolo_dinov2")
    assert models.embedder is not None
    assert models.embedder.kind == embedder
    seen = see(values, models.embedder, clip)
    teach(store, models.embedder, {"alarm": seen[1], "zebra": seen[2]})
    hybrid = TrackClassifierFactory(values, store).get(1, models)
    assert hybrid is not None
    crop_embeddings = MemoryCropEmbeddings()
    found = opinions(hybrid, control("alarm", "zebra", "person"), clip, crop_embeddings)
    best = [opinion.patterns.best if opinion.patterns else None for opinion in found]
    assert best == ["alarm", "zebra", None, "zebra"]
    assert all(opinion.text == {} for opinion in found)
    assert found[2] == LabelScores()  # nothing to embed
    for opinion, label in ((found[0], "alarm"), (found[1], "zebra")):
        assert opinion.patterns is not None
        assert opinion.patterns.similarity > 0.99
        assert opinion.nearest is not None
        assert {name: opinion.nearest[name] for name in ("label", "task", "region")} == {
            "label": label,
            "task": 10,
            "region": f"r-{label}",
        }
        assert opinion.nearest["frame"] in range(3)
    again = opinions(hybrid, control("alarm", "zebra", "person"), None, crop_embeddings)  # now without the video
    assert [o.patterns for o in again] == [o.patterns for o in found]


def test_only_labels_of_the_config_are_given(make: MakeSettings, store: PatternStore, clip: Path) -> None:
    values = make()
    models = classifier_models(values, "yolo_dinov2")
    assert models.embedder is not None
    seen = see(values, models.embedder, clip)
    teach(store, models.embedder, {"alarm": seen[1], "zebra": seen[2]})
    hybrid = TrackClassifierFactory(values, store).get(1, models)
    assert hybrid is not None
    found = opinions(hybrid, control("zebra", "person"), clip)
    assert found[0].patterns is not None
    assert set(found[0].patterns.probabilities) == {"zebra"}
    assert opinions(hybrid, control("person"), None) == [LabelScores()] * 4  # none of them: nothing is embedded


def test_a_label_taught_on_persons_does_not_reach_bicycles(make: MakeSettings, store: PatternStore, clip: Path) -> None:
    values = make()
    models = classifier_models(values, "yolo_dinov2")
    assert models.embedder is not None
    seen = see(values, models.embedder, clip)
    where = control("alarm", "zebra", "person", "bicycle")

    def found(votes: dict[str, float], *, agnostic: bool = False, trained: bool = False) -> LabelScores:
        tracks = replace(make_set(record(1, RED, 0, 5, 9, **votes)), class_agnostic=agnostic)
        detector = DetectorLabels(where, ("person", "bicycle"), agnostic, trained=trained)
        classifier = TrackClassifierFactory(values, store).get(1, models)
        assert classifier is not None
        return classifier.label_scores(tracks, where, detector, MemoryCropEmbeddings(), lambda: nullcontext(clip))[0]

    def best(*args: Any, **changes: Any) -> str | None:
        match = found(*args, **changes).patterns
        return match.best if match else None

    teach(store, models.embedder, {"alarm": seen[1]}, detector_class="person")
    assert best({"person": 3.0}) == "alarm"
    assert best({"bicycle": 3.0}) is None
    assert best({"bicycle": 3.0, "person": 2.0}) == "alarm"  # the detector is not sure
    assert best({"object": 3.0}, agnostic=True) == "alarm"
    refused = found({"bicycle": 3.0}).patterns
    assert refused is not None
    assert refused.probabilities == {"alarm": 0.0}  # so that CLIP does not name it either
    teach(store, models.embedder, {"alarm": seen[1]}, task=11, detector_class="bicycle")
    assert best({"bicycle": 3.0}) == "alarm"  # examples of both
    teach(store, models.embedder, {"alarm": seen[1]}, task=11)
    teach(store, models.embedder, {"alarm": seen[1]})
    assert best({"bicycle": 3.0}) == "alarm"  # nothing is known of them


def test_imported_exemplars_name_their_origin(make: MakeSettings, store: PatternStore, clip: Path) -> None:
    values = make()
    models = classifier_models(values, "yolo_dinov2")
    assert models.embedder is not None
    seen = see(values, models.embedder, clip)
    crop = CropEmbedding(0, (0.0, 0.0, 0.0, 0.0), seen[1][0], b"")
    store.crop_embeddings("bank-f").add(models.embedder.model_id, [crop])
    item = NewExemplar("f-1", "alarm", crop.key("bank-f", models.embedder.model_id), "f")
    store.add_imported(1, models.embedder.model_id, [item])
    hybrid = TrackClassifierFactory(values, store).get(1, models)
    assert hybrid is not None
    assert opinions(hybrid, control("alarm"), clip)[0].nearest == {"label": "alarm", "origin": "f"}


def test_opinions_of_names(make: MakeSettings, clip: Path) -> None:
    values = make()
    models = classifier_models(values, "yolo_clip")
    crop_embeddings, where = MemoryCropEmbeddings(), control("alarm", "zebra", "person")
    found = opinions(TrackClassifier(values, models), where, clip, crop_embeddings)
    assert [opinion.patterns for opinion in found] == [None] * 4
    assert [sorted(opinion.text) for opinion in found] == [
        ["alarm", "person", "zebra"],
        ["alarm", "person", "zebra"],
        [],
        ["alarm", "person", "zebra"],
    ]
    for opinion in found:
        assert all(0 <= chance <= 1 for chance in opinion.text.values())
        assert sum(opinion.text.values()) <= 1
    assert opinions(TrackClassifier(values, models), where, None, crop_embeddings) == found


def test_what_the_detector_saw_counts_for_names_that_it_knows(make: MakeSettings, clip: Path) -> None:
    values = make()
    models = classifier_models(values, "yolo_clip")
    where, crop_embeddings = control("alarm", "person"), MemoryCropEmbeddings()
    detector = DetectorLabels(where, TRACKS.class_names, class_agnostic=False)
    chances = []
    for scores in ({"person": 1.0}, {"chair": 1.0}):
        tracks = make_set(record(1, RED, 0, 5, 9, **scores))
        (opinion,) = TrackClassifier(values, models).label_scores(
            tracks, where, detector, crop_embeddings, lambda: nullcontext(clip)
        )
        chances.append(opinion.text)
    assert chances[0]["person"] > chances[1]["person"]
    assert chances[0]["alarm"] < chances[1]["alarm"]


def test_that_a_trained_detector_does_not_see_what_nobody_taught_it_says_nothing(
    make: MakeSettings, clip: Path
) -> None:
    values, where, crop_embeddings = make(), control("alarm", "person"), MemoryCropEmbeddings()
    models = classifier_models(values, "yolo_clip")
    tracks = replace(make_set(record(1, RED, 0, 5, 9, person=1.0)), class_names=("alarm", "person"))
    chances = []
    for taught in (None, frozenset({"person"})):
        detector = DetectorLabels(where, tracks.class_names, False, trained=True, trained_classes=taught)
        (opinion,) = TrackClassifier(values, models).label_scores(
            tracks, where, detector, crop_embeddings, lambda: nullcontext(clip)
        )
        chances.append(opinion.text["alarm"])
    assert chances[1] > chances[0]


def test_what_was_taught_sets_the_temperature_of_names(make: MakeSettings, clip: Path) -> None:
    values, where = make(), control("alarm", "zebra")
    models = classifier_models(values, "yolo_clip")
    assert models.clip is not None
    seen, crop_embeddings = see(values, models.clip, clip), MemoryCropEmbeddings()
    plain = opinions(TrackClassifier(values, models), where, clip, crop_embeddings)
    best = max(plain[0].text, key=lambda label: plain[0].text[label])
    other = next(label for label in plain[0].text if label != best)
    right = opinions(
        TrackClassifier(values, models, annotated_embeddings=[(best, seen[1])] * 30), where, None, crop_embeddings
    )
    wrong = opinions(
        TrackClassifier(values, models, annotated_embeddings=[(other, seen[1])] * 30), where, None, crop_embeddings
    )
    assert right[0].text[best] >= plain[0].text[best]
    assert abs(wrong[0].text[best] - wrong[0].text[other]) <= abs(plain[0].text[best] - plain[0].text[other])
    assert right != wrong


def test_universal_asks_both(make: MakeSettings, store: PatternStore, clip: Path) -> None:
    values, where = make(), control("alarm", "zebra", "person")
    models = classifier_models(values, "universal")
    assert models.embedder is not None
    assert models.clip is not None
    source = TrackClassifierFactory(values, store)
    untaught = source.get(1, models)
    assert untaught is not None
    crop_embeddings = MemoryCropEmbeddings()
    assert all(opinion.patterns is None for opinion in opinions(untaught, where, clip, crop_embeddings))
    teach(store, models.embedder, {"alarm": see(values, models.embedder, clip)[1]})
    hybrid = source.get(1, models)
    assert hybrid is not None
    found = opinions(hybrid, where, clip, crop_embeddings)
    assert found[0].patterns is not None
    assert found[0].patterns.best == "alarm"
    assert found[0].text
    assert {len(crop_embeddings.get(model_id)) for model_id in models.ids} == {7}
    labelled = label_tracks(TRACKS, where, hybrid, crop_embeddings, refuse)
    assert [track.track_id for track, _ in labelled.kept]
    for region in labelled.regions:
        if region["meta"]["original_class"] and "text_score" in region["meta"]:
            assert region["meta"]["text_label"] != "alarm"  # it has exemplars


def test_asked_to_stop(make: MakeSettings, clip: Path) -> None:
    hybrid = TrackClassifier(make(), classifier_models(make(), "yolo_clip"))
    with pytest.raises(Interrupted):
        opinions(hybrid, control("alarm"), clip, should_stop=lambda: True)


def test_a_model_that_cannot_be_loaded(make: MakeSettings, clip_model: Path, clip: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(clip_model, tmp_path / "clip")
    models = classifier_models(make(clip_model=str(folder)), "yolo_clip")
    shutil.rmtree(folder)
    with pytest.raises(WeightsError):
        opinions(TrackClassifier(make(), models), control("never asked before"), clip)


# -- from the database


def unit(*rows: list[float]) -> FloatArray:
    out = np.array(rows, np.float32)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def bank_of(source: TrackClassifierFactory, project: int = 1) -> PatternBank | None:
    return source.bank(project, EMBEDDER.model_id)[0]


def test_nobody_to_ask(make: MakeSettings, store: PatternStore) -> None:
    source = TrackClassifierFactory(make(), store)
    assert source.get(1, ClassifierModels("yolo")) is None
    assert source.get(1, ClassifierModels("yolo_dinov2", EMBEDDER)) is None
    store.mark_read(1, EMBEDDER.model_id)
    assert source.get(1, ClassifierModels("yolo_dinov2", EMBEDDER)) is None
    with_clip = source.get(1, ClassifierModels("universal", EMBEDDER, CLIP))
    assert with_clip is not None
    assert (with_clip.bank, dict(with_clip.origins), list(with_clip.annotated_embeddings)) == (None, {}, [])


def test_background_alone_is_no_bank(make: MakeSettings, store: PatternStore) -> None:
    teach(store, EMBEDDER, {UNLABELLED: unit([1, 0, 0])})
    assert TrackClassifierFactory(make(), store).get(1, ClassifierModels("yolo_dinov2", EMBEDDER)) is None


def test_a_bank_is_fitted_anew_only_when_the_exemplars_change(make: MakeSettings, store: PatternStore) -> None:
    source = TrackClassifierFactory(make(), store)
    assert bank_of(source) is None
    teach(store, EMBEDDER, {"a": unit([1, 0, 0])})
    first = bank_of(source)
    assert first is not None
    assert bank_of(source) is first
    teach(store, EMBEDDER, {"a": unit([1, 0, 0])})  # the same again
    teach(store, EMBEDDER, {"z": unit([0, 0, 1])}, project=2)
    teach(store, CLIP, {"z": unit([0, 0, 1])})
    assert bank_of(source) is first
    teach(store, EMBEDDER, {"a": unit([1, 0, 0]), "b": unit([0, 1, 0])})
    second = bank_of(source)
    assert second is not None
    assert second is not first
    assert second.labels == ("a", "b")
    assert bank_of(TrackClassifierFactory(make(), store)) is not second
    store.replace_task(1, EMBEDDER.model_id, 10, 1, [])
    assert bank_of(source) is None
    teach(store, EMBEDDER, {"a": unit([1, 0, 0])})
    assert bank_of(source) is not None


def test_every_project_has_its_own_bank(make: MakeSettings, store: PatternStore) -> None:
    source = TrackClassifierFactory(make(), store)
    for project in range(1, 13):
        teach(store, EMBEDDER, {f"label-{project}": unit([1, 0, 0])}, project=project)
    banks = {project: bank_of(source, project) for project in range(1, 13)}
    assert [bank.labels for bank in banks.values() if bank] == [(f"label-{n}",) for n in range(1, 13)]
    kept = [project for project in range(12, 0, -1) if bank_of(source, project) is banks[project]]
    assert kept[0] == 12
    assert len(kept) <= 8  # not all of them for ever


def test_sources_of_the_bank(make: MakeSettings, store: PatternStore) -> None:
    teach(store, EMBEDDER, {"a": unit([1, 0, 0], [0.9, 0.1, 0]), UNLABELLED: unit([0, 1, 0])}, task=42)
    bank, sources = TrackClassifierFactory(make(), store).bank(1, EMBEDDER.model_id)
    assert bank is not None
    verdict = bank.classify(unit([1, 0, 0]))
    assert verdict.nearest is not None
    assert (sources[verdict.nearest].task_id, sources[verdict.nearest].label) == (42, "a")


def test_digests(tmp_path: Path) -> None:
    storage, models = Storage(f"sqlite:///{tmp_path / 'db'}"), ClassifierModels("universal", EMBEDDER, CLIP)
    store = PatternStore(storage)
    assert bank_digests(storage, 1, models.ids) == {"dinov2-1": None, "clip-1": None}
    teach(store, EMBEDDER, {"a": unit([1, 0, 0])})
    store.mark_read(1, CLIP.model_id)
    assert bank_digests(storage, 1, models.ids) == {"dinov2-1": store.digest(1, "dinov2-1"), "clip-1": ""}
    assert bank_digests(storage, 1, ClassifierModels("yolo").ids) == {}


def test_objects_that_were_taught(make: MakeSettings, store: PatternStore) -> None:
    teach(store, CLIP, {"a": unit([1, 0, 0], [0, 1, 0]), UNLABELLED: unit([0, 0, 1]), "b": unit([1, 1, 0])})
    hybrid = TrackClassifierFactory(make(), store).get(1, ClassifierModels("yolo_clip", None, CLIP))
    assert hybrid is not None
    assert [(label, rows.shape) for label, rows in hybrid.annotated_embeddings] == [("a", (2, 3)), ("b", (1, 3))]
    nothing = Exemplars(np.zeros(0, np.int64), np.zeros((0, 0), np.float32), (), np.zeros(0, np.int64))
    assert embeddings_by_object(nothing) == []


@pytest.mark.slow
def test_a_model_is_loaded_once(make: MakeSettings, clip_model: Path) -> None:
    values = make()
    models = classifier_models(values, "universal")
    for model in (models.embedder, models.clip):
        assert model is not None
        with use_embedder(model, values) as first, use_embedder(model, values) as second:
            assert first is second
            assert first.model_id == model.model_id
        with use_embedder(model, values) as third:
            assert third is first
