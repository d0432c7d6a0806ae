"""Tiny randomly initialised zero-shot detectors, saved in their real formats with tokenisers made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Words that the tokenisers know; others become single letters or unknown.
WORDS = ("yellow", "safety", "vest", "forklift", "crane", "person", "helmet")


def save_tiny_text_detector(kind: str, folder: Path) -> Path:
    """Save a model of a ``model_type`` with what prepares its input."""
    import torch

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    {"owlv2": _owlv2, "grounding-dino": _grounding_dino, "omdet-turbo": _omdet}[kind](folder)
    return folder


def _clip_tokenizer(folder: Path, length: int) -> Any:
    from transformers import CLIPTokenizerFast

    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    merges, tokens = [], [*letters, *(f"{letter}</w>" for letter in letters), ",</w>", ".</w>", ","]
    for word in WORDS:  # every word is one token: its letters are merged from the left
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge, joined = f"{parts[0]} {parts[1]}", parts[0] + parts[1]
            if merge not in merges:
                merges.append(merge)
            if joined not in tokens:
                tokens.append(joined)
            parts[:2] = [joined]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizerFast.from_pretrained(str(folder), model_max_length=length, pad_token="<|endoftext|>")


def _bert_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizerFast

    vocabulary = [f"[unused{number}]" for number in range(1100)]
    # The network knows the numbers of these four of BERT's tokens by heart.
    for token, number in (("[PAD]", 0), ("[UNK]", 100), ("[CLS]", 101), ("[SEP]", 102), (".", 1012), ("?", 1029)):
        vocabulary[number] = token
    vocabulary[1030 : 1030 + len(WORDS)] = WORDS
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return BertTokenizerFast.from_pretrained(str(folder))


def _owlv2(folder: Path) -> None:
    import transformers as hf

    tokenizer = _clip_tokenizer(folder, 16)
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.Owlv2Config(
        text_config={"vocab_size": len(tokenizer), "max_position_embeddings": 16, **size},
        vision_config={"image_size": 96, "patch_size": 16, **size},
        projection_dim=32,
    )
    hf.Owlv2ForObjectDetection(config).save_pretrained(folder)
    images = hf.Owlv2ImageProcessor(size={"height": 96, "width": 96})
    hf.Owlv2Processor(images, tokenizer).save_pretrained(folder)


def _swin() -> Any:
    import transformers as hf

    return hf.SwinConfig(
        image_size=64,
        window_size=2,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        out_indices=[2, 3, 4],
    )


def _grounding_dino(folder: Path) -> None:
    import transformers as hf

    tokenizer = _bert_tokenizer(folder)
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32}
    config = hf.GroundingDinoConfig(
        backbone_config=_swin(),
        text_config={"model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 2, **text},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=20,
    )
    hf.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = hf.GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    hf.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)


def _omdet(folder: Path) -> None:
    import transformers as hf

    tokenizer = _clip_tokenizer(folder, 77)
    text = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.OmDetTurboConfig(
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": len(tokenizer),
            "projection_dim": 48,
            "max_position_embeddings": 77,
            **text,
        },
        backbone_config=_swin(),
        use_timm_backbone=False,
        backbone=None,
        apply_layernorm_after_vision_backbone=False,
        image_size=64,
        text_projection_in_dim=48,
        text_projection_out_dim=48,
        task_encoder_hidden_dim=32,
        class_embed_dim=48,
        class_distance_type="cosine",
        encoder_hidden_dim=32,
        backbone_feat_channels=[32, 64, 128],
        encoder_in_channels=[32, 64, 128],
        decoder_hidden_dim=32,
        decoder_num_heads=2,
        decoder_num_layers=1,
        decoder_dim_feedforward=32,
        encoder_dim_feedforward=32,
        vision_features_channels=[32, 32, 32],
        num_queries=20,
    )
    hf.OmDetTurboForObjectDetection(config).save_pretrained(folder)
    images = hf.DetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False)
    hf.OmDetTurboProcessor(images, tokenizer).save_pretrained(folder)
