"""What a fine-tuned detector begins with, and what it keeps."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ml_backend.core.errors import ConfigError, TrainingFailed, WeightsError
from ml_backend.core.settings import Settings
from ml_backend.detectors.yolo import YoloDetector
from ml_backend.label_studio.label_config import classes_for, parse_label_config
from ml_backend.training.class_transfer import (
    DETECTABLE,
    TRAINED,
    checkpoint_metadata,
    detectable_classes,
    transferred_rows,
)
from ml_backend.training.fine_tune import TrainingPlan, fine_tune
from tests.builders import label_config
from tests.training.detection import LABELS, TAUGHT, make_dataset, make_start, train_plan


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start") / "start.pt")


@pytest.fixture(scope="module")
def trained(data: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder of a run of two epochs, and what came of it."""
    run = tmp_path_factory.mktemp("run")
    return run, train(train_plan(data, start, run))[1]


def train(plan: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    events: list[dict[str, Any]] = []
    done = fine_tune(TrainingPlan.from_json(plan), lambda event, **values: events.append({"event": event, **values}))
    return events, done


def load(path: Path | str) -> Any:
    from ultralytics.nn.tasks import load_checkpoint

    return load_checkpoint(str(path))


def class_rows(model: Any, index: int) -> torch.Tensor:
    """Weights and biases of one class on all levels."""
    last = [branch[-1] for branch in model.model[-1].cv3]
    return torch.cat([part[index].detach().flatten() for conv in last for part in (conv.weight, conv.bias)])


class Stop(Exception):
    """Ends a training where a test wants to look at it."""


def set_up(plan: dict[str, Any], at: str = "on_train_start", **changes: Any) -> Any:
    """A trainer that has stopped at one of ultralytics' events, by default before its first epoch."""
    from ml_backend.training.fine_tuner import FineTuner

    args = {name: value for name, value in plan["args"].items() if name != "freeze_norm"}
    args |= {"data": plan["data"], "save_dir": plan["run"], "model": plan["start"], "plots": False, "cls_remap": False}
    trainer = FineTuner(args | changes, plan["start_from"], plan["trained_classes"], freeze_norm=True)

    def stop(_: Any) -> None:
        raise Stop

    trainer.add_callback(at, stop)
    with pytest.raises(Stop):
        trainer.train()
    return trainer


def test_labels_begin_with_what_the_detector_knows(data: Path, start: Path, tmp_path: Path) -> None:
    plan = train_plan(data, start, tmp_path) | {"start_from": {"helper": "person", "担架": "gone"}}
    trainer = set_up(plan)
    assert trainer.began == {"helper": "person", "person": "person", "dog": "dog"}
    before = load(start)[0]
    assert torch.equal(class_rows(trainer.model, 0), class_rows(before, 0))
    assert torch.equal(class_rows(trainer.model, 2), class_rows(before, 0)), "several may begin with one class"
    assert torch.equal(class_rows(trainer.model, 3), class_rows(before, 2))
    head = trainer.model.model[-1]
    fresh = [float(branch[-1].bias[1].detach()) for branch in head.cv3]
    assert not any(bool(branch[-1].weight[1].any()) for branch in head.cv3), "equally rare everywhere"
    assert fresh == sorted(fresh), "rarest where the grid is finest"
    assert fresh[-1] < -5
    backbone = len(trainer.model.yaml["backbone"])
    frozen = {int(name.split(".")[1]) for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert frozen == {*range(backbone)} - {0} | {0, backbone * 2 + 1}, "the last is the fixed sum over box edges"


@pytest.mark.parametrize(
    ("name", "wanted", "row"),
    [
        ("fire_hydrant", (), 2),
        ("vehicle", ("bus", "truck", "car"), 1),
        ("vehicle", ("van",), None),
        ("thing", ("van", "*"), 0),
        ("car", "truck", 1),
    ],
)
def test_labels_begin_with_the_first_class_that_there_is(name: str, wanted: Sequence[str], row: int | None) -> None:
    start = {0: "car", 1: "Truck", 2: "fire hydrant"}
    assert transferred_rows([name], start, {name: wanted}) == ({} if row is None else {0: row})


def test_the_rest_is_what_no_other_label_has() -> None:
    start = {0: "car", 1: "truck", 2: "dog"}
    assert transferred_rows(["vehicle", "thing"], start, {"vehicle": ["car", "truck"], "thing": ["*"]}) == {
        0: 0,
        1: 2,
    }
    assert transferred_rows(["dog", "thing"], {0: "dog"}, {"thing": ["*"]}) == {0: 0}


def test_classes_for_a_label_are_those_that_it_gets_in_predictions() -> None:
    xml = label_config("vehicle", "thing", "fire_hydrant", predicted={"vehicle": "car,truck", "thing": "*"})
    labels = parse_label_config(xml).video_controls[0].labels
    assert [classes_for(label) for label in labels] == [
        ("car", "truck", "vehicle"),
        ("thing", "*"),
        ("fire_hydrant",),
    ]


def test_a_checkpoint_says_what_it_knows() -> None:
    base: tuple[dict[int, str], dict[str, Any]] = ({0: "person", 1: "dog"}, {})
    first = checkpoint_metadata(["helper", "dog", "cat"], ["helper"], base, {"helper": "person"})
    assert first == {TRAINED: ["helper"], DETECTABLE: ["dog", "helper"]}
    start: tuple[dict[int, str], dict[str, Any]] = ({0: "helper", 1: "dog", 2: "cat"}, dict(first))
    second = checkpoint_metadata(["helper", "dog", "cat", "cow"], ["cow"], start, {})
    assert second == {TRAINED: ["cow", "helper"], DETECTABLE: ["cow", "dog", "helper"]}, "cat still begins with nothing"
    renamed = checkpoint_metadata(["medic", "cat"], ["cat"], start, {"medic": ["helper"]})
    assert renamed == {TRAINED: ["cat", "helper"], DETECTABLE: ["cat", "medic"]}
    assert checkpoint_metadata(["a", "b"], ["a"], None, {}) == {TRAINED: ["a"], DETECTABLE: ["a"]}


def test_as_many_classes_as_before_do_not_inherit_by_position(data: Path, tmp_path: Path) -> None:
    from tests.builders import make_tiny_yolo

    start = make_tiny_yolo(tmp_path / "start.pt", dict(enumerate(["dog", "cat", "cow", "person"])))
    trainer = set_up(train_plan(data, start, tmp_path / "run", start_from={}))
    before = load(start)[0]
    assert trainer.began == {"person": "person", "dog": "dog"}
    assert torch.equal(class_rows(trainer.model, 2), class_rows(before, 3))
    assert not torch.equal(class_rows(trainer.model, 0), class_rows(before, 0))


def test_labels_without_boxes_are_wrong_only_where_something_else_is_annotated() -> None:
    """(places: annotated as the second label, not annotated) x (labels: nobody's, the second, the third)."""
    from ml_backend.training.distillation import ClassLoss

    scores = torch.zeros(1, 2, 3, requires_grad=True)
    targets = torch.tensor([[[0.0, 0.8, 0.0], [0.0, 0.0, 0.0]]])
    losses = ClassLoss(torch.tensor([False, True, True]), torch.zeros(3, dtype=torch.bool))(scores, targets)
    losses.sum().backward()
    assert scores.grad is not None
    assert torch.allclose(scores.grad, torch.tensor([[[0.5, -0.3, 0.5], [0.0, 0.5, 0.5]]]))


def test_labels_without_boxes_are_not_unlearned(data: Path, start: Path, tmp_path: Path) -> None:
    trainer = set_up(train_plan(data, start, tmp_path), at="on_train_batch_start", cls_pw=0.5)
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))

    def gradients(batch: dict[str, Any]) -> list[torch.Tensor]:
        trainer.model.zero_grad()
        loss, _ = trainer.model(batch)
        loss.sum().backward()
        last = [branch[-1] for branch in trainer.model.model[-1].cv3]
        return [conv.weight.grad.flatten(1).abs().sum(1) + conv.bias.grad.abs() for conv in last]

    for gradient in gradients(batch):
        assert bool((gradient[:3] > 0).all())
    nothing = {"batch_idx": batch["batch_idx"][:0], "cls": batch["cls"][:0], "bboxes": batch["bboxes"][:0]}
    for gradient in gradients(batch | nothing):
        assert float(gradient[3]) == 0, "what is not annotated may show it"
        assert bool((gradient[:3] > 0).all())
    assert not any(m.training for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.slow
def test_what_is_written_is_what_predictions_load(trained: tuple[Path, dict[str, Any]], start: Path) -> None:
    run, done = trained
    assert done["epochs"] == 2
    detector = YoloDetector(done["weights"], Settings(_env_file=None, device="cpu", imgsz=64))
    assert tuple(detector.names.values()) == LABELS
    model, checkpoint = load(done["weights"])
    assert checkpoint["optimizer"] is None
    assert checkpoint[TRAINED] == sorted(TAUGHT)
    assert checkpoint[DETECTABLE] == sorted(LABELS), "the dog as well, which is what the detector knew of dogs"
    assert detectable_classes(Path(done["weights"]), "its digest") == frozenset(LABELS)
    before = load(start)[0]
    # It is moved only by what is annotated as something else: far less than what is taught.
    moved = [(class_rows(model, i) - class_rows(before, j)).abs().mean() for i, j in ((3, 2), (0, 0))]
    assert moved[0] < moved[1]
    assert not torch.allclose(class_rows(model, 0), class_rows(before, 0), atol=2e-3)
    statistics = [(k, v) for k, v in model.state_dict().items() if "running" in k and ".cv3." not in k]
    assert all(torch.allclose(v, before.state_dict()[k], atol=1e-3, rtol=1e-2) for k, v in statistics)
    assert not list(run.rglob("*.part"))


def test_a_finished_training_is_only_finished(
    trained: tuple[Path, dict[str, Any]], data: Path, start: Path, tmp_path: Path
) -> None:
    run = tmp_path / "moved"
    shutil.copytree(trained[0], run)
    (run / "weights" / "best.pt").unlink()  # as if the process had ended just before
    events, done = train(train_plan(data, start, run, resume=str(run / "weights" / "last.pt")))
    assert events == []
    assert done["epochs"] == 2
    assert Path(done["weights"]).parent == run / "weights"


@pytest.mark.slow
def test_a_training_goes_on_in_another_folder(
    trained: tuple[Path, dict[str, Any]], start: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    last = run / "weights" / "last.pt"
    last.parent.mkdir(parents=True)
    checkpoint = torch.load(trained[0] / "weights" / "last.pt", weights_only=False)
    checkpoint["train_args"]["epochs"] = checkpoint["ema"].args.epochs = 3  # as if it had been killed after two
    torch.save(checkpoint, last)
    moved = make_dataset(tmp_path / "moved data")
    events, done = train(train_plan(moved, start, run, resume=str(last)))
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [3]
    assert done["epochs"] == 3
    assert Path(done["weights"]) == run / "weights" / "best.pt"


@pytest.mark.slow
def test_what_a_label_has_been_taught_is_not_replaced(
    trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    again = train_plan(data, Path(trained[1]["weights"]), tmp_path, start_from={"helper": "person", "dog": "person"})
    events, _ = train(again | {"args": again["args"] | {"epochs": 1}})
    assert events[0]["began"] == {"helper": "helper", "担架": "担架", "person": "person", "dog": "person"}


def test_other_models_are_refused(data: Path, start: Path, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.pt"
    corrupt.write_bytes(start.read_bytes()[:50_000])
    with pytest.raises(WeightsError, match="cannot be loaded"):
        train(train_plan(data, corrupt, tmp_path / "run"))
    with pytest.raises(WeightsError, match="No checkpoint"):
        train(train_plan(data, tmp_path / "none.pt", tmp_path / "run"))
    fused = torch.load(start, weights_only=False)
    fused["model"] = fused["model"].float().fuse(verbose=False)
    torch.save(fused, tmp_path / "fused.pt")
    with pytest.raises(WeightsError, match="fused layers"):
        train(train_plan(data, tmp_path / "fused.pt", tmp_path / "run"))


@pytest.mark.slow
def test_a_loss_that_is_not_finite(data: Path, start: Path, tmp_path: Path) -> None:
    broken = torch.load(start, weights_only=False)
    broken["model"].model[-1].cv2[0][-1].bias.data[:] = float("nan")
    torch.save(broken, tmp_path / "nan.pt")
    with pytest.raises(TrainingFailed, match="finite"):
        train(train_plan(data, tmp_path / "nan.pt", tmp_path / "run"))


def test_a_dataset_that_is_not_there(start: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="dataset"):
        train(train_plan(tmp_path / "none.yaml", start, tmp_path / "run"))


def test_forbidden_arguments_do_not_reach_the_training(data: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="distill_model"):
        train(train_plan(data, start, tmp_path, args={"distill_model": "x.pt"}))
    args = {"epochs": 7, "mosaic": 0.5}
    sized = train_plan(data, start, tmp_path) | {"args": args, "pictures": 8, "boxes": 24, "tracks": 3}
    plan = TrainingPlan.from_json(sized | {"device": "cpu", "imgsz": 96})
    assert (plan.args["epochs"], plan.args["imgsz"], plan.args["mosaic"]) == (7, 96, 0.5)
    assert plan.device == "cpu"
