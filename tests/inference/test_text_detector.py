"""Zero-shot detectors, tiny and randomly initialised, in their real formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.core.errors import ConfigError, WeightsError
from ml_backend.core.settings import Settings
from ml_backend.core.types import Image
from ml_backend.embeddings.hub import read_text_detector
from ml_backend.inference.offline import load_classifier
from ml_backend.inference.text_detector import TextDetector, use_text_detector
from ml_backend.labeling.modes import classifier_models
from tests.tiny_text_detector import save_tiny_text_detector

KINDS = ("owlv2", "grounding-dino", "omdet-turbo")
VEST, FORKLIFT = ("yellow safety vest", "high-visibility jacket"), ("forklift",)
Make = Callable[..., Settings]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_tiny_text_detector(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def images() -> list[Image]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (90, 160, 3), np.uint8) for _ in range(5)]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_find_what_single_frames_do(
    folders: dict[str, Path], images: list[Image], settings: Make, kind: str
) -> None:
    detector = TextDetector(read_text_detector(folders[kind]), settings(device="cpu"))
    assert detector.batch < len(images)
    found = detector.detect(images, [VEST, FORKLIFT], 0.01)
    assert len(found) == len(images)
    for image, detections in zip(images, found, strict=True):
        assert len(detections)
        (alone,) = detector.detect([image], [VEST, FORKLIFT], 0.01)
        np.testing.assert_allclose(detections.conf, alone.conf, atol=1e-4)
        np.testing.assert_allclose(detections.xyxy, alone.xyxy, atol=0.1)
        assert (np.diff(detections.conf) <= 0).all()
        assert set(detections.class_id.tolist()) <= {0, 1}
    tall = np.concatenate([images[0], images[1]])
    for image, detections in zip([images[0], tall], detector.detect([images[0], tall], [VEST], 0.01), strict=True):
        height, width = image.shape[:2]
        assert ((detections.xyxy >= 0) & (detections.xyxy <= [width, height, width, height])).all()
    assert sum(detector.memory_bytes.values()) > 10_000
    assert not any(map(len, detector.detect(images, [VEST], 1.0)))


def test_a_box_has_the_label_whose_description_fits_best(
    folders: dict[str, Path], images: list[Image], settings: Make
) -> None:
    detector = TextDetector(read_text_detector(folders["owlv2"]), settings(device="cpu"))
    prompts = [VEST, FORKLIFT, ("crane", "person")]
    (found,) = detector.detect(images[:1], prompts, 0.01)
    (turned,) = detector.detect(images[:1], [prompts[2], prompts[0], prompts[1]], 0.01)
    np.testing.assert_allclose(found.conf, turned.conf, atol=1e-5)
    assert ((found.class_id + 1) % 3).tolist() == turned.class_id.tolist()


def test_tokens_of_a_text_belong_to_its_descriptions(
    folders: dict[str, Path], images: list[Image], settings: Make
) -> None:
    import torch

    def known_scores(module: torch.nn.Module, _: Any, output: Any) -> Any:
        if type(module).__name__ != "GroundingDinoForObjectDetection":
            return None
        # [CLS] yellow safety vest . high - visibility jacket . forklift . [SEP]
        output.logits.fill_(-10)
        for box, (token, logit) in enumerate(((2, 3.0), (7, 2.0), (10, 1.0), (4, 5.0), (0, 5.0))):
            output.logits[0, box, token] = logit
            output.pred_boxes[0, box] = torch.tensor([0.1 + 0.2 * box, 0.5, 0.1, 0.2])
        return output

    detector = TextDetector(read_text_detector(folders["grounding-dino"]), settings(device="cpu"))
    hook = torch.nn.modules.module.register_module_forward_hook(known_scores)
    try:
        (found,) = detector.detect(images[:1], [VEST, FORKLIFT], 0.3)
    finally:
        hook.remove()
    assert found.class_id.tolist() == [0, 0, 1]
    np.testing.assert_allclose(found.conf, 1 / (1 + np.exp([-3, -2, -1])), rtol=1e-5)
    np.testing.assert_allclose(found.xyxy[0], [8, 36, 24, 54], atol=1e-3)
    np.testing.assert_allclose(found.xyxy[2], [72, 36, 88, 54], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_labels_and_any_words(
    folders: dict[str, Path], images: list[Image], settings: Make, kind: str
) -> None:
    detector = TextDetector(read_text_detector(folders[kind]), settings(device="cpu"))
    many = [(f"person {number}.5 m", "안전모") for number in range(20)]
    (found,) = detector.detect(images[:1], many, 0.01)
    assert found.class_id.max(initial=0) < 20
    assert len(detector.detect(images[:1], [("yellow safety vest " * 6,)] * 16, 0.01)[0]), "more than fit into a call"
    endless = [("yellow " * 400,)]
    if kind == "grounding-dino":
        with pytest.raises(ConfigError, match="too long"):
            detector.detect(images[:1], endless, 0.01)
    else:  # cut
        assert len(detector.detect(images[:1], endless, 0.0)[0])


def test_code_in_a_folder_is_not_run(
    folders: dict[str, Path], settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "owlv2"
    shutil.copytree(folders["owlv2"], folder)
    content = json.loads((folder / "processor_config.json").read_text())
    content |= {"processor_class": "Foreign", "auto_map": {"AutoProcessor": "foreign.Foreign"}}
    (folder / "processor_config.json").write_text(json.dumps(content))
    (folder / "foreign.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Foreign: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask
    with pytest.raises(WeightsError), use_text_detector(read_text_detector(folder), settings(device="cpu")):
        pass
    assert not (tmp_path / "ran").exists()


def test_models_stay_loaded(folders: dict[str, Path], settings: Make) -> None:
    resolved, values = read_text_detector(folders["owlv2"]), settings(device="cpu")
    with use_text_detector(resolved, values) as first, use_text_detector(resolved, values) as second:
        assert first is second


def test_what_is_used_and_why(folders: dict[str, Path], settings: Make, tmp_path: Path) -> None:
    def models(model: Path | str, **more: str) -> Any:
        return classifier_models(settings(open_vocabulary_model=str(model), **more), "open_vocabulary")

    found = models(folders["owlv2"])
    assert found.text_detector.name == "owlv2"
    everywhere = settings(open_vocabulary_model=str(folders["owlv2"]), detector="open_vocabulary")
    assert classifier_models(everywhere, "yolo").text_detector == found.text_detector
    assert classifier_models(settings(open_vocabulary_model=str(folders["owlv2"])), "yolo").text_detector is None
    for missing, says in (("", "set OPEN_VOCABULARY_MODEL"), ("google/owlv2-base-patch16", "is not available")):
        without = models(missing)
        assert without.text_detector is None
        assert says in without.notes[-1]
    missing, patterns = load_classifier(settings(mode="open_vocabulary", embedder="fallback"), None, "")[2]
    assert "set OPEN_VOCABULARY_MODEL" in missing
    assert "--patterns" in patterns
    with pytest.raises(WeightsError, match="does not exist"):
        models(tmp_path / "nowhere")
    (tmp_path / "yolov8s-world.pt").write_bytes(b"PK")
    with pytest.raises(WeightsError, match="text encoder"):
        models(tmp_path / "yolov8s-world.pt")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(WeightsError, match="does not find objects by text"):
        models(other)
    (other / "config.json").write_bytes((folders["owlv2"] / "config.json").read_bytes())
    (other / "model.safetensors").write_bytes((folders["grounding-dino"] / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError), use_text_detector(read_text_detector(other), settings(device="cpu")):
        pass
