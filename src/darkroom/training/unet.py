"""The networks and the schedule of a U-Net that is trained from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..models.config import TextEncoderConfig, UNetConfig
from ..models.text_encoder import TextEncoder
from ..models.unet import UNet
from ..prompts.tokenizer import Tokenizer
from .loop import step_seed
from .stage import PictureRecipe

# Betas of Stable Diffusion.
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}

# What suits a small model (docs/LOG.md): guidance spoils counts, at the usual 7.5 most of all; refinement at the usual
# 0.3 smears.
DEFAULTS: dict[str, float] = {"steps": 20, "guidance_scale": 2.0, "refine_strength": 0.15}


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetRecipe(PictureRecipe):
    """A U-Net from nothing, and a text encoder beside it, on the built-in scenes or on one's own pictures."""

    size: int = 128
    widths: tuple[int, ...] = (64, 128, 192)
    attention_levels: tuple[bool, ...] = (False, True, True)
    layers: int = 1
    heads: int = 4
    groups: int = 16
    text_width: int = 192
    text_layers: int = 2
    text_encoder: str = ""  # a model's or a CLIP's folder, whose text encoder is taken as it is; none: one learns
    vocabulary: int = 4096  # at most that many tokens are made from the captions (the built-in scenes have their own)
    scenes: int = 40_000
    weight: str = "snr-plus-one"
    # Zero terminal signal-to-noise ratio and v-prediction (Lin et al. 2023, arXiv 2305.08891): without them a model
    # can't paint a flat black picture.
    prediction: str = "v_prediction"  # what the network answers; or "epsilon", "sample", "flow"
    zero_snr: bool = True  # the last timestep is pure noise (a flow model's always is)
    shift: float = 1.0  # of a flow model's times: above 1 high noise comes more often
    save_dtype: str = "float16"  # of the result; or "float32", "bfloat16"


def scheduler_config(recipe: UNetRecipe) -> dict[str, Any]:
    """The `scheduler_config.json` of a recipe's model."""
    if recipe.prediction == "flow":
        return {
            "_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 1000,
            "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": recipe.shift,
            "steps_offset": 1,
        }  # fmt: skip
    changed = {"prediction_type": recipe.prediction, "rescale_betas_zero_snr": recipe.zero_snr}
    return {**SCHEDULER_CONFIG, **changed}


def networks(
    recipe: UNetRecipe, tokenizer: Tokenizer, latent_channels: int = 4, downscale: int = 8
) -> tuple[UNet, TextEncoder]:
    """The untrained networks of a recipe. Raises ValueError for numbers that no network can have."""
    levels = len(recipe.widths)
    torch.manual_seed(step_seed(recipe.seed, -1))
    unet = UNet(UNetConfig(
        sample_size=recipe.size // downscale, in_channels=latent_channels, out_channels=latent_channels,
        block_out_channels=recipe.widths, layers_per_block=(recipe.layers,) * levels,
        attention_levels=recipe.attention_levels, only_cross_attention=(False,) * levels,
        transformer_layers=(1,) * levels, heads=(recipe.heads,) * levels, cross_attention_dim=recipe.text_width,
        norm_num_groups=recipe.groups,
    ))  # fmt: skip
    text_encoder = TextEncoder(TextEncoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=recipe.text_width, intermediate_size=4 * recipe.text_width,
        num_hidden_layers=recipe.text_layers, num_attention_heads=recipe.heads,
        max_position_embeddings=tokenizer.max_length, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id, projection_dim=recipe.text_width,
    ))  # fmt: skip
    with torch.no_grad():
        # Every residual branch begins as nothing, so that the first gradients go straight through.
        for name, p in unet.named_parameters():
            if ".conv2." in name or ".proj_out." in name or name.startswith("conv_out."):
                p.zero_()
    return unet, text_encoder
