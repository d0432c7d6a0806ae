"""Tiny randomly initialised models of the SAM family, saved in their real format."""

from __future__ import annotations

from pathlib import Path

SIDE = 128  # of the input, pixels
_HIDDEN = 128


def save_tiny_sam(kind: str, folder: Path) -> Path:
    """Save a model of a ``model_type`` with what prepares its input."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    shared = {
        "prompt_encoder_config": {"hidden_size": _HIDDEN, "image_size": SIDE, "patch_size": 16},
        "mask_decoder_config": {"hidden_size": _HIDDEN, "mlp_dim": 64, "iou_head_hidden_dim": 32},
        "memory_attention_hidden_size": _HIDDEN,
        "memory_attention_num_layers": 1,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_hidden_size": _HIDDEN,
        "mask_downsampler_embed_dim": _HIDDEN,
        "memory_fuser_embed_dim": _HIDDEN,
        "memory_fuser_intermediate_dim": 32,
    }
    hiera = hf.Sam2HieraDetConfig(
        hidden_size=12,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 3, 1],
        embed_dim_per_stage=[12, 24, 48, 96],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[3],
    )
    vision = {
        "backbone_config": hiera,
        "backbone_channel_list": [96, 48, 24, 12],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": _HIDDEN,
    }
    size, masks = {"height": SIDE, "width": SIDE}, {"height": SIDE // 4, "width": SIDE // 4}
    model: hf.PreTrainedModel
    if kind == "sam3_tracker_video":
        vit = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        vit |= {"image_size": SIDE, "patch_size": 16, "pretrain_image_size": SIDE, "window_size": 4}
        config = hf.Sam3TrackerVideoConfig(
            vision_config={
                "model_type": "sam3_vision_model",
                "backbone_config": {"model_type": "sam3_vit_model", "global_attn_indexes": [0], **vit},
                "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
                "fpn_hidden_size": _HIDDEN,
            },
            image_size=SIDE,
            memory_attention_feed_forward_hidden_size=32,
            **shared,
        )
        model = hf.Sam3TrackerVideoModel(config)
        processor = hf.Sam3TrackerVideoProcessor(
            hf.Sam3ImageProcessor(size=size, mask_size=masks), hf.Sam2VideoVideoProcessor(size=size)
        )
    else:
        if kind == "edgetam_video":
            edge = {"memory_attention_mlp_hidden_size": 32, "memory_attention_rope_k_sizes": [4, 4]}
            edge |= {"perceiver_resampler_num_latents": 16, "perceiver_resampler_num_latents_2d": 16}
            model = hf.EdgeTamVideoModel(
                hf.EdgeTamVideoConfig(
                    vision_config={"model_type": "sam2_vision_model", **vision}, image_size=SIDE, **edge, **shared
                )
            )
        else:
            model = hf.Sam2VideoModel(
                hf.Sam2VideoConfig(
                    vision_config=hf.Sam2VisionConfig(**vision),
                    image_size=SIDE,
                    memory_attention_feed_forward_hidden_size=32,
                    **shared,
                )
            )
        processor = hf.Sam2VideoProcessor(
            hf.Sam2ImageProcessor(size=size, mask_size=masks), hf.Sam2VideoVideoProcessor(size=size)
        )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_tiny_first_sam(folder: Path) -> Path:
    """Save an image model of SAM's first version with what prepares its input."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    vit = {"hidden_size": 32, "output_channels": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32}
    vit |= {"image_size": SIDE, "patch_size": 16, "window_size": 4, "global_attn_indexes": [0], "num_pos_feats": 16}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.SamConfig(
        vision_config=vit,
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config=decoder | {"iou_head_hidden_dim": 32},
    )
    hf.SamModel(config).save_pretrained(folder)
    square, masks = {"height": SIDE, "width": SIDE}, {"height": SIDE // 4, "width": SIDE // 4}
    image_processor = hf.SamImageProcessor(
        size={"longest_edge": SIDE}, pad_size=square, mask_size={"longest_edge": SIDE // 4}, mask_pad_size=masks
    )
    hf.SamProcessor(image_processor).save_pretrained(folder)
    return folder
