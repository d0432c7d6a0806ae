"""Embedders: the same numbers as the libraries' own models, whatever the batch, the crop and the memory."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ml_backend.core.errors import WeightsError
from ml_backend.core.settings import Settings
from ml_backend.embeddings import embedder as embedder_module
from ml_backend.embeddings.clip import ClipEmbedder
from ml_backend.embeddings.crops import letterbox
from ml_backend.embeddings.dinov2 import Dinov2Embedder
from ml_backend.embeddings.efficientnet import EfficientNetEmbedder
from ml_backend.embeddings.embedder import TorchEmbedder
from ml_backend.embeddings.hub import RECIPE
from tests.builders import ROOT
from tests.model_builders import CLIP_MEAN, CLIP_STD, make_tiny_clip, make_tiny_dinov2

MakeSettings = Callable[..., Settings]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "dinov2": make_tiny_dinov2(root / "dinov2"),
        "registers": make_tiny_dinov2(root / "registers", registers=3),
        "clip": make_tiny_clip(root / "clip"),
    }


KINDS = ["dinov2", "registers", "clip", "fallback"]


def load(kind: str, folders: dict[str, Path], settings: Settings) -> TorchEmbedder:
    if kind == "fallback":
        return EfficientNetEmbedder(settings)
    return (ClipEmbedder if kind == "clip" else Dinov2Embedder)(folders[kind], settings)


def crops(n: int, height: int = 80, width: int = 60, seed: int = 0) -> list[np.ndarray]:
    """Coloured blocks: something to see for a network of random weights."""
    blocks = np.random.default_rng(seed).integers(0, 255, (n, height // 20, width // 20, 3), np.uint8)
    return [np.kron(b, np.ones((20, 20, 1), np.uint8)) for b in blocks]


def unit(rows: Any) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def network_input(images: list[np.ndarray], size: int, mean: Any, std: Any) -> Any:
    """What the libraries' own preprocessing makes of an image that is already padded to a square."""
    import torch

    fill = tuple(round(255 * value) for value in mean)
    squares = [letterbox(image, size, fill[::-1])[..., ::-1] / 255 for image in images]  # type: ignore[arg-type]
    return torch.tensor(np.stack([(s - mean) / std for s in squares]).transpose(0, 3, 1, 2), dtype=torch.float32)


def watch_network(monkeypatch: pytest.MonkeyPatch, method: Any, see: Callable[[Any], object]) -> None:
    """Let ``see`` have what a library's network is given; what it raises, the network raises.

    Args:
        monkeypatch: pytest's.
        method: of the network's class, ``Dinov2Model.forward``.
        see: is called first.
    """

    def watched(self: Any, *pixels: Any, **named: Any) -> Any:
        see(next(iter((*pixels, *named.values()))))
        return method(self, *pixels, **named)

    owner, _, name = method.__qualname__.rpartition(".")
    monkeypatch.setattr(getattr(sys.modules[method.__module__], owner), name, watched)


