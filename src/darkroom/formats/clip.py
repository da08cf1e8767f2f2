"""A whole CLIP out, in the form of transformers' CLIPModel: both encoders, their scale, tokenizer and processor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import whole_folder, write_json
from ..models.config import TextEncoderConfig, VisionEncoderConfig
from .save import State, TokenizerSource, entries_of, write_tokenizer
from .writer import Entry, write_safetensors

if TYPE_CHECKING:
    import torch

MEAN = (0.48145466, 0.4578275, 0.40821073)  # that CLIP's pictures are normalised by
STD = (0.26862954, 0.26130258, 0.27577711)


def save_clip(
    path: str | Path,
    *,
    text_encoder: State,
    text_encoder_config: TextEncoderConfig,
    image_encoder: State,
    image_encoder_config: VisionEncoderConfig,
    logit_scale: float,
    tokenizer: TokenizerSource,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a CLIP as the folder that transformers' CLIPModel and CLIPProcessor open; whole or not at all.

    States are in native names, the text encoder's with its projection; `logit_scale` is the logarithm of the scale. An
    older folder of a model at `path` is replaced. Raises CheckpointError.
    """
    target = Path(os.path.abspath(path))
    side = image_encoder_config.image_size
    entries = [
        *entries_of("text_encoder_2", "diffusers", text_encoder, text_encoder_config, dtype, target),
        *entries_of("image_encoder", "diffusers", image_encoder, image_encoder_config, dtype, target),
        _scale(logit_scale),
    ]
    with whole_folder(target, "config.json") as draft:
        write_json(draft / "config.json", {
            "architectures": ["CLIPModel"], "model_type": "clip", "logit_scale_init_value": 2.6592,
            "projection_dim": image_encoder_config.projection_dim, "torch_dtype": "float32",
            "text_config": text_encoder_config.to_diffusers(), "vision_config": image_encoder_config.to_diffusers(),
        })  # fmt: skip
        write_json(draft / "preprocessor_config.json", {
            "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 3,
            "size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": {"height": side, "width": side},
            "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(MEAN),
            "image_std": list(STD),
        })  # fmt: skip
        write_tokenizer(tokenizer, draft)
        write_safetensors(draft / "model.safetensors", entries, {"format": "pt"})
    return target


def _scale(logit_scale: float) -> Entry:
    import torch

    return Entry("logit_scale", (), torch.float32, lambda: torch.tensor(logit_scale))
