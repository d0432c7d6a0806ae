"""What a training keeps of what its start checkpoint knew."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from ml_backend.detectors.setup import setup_ultralytics
from ml_backend.training.class_transfer import known_rows, read_checkpoint
from ml_backend.training.fine_tune import TrainingPlan, fine_tune
from tests.builders import label_config
from tests.training.detection import LABELS, START_NAMES, make_dataset, make_start, train_plan

DOG = LABELS.index("dog")
#: Arguments with which even a training of seconds goes far from where it began.
FAR = {"epochs": 6, "lr0": 5e-2, "warmup_epochs": 0.0}
#: Without a label that the start checkpoint knows, there is nothing to keep.
NOTHING_KNOWN = label_config("stretcher")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start") / "start.pt")


@pytest.fixture(scope="module")
def other_video(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Images of a scene that differs from the training's."""
    folder, rng = tmp_path_factory.mktemp("replay"), np.random.default_rng(1)
    files = []
    for number in range(6):
        image = cv2.resize(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8), (128, 96))
        files.append(str(folder / f"{number}.jpg"))
        cv2.imwrite(files[-1], image)
    return tuple(files)


def teacher(start: Path, label_config: str = "") -> Any:
    setup_ultralytics()
    from ml_backend.training.distillation import Teacher

    model, content = read_checkpoint(start)
    return Teacher(model, known_rows(LABELS, model.names, content, label_config), len(LABELS))


def trained(plan: dict[str, Any]) -> Any:
    done = fine_tune(TrainingPlan.from_json(plan), lambda *_, **__: None)
    return read_checkpoint(Path(done["weights"]))[0].eval()


def pictures(files: list[Path]) -> torch.Tensor:
    images = [cv2.resize(cv2.imread(str(file)), (64, 64)) for file in files]
    return torch.from_numpy(np.stack(images)[..., ::-1].transpose(0, 3, 1, 2).copy()).float() / 255


def distance(model: Any, start: Path, files: list[Path], label: int) -> float:
    """Mean difference between the probabilities of a label and what the start checkpoint gives it."""
    images = pictures(files)
    with torch.no_grad():
        scores = model(images)[1]["scores"].sigmoid()[:, label]
    wanted = teacher(start)(images)["one2many"].probabilities[..., label]
    return float((scores - wanted).abs().mean())


@pytest.mark.parametrize(
    ("config", "content", "rows"),
    [
        ("", {}, {2: [0], 3: [2]}),
        (label_config("helper", "dog", predicted={"helper": "person, bicycle"}), {}, {0: [0, 1], 3: [2]}),
        (label_config("helper", "dog", predicted={"helper": "*"}), {}, {0: [0, 1], 3: [2]}),
        ("", {"taught": ["person"], "known": ["person"]}, {2: [0]}),
        (NOTHING_KNOWN, {}, {}),
    ],
)
def test_a_label_is_what_predictions_call_it(config: str, content: dict[str, Any], rows: dict[int, list[int]]) -> None:
    assert known_rows(LABELS, START_NAMES, content, config) == rows


def test_several_classes_of_one_label_are_as_probable_as_the_best(start: Path) -> None:
    setup_ultralytics()
    from ml_backend.training.distillation import Teacher

    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = read_checkpoint(start)[0]
    taught = Teacher(model, {1: [0, 2], 2: [1]}, 3)(image)["one2many"]
    with torch.no_grad():
        scores = model(image)[1]["scores"].sigmoid().permute(0, 2, 1)
    assert torch.equal(taught.probabilities[..., 1], scores[..., [0, 2]].amax(-1))
    assert not taught.probabilities[..., 0].any(), "a label that it does not know"


def test_people_are_right_where_they_have_annotated_a_label() -> None:
    """(places: annotated, deleted, unclear) x (labels: annotated ones, another, one that the teacher does not know)."""
    setup_ultralytics()
    from ml_backend.training.distillation import ClassLoss

    scores = torch.zeros(1, 2, 3, requires_grad=True)
    loss = ClassLoss(torch.tensor([True, False, False]), torch.tensor([True, True, False]))
    loss.taught = torch.tensor([[[0.9, 0.9, 0.0], [0.9, 0.9, 0.0]]])
    loss(scores, torch.tensor([[[0.8, 0.0, 0.0], [0.0, 0.0, 0.0]]])).sum().backward()
    assert scores.grad is not None
    # Annotated: people's label, and no other. Not annotated: their label is deleted there, the other one is kept.
    assert torch.allclose(scores.grad, torch.tensor([[[-0.3, 0.5, 0.5], [0.5, -0.4, 0.0]]]))