def damage_weights(folder: Path, copy: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a model's folder with other weights."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(folder, copy))
    file = next(folder.glob("*.safetensors"))
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dinov2", "registers"])
def test_dinov2_is_transformers_own_forward(kind: str, folders: dict[str, Path], settings: MakeSettings) -> None:
    import torch
    from transformers import Dinov2Model, Dinov2WithRegistersModel

    embedder = Dinov2Embedder(folders[kind], settings(device="cpu"))
    images = crops(3)
    library = (Dinov2WithRegistersModel if kind == "registers" else Dinov2Model).from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        tokens = library(network_input(images, 224, *IMAGENET)).last_hidden_state.numpy()
    registers = 3 if kind == "registers" else 0
    assert tokens.shape == (3, 1 + registers + 16 * 16, 32)
    whole, parts = unit(tokens[:, 0]), unit(tokens[:, 1 + registers :].mean(1))
    assert embedder.dim == 64
    assert np.allclose(embedder.embed(images), unit(np.concatenate([whole, parts], 1)), atol=1e-4)


def test_clip_is_open_clips_own(folders: dict[str, Path], settings: MakeSettings) -> None:
    import open_clip
    import torch

    embedder = ClipEmbedder(folders["clip"], settings(device="cpu"))
    source = f"local-dir:{folders['clip']}"
    library, tokenizer = open_clip.create_model(source).eval(), open_clip.get_tokenizer(source)
    images, prompts = crops(3), ["a photo of a dog", "", "Hundötter 🐕", "word " * 200]
    with torch.no_grad():
        seen = library.encode_image(network_input(images, 32, CLIP_MEAN, CLIP_STD), normalize=True).numpy()
        read = library.encode_text(tokenizer(prompts), normalize=True).numpy()
    assert embedder.dim == 24
    assert np.allclose(embedder.embed(images), seen, atol=1e-4)
    assert np.allclose(embedder.embed_text(prompts), read, atol=1e-5)
    assert embedder.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)
    assert embedder.embed_text([]).shape == (0, 24)


def test_a_square_picture_is_preprocessed_as_open_clip_does(
    folders: dict[str, Path], settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    from open_clip.model import CLIP
    from PIL import Image as Pillow

    square = cv2.resize(crops(1, 80, 80)[0], (320, 320), interpolation=cv2.INTER_CUBIC)
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folders['clip']}")
    theirs = transform(Pillow.fromarray(square[..., ::-1])).numpy()
    seen: list[Any] = []
    watch_network(monkeypatch, CLIP.encode_image, seen.append)
    ClipEmbedder(folders["clip"], settings(device="cpu")).embed([square])
    (ours,) = (pixels.numpy() for pixels in seen)
    assert ours.shape == (1, *theirs.shape)
    assert np.abs(ours[0] - theirs).mean() < 0.05  # area against bicubic scaling


def bus() -> np.ndarray:
    import ultralytics

    image = cv2.imread(str(Path(ultralytics.__file__).parent / "assets" / "bus.jpg"))
    assert image is not None
    return image


@pytest.mark.slow
def test_the_small_embedders_weights_are_where_they_belong(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet's classes by number: 654 minibus, 779 school bus, 829 streetcar, 874 trolleybus."""
    from timm.models.efficientnet import EfficientNet

    found: list[Any] = []
    head = EfficientNet.forward_head

    def with_logits(self: Any, features: Any, pre_logits: bool = False) -> Any:
        found.append(head(self, features)[0])
        return head(self, features, pre_logits=pre_logits)

    monkeypatch.setattr(EfficientNet, "forward_head", with_logits)
    EfficientNetEmbedder(settings(device="cpu")).embed([bus()])
    (logits,) = found
    assert int(logits.argmax()) in (654, 779, 874)
    assert {654, 829, 874} <= set(logits.topk(5).indices.tolist())


def test_the_small_embedder_knows_a_thing_again(settings: MakeSettings) -> None:
    embedder = EfficientNetEmbedder(settings(device="cpu"))
    image = bus()
    coach, people = image[220:760, 10:800], image[390:900, 50:250]
    smaller = cv2.resize(coach, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    a, b, c, d = embedder.embed([coach, smaller, coach[:, ::-1], people])
    assert min(a @ b, a @ c) > 0.8 > a @ d


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_neither_batch_nor_neighbours_matter(
    kind: str, folders: dict[str, Path], settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "EMBED_BATCH", 3)
    images = [*crops(3), *crops(2, 200, 40), *crops(2, 40, 120)]
    embedder = load(kind, folders, settings(device="cpu"))
    together = embedder.embed(images)
    assert together.shape == (7, embedder.dim)
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embedder.embed([image]) for image in images])
    assert np.allclose(together, alone, atol=1e-4)
    assert np.allclose(embedder.embed(images[::-1]), alone[::-1], atol=1e-4)
    assert len(np.unique(together.round(3), axis=0)) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_crops_of_every_kind(kind: str, folders: dict[str, Path], settings: MakeSettings) -> None:
    embedder = load(kind, folders, settings(device="cpu"))
    empty = embedder.embed([])
    assert (empty.shape, empty.dtype) == ((0, embedder.dim), np.float32)
    odd = [
        np.full((1, 1, 3), 200, np.uint8),
        np.zeros((50, 50, 3), np.uint8),
        np.full((70, 30, 3), 128, np.uint8),  # grey: nothing to see
        np.full((30, 70, 3), 255, np.uint8),
        np.zeros((4000, 3000, 3), np.uint8),
        crops(1, 1000, 20)[0],
        np.asfortranarray(crops(1)[0]),
        crops(1)[0][:, ::-1],  # a view that runs backwards
    ]
    found = embedder.embed(odd)
    assert np.isfinite(found).all()
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.allclose(found[6], embedder.embed(crops(1))[0], atol=1e-5)
    with pytest.raises(ValueError, match="expected a crop of shape"):
        embedder.embed([np.zeros((0, 4, 3), np.uint8)])


