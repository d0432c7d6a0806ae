"""Video models of the SAM family, tiny and randomly initialised, in their real formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ml_backend.cli.commands.track_box import main as track_box
from ml_backend.core.boxes import iou_pairs
from ml_backend.core.settings import Settings
from ml_backend.embeddings.hub import read_sam_folder
from ml_backend.inference.follow import CorrelationTracker, Follower
from ml_backend.inference.reduced_frames import ReducedFrames
from ml_backend.inference.sam_tracker import SamVideoModel, use_tracker
from ml_backend.video.probe import probe
from tests.drawn_scene import FPS, HEIGHT, WIDTH, truth, write_scene
from tests.tiny_sam import save_tiny_sam

KINDS = ("sam2_video", "edgetam_video", "sam3_tracker_video")
Make = Callable[..., Settings]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_tiny_sam(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_video(folders: dict[str, Path], settings: Make, kind: str) -> None:
    model = SamVideoModel(read_sam_folder(folders[kind]), settings(device="cpu"))
    session = model.new_session()
    image = np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8)
    for number in range(22):
        box, presence = model.segment(session, number, image, np.array([50.0, 20, 80, 60]) if number == 0 else None)
        assert np.isfinite(presence)
        assert box is None or ((box >= 0).all() and (box <= [160, 90, 160, 90]).all())
    assert not session.processed_frames
    (outputs,) = session.output_dict_per_obj.values()
    assert len(outputs["cond_frame_outputs"]) == 1
    assert len(outputs["non_cond_frame_outputs"]) == 16, "it remembers so many frames"
    assert sum(model.memory_bytes.values()) > 1_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_box_on_the_command_line(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write_scene(tmp_path / "scene.mp4", 8)
    monkeypatch.setenv("INTERACTIVE_MODEL", str(folders[kind]))
    monkeypatch.setenv("DEVICE", "cpu")
    out = tmp_path / "out.json"
    arguments = [str(tmp_path / "scene.mp4"), "--frame", "4", "--box", "10", "30", "15", "25", "--out", str(out)]
    told = CliRunner().invoke(track_box, [*arguments, "--engine", "sam"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout.splitlines()[-1])["engine"] == kind
    (region,) = json.loads(out.read_text())["result"]
    drawn = next(key for key in region["value"]["sequence"] if key["frame"] == 4)
    assert (drawn["x"], drawn["y"], drawn["width"], drawn["height"]) == (10, 30, 15, 25)


def test_what_is_used_and_why(folders: dict[str, Path], settings: Make, tmp_path: Path) -> None:
    def chosen(model: Path | str, **how: bool) -> tuple[str, bool, str]:
        with use_tracker(settings(interactive_model=str(model), device="cpu"), **how) as tracker:
            assert (tracker.start is CorrelationTracker) == (tracker.name == "correlation")
            return tracker.name, tracker.colour, tracker.note

    assert chosen("") == ("correlation", False, "")
    assert chosen(folders["sam2_video"], on_cpu=True) == ("sam2_video", True, "")
    name, colour, note = chosen(folders["sam2_video"])
    assert (name, colour) == ("correlation", False)
    assert "Without a GPU" in note
    assert "is not available" in chosen("facebook/sam2.1-hiera-tiny", on_cpu=True)[2]
    assert "does not exist" in chosen(tmp_path / "nowhere", on_cpu=True)[2]
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "dinov2"}')
    assert "does not follow objects" in chosen(other, on_cpu=True)[2]
    (other / "config.json").write_bytes((folders["sam2_video"] / "config.json").read_bytes())
    assert "has no weights as safetensors" in chosen(other, on_cpu=True)[2]
    (other / "model.safetensors").write_bytes((folders["sam2_video"] / "model.safetensors").read_bytes()[:-100])
    assert "damaged" in chosen(other, on_cpu=True)[2]
    (other / "model.safetensors").write_bytes((folders["edgetam_video"] / "model.safetensors").read_bytes())
    name, _, note = chosen(other, on_cpu=True)
    assert (name, bool(note)) == ("correlation", True), "another model's weights, and no processor"


@pytest.mark.parametrize("frames_before", [0, 3])
def test_a_model_that_fails_leaves_its_object_to_the_correlation_tracker(
    folders: dict[str, Path],
    settings: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    frames_before: int,
) -> None:
    import torch

    write_scene(tmp_path / "scene.mp4", 30)
    info = probe(tmp_path / "scene.mp4")
    calls = iter(range(1000))

    def run_out_of_memory(module: torch.nn.Module, _: object) -> None:
        if type(module).__name__ == "Sam2VideoModel" and next(calls) >= frames_before:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    fault = torch.nn.modules.module.register_module_forward_pre_hook(run_out_of_memory)
    try:
        with use_tracker(settings(interactive_model=str(folders["sam2_video"]), device="cpu"), on_cpu=True) as tracker:
            frames = ReducedFrames(tmp_path / "scene.mp4", info, colour=tracker.colour)
            follower = Follower(frames, (WIDTH, HEIGHT), FPS, start=tracker.start)
            drawn = np.array(truth(11), np.float64)
            found = follower.follow(10, drawn, 0, 29)
            assert "CUDA out of memory" in tracker.note
            assert tracker.name == "sam2_video+correlation"
    finally:
        fault.remove()
    assert "CUDA out of memory" in caplog.text
    if frames_before == 0:  # the boxes of a random model are not worth going on from
        overlaps = [iou_pairs(found.boxes[index][None], np.array([truth(index + 1)]))[0] for index in range(30)]
        assert min(overlaps) > 0.5


def test_a_model_that_cannot_run_at_all(folders: dict[str, Path], settings: Make, tmp_path: Path) -> None:
    """The processor makes images of another size than the network takes."""
    folder = shutil.copytree(folders["sam2_video"], tmp_path / "model")
    for file in folder.glob("*processor*.json"):
        file.write_text(file.read_text().replace("128", "64"))
    image = np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8)
    with use_tracker(settings(interactive_model=str(folder), device="cpu"), on_cpu=True) as tracker:
        following = tracker.start(image, 1.0, np.array([50.0, 20, 80, 60]))
        box, certainty = following.update(image)
        assert "failed while following" in tracker.note
    assert box is not None
    assert iou_pairs(box[None], np.array([[50.0, 20, 80, 60]]))[0] > 0.9
    assert np.isfinite(certainty)


def test_the_command_line_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(tmp_path / "scene.mp4", 3)
    monkeypatch.delenv("INTERACTIVE_MODEL", raising=False)
    arguments = [str(tmp_path / "scene.mp4"), "--frame", "1", "--box", "1", "1", "9", "9", "--engine", "sam"]
    told = CliRunner().invoke(track_box, [*arguments, "--out", str(tmp_path / "out.json")])
    assert told.exit_code == 1
    assert "INTERACTIVE_MODEL is not set." in told.output