@pytest.mark.parametrize("replayed", [False, True])
def test_what_was_forgotten_is_learned_from_the_teacher(start: Path, replayed: bool) -> None:
    """A label without annotations on training images, and an annotated one on replay images."""
    setup_ultralytics()
    from ml_backend.training.distillation import Distillation, Teacher

    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    nothing = {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    dog = 2
    teacher = Teacher(read_checkpoint(start)[0], {0: [0], dog: [dog]}, 3)
    wanted = teacher(images)["one2many"].probabilities[..., dog]
    student = read_checkpoint(start)[0]
    student.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    student.eval().model[-1].training = True  # raw output, but fixed statistics
    biases = [level[-1].bias.requires_grad_(True) for level in student.model[-1].cv3]
    for bias in biases:
        bias.data[dog] -= 3
    criterion = Distillation(student.init_criterion(), torch.tensor([True, True, replayed]), teacher)

    def loss(count: int, trained: int) -> torch.Tensor:
        batch = {"img": images[:count], "im_file": ["image"] * trained, **nothing}
        total: torch.Tensor = criterion(student(images[:count]), batch)[0].sum()
        return total

    steps = torch.optim.Adam(biases, lr=0.4)
    for _ in range(50):
        steps.zero_grad()
        (loss(2, 1) - loss(1, 1) if replayed else loss(2, 2)).backward()
        steps.step()
    found = student(images)["scores"].sigmoid().permute(0, 2, 1)[..., dog]
    assert float(wanted.max()) > 0.3
    assert torch.allclose(found, wanted, atol=0.03)


@pytest.mark.slow
def test_other_videos_keep_what_is_found_there(
    data: Path, start: Path, other_video: tuple[str, ...], tmp_path: Path
) -> None:
    plan = train_plan(data, start, tmp_path / "plain", args=FAR)
    files = [Path(file) for file in other_video]
    plain = trained(plan)
    replayed = trained(plan | {"run": str(tmp_path / "replayed"), "replay": list(other_video)})
    for label in (LABELS.index("person"), DOG):
        assert distance(replayed, start, files, label) < 0.9 * distance(plain, start, files, label)


def test_the_teacher_learns_nothing(data: Path, start: Path, other_video: tuple[str, ...], tmp_path: Path) -> None:
    setup_ultralytics()
    from ml_backend.training.fine_tuner import FineTuner

    plan = train_plan(data, start, tmp_path)
    args = {name: value for name, value in plan["args"].items() if name != "freeze_norm"} | {"epochs": 1}
    fixed = {"data": plan["data"], "save_dir": plan["run"], "model": plan["start"], "plots": False, "device": "cpu"}
    image = pictures([Path(other_video[0])])
    knows = teacher(start)
    before = knows(image)["one2many"]
    replay = [Path(file) for file in other_video]
    FineTuner(fixed | args, {}, LABELS[:3], teacher=knows, replay=replay).train()
    after = knows(image)["one2many"]
    assert torch.equal(before.probabilities, after.probabilities)
    assert torch.equal(before.boxes, after.boxes)


@pytest.mark.slow
def test_a_training_goes_on_with_and_without_its_teacher(
    data: Path, start: Path, other_video: tuple[str, ...], tmp_path: Path
) -> None:
    plan = train_plan(data, start, tmp_path / "run", replay=list(other_video))
    trained(plan)
    last = tmp_path / "run" / "weights" / "last.pt"
    checkpoint = torch.load(last, weights_only=False)
    checkpoint["train_args"]["epochs"] = checkpoint["ema"].args.epochs = 3  # as if it had been killed after two
    torch.save(checkpoint, last)
    (tmp_path / "run" / "weights" / "best.pt").unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    for name, source in (("run", start), ("other", tmp_path / "gone.pt")):
        resume = tmp_path / name / "weights" / "last.pt"
        resumed = plan | {"run": str(tmp_path / name), "start": str(source), "resume": str(resume)}
        done = fine_tune(TrainingPlan.from_json(resumed), lambda *_, **__: None)
        assert done["epochs"] == 3
        assert Path(done["weights"]).is_relative_to(tmp_path / name)


def test_a_detector_without_nms_has_two_teachers(start: Path) -> None:
    """Both branches of its head are taught."""
    setup_ultralytics()
    import ultralytics
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import YAML

    from ml_backend.training.distillation import Distillation, Teacher

    folder = Path(ultralytics.__file__).parent / "cfg" / "models" / "26"
    torch.manual_seed(0)
    architecture = YAML.load(folder / "yolo26.yaml") | {"scales": {"n": [0.33, 0.0625, 128]}, "scale": "n"}
    model, same = (DetectionModel(architecture, nc=2, verbose=False) for _ in range(2))
    same.load_state_dict(model.state_dict())
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=2)
    known = torch.tensor([True, True])
    criterion = Distillation(model.init_criterion(), known, Teacher(same, {0: [0], 1: [1]}, 2))
    model.eval().model[-1].training = True
    images = torch.rand(2, 3, 64, 64)
    batch = {"img": images, "im_file": ["a"], "batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1)}
    batch["bboxes"] = torch.zeros(0, 4)
    loss, _ = criterion(model(images), batch)
    loss.sum().backward()
    head = model.model[-1]
    for branch in (head.cv3, head.one2one_cv3):
        assert all(bool(level[-1].weight.grad.abs().sum() > 0) for level in branch)