@pytest.mark.parametrize("kind", KINDS)
def test_identity(kind: str, folders: dict[str, Path], settings: MakeSettings, tmp_path: Path) -> None:
    import hashlib
    import shutil

    embedder = load(kind, folders, settings(device="cpu"))
    name = {"dinov2": "dinov2-32", "registers": "dinov2-reg-32", "clip": "clip-24", "fallback": "efficientnet_lite0"}
    if kind == "fallback":
        assert embedder.model_id == f"efficientnet_lite0-57934424-{RECIPE}"
        return
    weights = next(folders[kind].glob("*.safetensors")).read_bytes()
    assert embedder.model_id == f"{name[kind]}-{hashlib.sha256(weights).hexdigest()[:8]}-{RECIPE}"
    elsewhere = {kind: Path(shutil.copytree(folders[kind], tmp_path / "elsewhere"))}
    assert load(kind, elsewhere, settings(device="cpu")).model_id == embedder.model_id
    make = make_tiny_clip if kind == "clip" else make_tiny_dinov2
    assert load(kind, {kind: make(tmp_path / "other", seed=1)}, settings(device="cpu")).model_id != embedder.model_id


def fill_device(
    monkeypatch: pytest.MonkeyPatch, method: Any, room: int, message: str = "CUDA out of memory. Tried 2 GiB"
) -> list[int]:
    """Leave room for a few pictures only; return the list of the batches' sizes, which grows."""
    sizes: list[int] = []

    def count(pixels: Any) -> None:
        sizes.append(len(pixels))
        if len(pixels) > room:
            raise RuntimeError(message)

    watch_network(monkeypatch, method, count)
    return sizes


