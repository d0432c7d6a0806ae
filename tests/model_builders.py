"""Real DINOv2 and CLIP models of a toy's size with random weights, saved in the real formats."""

from __future__ import annotations

import json
from pathlib import Path

#: Larger than the models' own, so that even random weights tell pictures apart.
SPREAD = 0.5

CLIP_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def make_tiny_dinov2(path: Path, *, registers: int = 0, hidden_size: int = 32, seed: int = 0) -> Path:
    """A folder as transformers saves it; embeddings have ``2 * hidden_size`` numbers. 0.2 MB."""
    import torch
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    size = {
        "hidden_size": hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "initializer_range": SPREAD,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if registers:
            model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=registers, **size))
            model.embeddings.register_tokens.data.normal_()
        else:
            model = Dinov2Model(Dinov2Config(**size))
    model.save_pretrained(path)
    processor = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (path / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return path


def make_tiny_clip(path: Path, *, seed: int = 0) -> Path:
    """A folder as open_clip saves it; embeddings have 24 numbers. 7 MB.

    Args:
        path: is made.
        seed: of the weights.
    """
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(**CLIP_CONFIG)
        model.visual.conv1.weight.data.normal_(std=SPREAD)
        model.token_embedding.weight.data.normal_(std=SPREAD)
    path.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": CLIP_CONFIG, "preprocess_cfg": {"mean": CLIP_MEAN, "std": CLIP_STD}}
    (path / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path / "open_clip_model.safetensors")
    return path