def test_a_full_device_gets_smaller_batches(
    folders: dict[str, Path], settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Dinov2Model

    embedder = Dinov2Embedder(folders["dinov2"], settings(device="cpu"))
    images = crops(9)
    expected = embedder.embed(images)
    sizes = fill_device(monkeypatch, Dinov2Model.forward, room=2)
    assert np.allclose(embedder.embed(images), expected, atol=1e-4)
    assert sizes == [8, 4, 2, 2, 2, 2, 1]


def test_a_device_without_any_room_is_left_for_the_cpu(
    folders: dict[str, Path], settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import Dinov2Model

    images = crops(3)
    expected = Dinov2Embedder(folders["dinov2"], settings(device="cpu")).embed(images)
    # "meta" stands for a GPU: a device of torch that is not the CPU and exists everywhere. Only weights do not come
    # back from it, and stay where they are.
    meta, move = "meta", torch.nn.Module.to
    monkeypatch.setattr(embedder_module, "select_device", lambda name: meta)
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, **options: self if options["device"] == meta else move(self, **options)
    )
    monkeypatch.setattr(embedder_module, "EMBED_BATCH", 2)
    embedder = Dinov2Embedder(folders["dinov2"], settings())
    assert embedder.device == "meta"
    sizes: list[int] = []

    def count(pixels: Any) -> None:
        if pixels.device.type == meta:
            sizes.append(len(pixels))
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    watch_network(monkeypatch, Dinov2Model.forward, count)
    assert np.allclose(embedder.embed(images), expected, atol=1e-4)
    assert sizes == [2, 1]
    assert embedder.device == "cpu"


def test_texts_need_memory_too(
    folders: dict[str, Path], settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip.model import CLIP

    embedder = ClipEmbedder(folders["clip"], settings(device="cpu"))
    prompts = [f"number {i}" for i in range(5)]
    expected = embedder.embed_text(prompts)
    sizes = fill_device(monkeypatch, CLIP.encode_text, room=2)
    assert np.allclose(embedder.embed_text(prompts), expected, atol=1e-5)
    assert sizes == [5, 4, 2, 2, 1]


@pytest.mark.parametrize("message", ["shape mismatch", "can't allocate memory: you tried to allocate 9 bytes"])
def test_what_a_smaller_batch_cannot_cure_comes_through(
    message: str, folders: dict[str, Path], settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Dinov2Model

    embedder = Dinov2Embedder(folders["dinov2"], settings(device="cpu"))
    fill_device(monkeypatch, Dinov2Model.forward, room=0, message=message)
    with pytest.raises(RuntimeError, match=message):
        embedder.embed(crops(2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_says_the_same(
    kind: str, folders: dict[str, Path], settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but computed by the CPU."""
    single = load(kind, folders, settings(device="cpu"))
    images = crops(3)
    expected = single.embed(images)
    monkeypatch.setattr(embedder_module, "FP16_DEVICES", {"cpu"})
    embedder = load(kind, folders, settings(device="cpu"))
    found = embedder.embed(images)
    assert embedder.memory_bytes["cpu"] == pytest.approx(single.memory_bytes["cpu"] / 2, rel=0.01)
    assert found.dtype == np.float32
    assert (found * expected).sum(1).min() > 0.999
    assert not np.array_equal(found, expected)
    if isinstance(embedder, ClipEmbedder):
        assert np.isfinite(embedder.embed_text(["a dog"])).all()


def test_what_half_precision_cannot_hold_is_computed_in_single(
    folders: dict[str, Path],
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The weights are within fp16's range; what comes of them is not.
    folder = damage_weights(folders["dinov2"], tmp_path / "large", lambda state: state["layernorm.weight"].fill_(6e4))
    images = crops(2)
    single = Dinov2Embedder(folder, settings(device="cpu"))
    expected = single.embed(images)
    monkeypatch.setattr(embedder_module, "FP16_DEVICES", {"cpu"})
    embedder = Dinov2Embedder(folder, settings(device="cpu"))
    assert embedder.memory_bytes["cpu"] < single.memory_bytes["cpu"]
    with caplog.at_level(logging.WARNING):
        assert (embedder.embed(images) * expected).sum(1).min() > 0.999
        embedder.embed(images)
    assert embedder.memory_bytes == single.memory_bytes
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"{embedder.model_id} exceeds the range of fp16"
    ]


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_damaged_numbers_are_never_passed_on(
    kind: str, folders: dict[str, Path], settings: MakeSettings, tmp_path: Path
) -> None:
    def lose(state: dict[str, Any]) -> None:
        for tensor in state.values():
            if tensor.ndim > 1:
                tensor[:] = float("nan")

    folder = damage_weights(folders[kind], tmp_path / kind, lose)
    with pytest.raises(WeightsError, match="not finite"):
        load(kind, {kind: folder}, settings(device="cpu")).embed(crops(1))


def test_rows_without_a_direction_are_an_error(
    folders: dict[str, Path], settings: MakeSettings, tmp_path: Path
) -> None:
    folder = damage_weights(folders["clip"], tmp_path / "zero", lambda state: state["visual.proj"].zero_())
    with pytest.raises(WeightsError, match="zero or not finite"):
        ClipEmbedder(folder, settings(device="cpu")).embed(crops(1))


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def drop_tensors(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    save_file(dict(list(state.items())[:-3]), file, {"format": "pt"})


DAMAGE: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "no config": (lambda config, _: config.unlink(), "has no .*config.json"),
    "config of nonsense": (lambda config, _: config.write_text("<html>"), "is damaged"),
    "config of a list": (lambda config, _: config.write_text("[]"), "not a JSON object"),
    "no weights": (lambda _, weights: weights.unlink(), "has no weights"),
    "empty weights": (lambda _, weights: weights.write_bytes(b""), "not a safetensors file"),
    "a web page": (lambda _, weights: weights.write_text("<html>404</html>" * 99), "not a safetensors file"),
    "half of it": (lambda _, weights: weights.write_bytes(weights.read_bytes()[:90_000]), "is damaged.*covered"),
    "a pointer": (
        lambda _, weights: weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "not a safetensors file .*git lfs pull",
    ),
    "tensors missing": (lambda _, weights: drop_tensors(weights), "lack 3 tensors|Missing key"),
}


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders(
    kind: str, damage: str, folders: dict[str, Path], settings: MakeSettings, tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
    config = folder / ("open_clip_config.json" if kind == "clip" else "config.json")
    change, message = DAMAGE[damage]
    change(config, next(folder.glob("*.safetensors")))
    with pytest.raises(WeightsError, match=message) as failure:
        load(kind, {kind: folder}, settings(device="cpu"))
    assert failure.value.hint
    assert str(folder) in failure.value.message


def test_folders_of_another_kind(folders: dict[str, Path], settings: MakeSettings, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(WeightsError, match=r"has no config\.json.*DINOV2_MODEL"):
        Dinov2Embedder(folders["clip"], settings())
    with pytest.raises(WeightsError, match=r"has no open_clip_config\.json.*CLIP_MODEL"):
        ClipEmbedder(folders["dinov2"], settings())
    with pytest.raises(WeightsError, match=r"does not exist.*DINOV2_MODEL"):
        Dinov2Embedder(tmp_path / "gone", settings())
    with pytest.raises(WeightsError, match=r"is a file.*CLIP_MODEL"):
        ClipEmbedder(folders["clip"] / "open_clip_config.json", settings())
    other = Path(shutil.copytree(folders["dinov2"], tmp_path / "bert"))
    change_json(other / "config.json", model_type="bert")
    with pytest.raises(WeightsError, match="type 'bert', not DINOv2"):
        Dinov2Embedder(other, settings())
    other = Path(shutil.copytree(folders["clip"], tmp_path / "roberta"))
    change_json(other / "open_clip_config.json", model_cfg={"vision_cfg": {}, "text_cfg": {"hf_model_name": "roberta"}})
    with pytest.raises(WeightsError, match=r"text tower .* built from roberta, which would have to be downloaded"):
        ClipEmbedder(other, settings())
    change_json(other / "open_clip_config.json", model_cfg=3)
    with pytest.raises(WeightsError, match="does not describe a CLIP model"):
        ClipEmbedder(other, settings())


def test_weights_of_another_size(folders: dict[str, Path], settings: MakeSettings, tmp_path: Path) -> None:
    import shutil

    for kind, config, values in (
        ("dinov2", "config.json", {"hidden_size": 64}),
        ("clip", "open_clip_config.json", {"model_cfg": {**_clip_config(folders), "embed_dim": 16}}),
    ):
        folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
        change_json(folder / config, **values)
        with pytest.raises(WeightsError, match="cannot be loaded"):
            load(kind, {kind: folder}, settings(device="cpu"))


def _clip_config(folders: dict[str, Path]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folders["clip"] / "open_clip_config.json").read_text())["model_cfg"]
    return config


class Explosive:
    """What unpickling would run."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('code of a pickle was run')",))


def test_pickles_are_never_run(folders: dict[str, Path], settings: MakeSettings, tmp_path: Path) -> None:
    import shutil

    import torch

    buffer = io.BytesIO()
    torch.save({"w": Explosive()}, buffer)
    for kind, name, message in (
        ("dinov2", "pytorch_model.bin", "pickled weights are code"),
        ("clip", "open_clip_pytorch_model.bin", "has no weights"),
    ):
        folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
        next(folder.glob("*.safetensors")).unlink()
        (folder / name).write_bytes(buffer.getvalue())
        with pytest.raises(WeightsError, match=message):
            load(kind, {kind: folder}, settings(device="cpu"))


def test_a_tokeniser_of_its_own(folders: dict[str, Path], settings: MakeSettings, tmp_path: Path) -> None:
    import shutil

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = Path(shutil.copytree(folders["clip"], tmp_path / "clip"))
    text = {**_clip_config(folders)["text_cfg"], "hf_tokenizer_name": "somebody/elses"}
    change_json(folder / "open_clip_config.json", model_cfg={**_clip_config(folders), "text_cfg": text})
    with pytest.raises(WeightsError, match="cannot be loaded") as failure:
        ClipEmbedder(folder, settings(device="cpu"))
    assert "tokeniser" in failure.value.hint
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "dog": 2, "cat": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    dog, cat, mouse, house = ClipEmbedder(folder, settings(device="cpu")).embed_text(["dog", "cat", "mouse", "house"])
    assert np.array_equal(mouse, house)
    assert not np.allclose(dog, cat, atol=1e-3)


def test_the_folders_own_normalisation(
    folders: dict[str, Path], settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from transformers import Dinov2Model

    folder = Path(shutil.copytree(folders["dinov2"], tmp_path / "half"))
    usual = Dinov2Embedder(folder, settings(device="cpu")).embed(crops(1))
    file = folder / "preprocessor_config.json"
    change_json(file, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    embedder = Dinov2Embedder(folder, settings(device="cpu"))
    seen: list[Any] = []
    watch_network(monkeypatch, Dinov2Model.forward, seen.append)
    assert not np.allclose(embedder.embed(crops(1)), usual, atol=1e-3)
    (pixels,) = seen
    assert np.allclose(pixels.numpy(), network_input(crops(1), 224, [0.5] * 3, [0.5] * 3))
    file.unlink()
    assert np.array_equal(Dinov2Embedder(folder, settings(device="cpu")).embed(crops(1)), usual)
    for wrong in ({"image_mean": [0.5]}, {"image_std": [0, 0, 0]}, {"image_mean": "x"}, {"image_mean": 3}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(WeightsError, match="no usable image_mean"):
            Dinov2Embedder(folder, settings(device="cpu"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("device", "message"), [("cuda:63", "not available"), ("toaster", "not a device name")])
def test_a_device_that_is_not_there(
    device: str, message: str, kind: str, folders: dict[str, Path], settings: MakeSettings
) -> None:
    with pytest.raises(WeightsError, match=message):
        load(kind, folders, settings(device=device))


@pytest.mark.slow
def test_loading_and_embedding_is_silent(folders: dict[str, Path]) -> None:
    code = f"""
import numpy as np
from ml_backend.core.settings import Settings
from ml_backend.embeddings.clip import ClipEmbedder
from ml_backend.embeddings.dinov2 import Dinov2Embedder
from ml_backend.embeddings.efficientnet import EfficientNetEmbedder
import logging
settings = Settings(_env_file=None, device="cpu")
crops = [np.zeros((9, 9, 3), np.uint8)]
Dinov2Embedder({str(folders["dinov2"])!r}, settings).embed(crops)
ClipEmbedder({str(folders["clip"])!r}, settings).embed_text(["a dog"])
EfficientNetEmbedder(settings).embed(crops)
assert logging.getLogger().handlers == [] and logging.getLogger().filters == []
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
