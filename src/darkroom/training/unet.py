"""Training a U-Net and its text encoder together, on cached latents of the built-in scenes.

Shapes: N rows, C latent channels, h w latent size, T tokens, D text width, P scenes in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from darkroom.data.scenes import draw_scene
from darkroom.diffusion.condition import Batch
from darkroom.diffusion.denoiser import Denoiser
from darkroom.diffusion.schedule import Schedule
from darkroom.models.config import TextEncoderConfig, UNetConfig
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet
from darkroom.prompts.tokenizer import Tokenizer

from .loop import LoopConfig, step_seed
from .objective import denoising_loss
from .parallel import Share

# Zero terminal signal-to-noise ratio and v-prediction (Lin et al. 2023, arXiv 2305.08891): without them a model
# can't paint a flat black picture. Betas of Stable Diffusion.
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

# What suits a model of this kind (docs/LOG.md): guidance at the usual 7.5 spoils counts.
DEFAULTS: dict[str, float] = {"steps": 20, "guidance_scale": 3.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetRecipe(LoopConfig):
    """A U-Net and a text encoder from nothing, on the built-in scenes."""

    widths: tuple[int, ...] = (64, 128, 192)
    attention_levels: tuple[bool, ...] = (False, True, True)
    layers: int = 1
    heads: int = 4
    groups: int = 16
    text_width: int = 192
    text_layers: int = 2
    scenes: int = 40_000  # scenes whose latents are cached
    dropout: float = 0.1  # fraction of captions replaced by the empty one, for guidance
    gamma: float = 5.0  # where the loss's weight is cut off: the largest SNR + 1 that counts


def networks(recipe: UNetRecipe, tokenizer: Tokenizer) -> tuple[UNet, TextEncoder]:
    """The untrained networks of a recipe."""
    levels = len(recipe.widths)
    torch.manual_seed(step_seed(recipe.seed, -1))
    unet = UNet(UNetConfig(
        sample_size=16, block_out_channels=recipe.widths, layers_per_block=(recipe.layers,) * levels,
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


@dataclass
class UNetStage:
    """The loop's view of the U-Net's and the text encoder's training."""

    config: UNetRecipe
    unet: UNet
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    latents: Tensor  # [P, C, h, w] float16
    schedule: Schedule = field(default_factory=lambda: Schedule.from_config(SCHEDULER_CONFIG))

    def __post_init__(self) -> None:
        captions = [draw_scene(self.config.seed, i).caption for i in range(len(self.latents))]
        self.ids = token_table(self.tokenizer, captions)
        self.empty = torch.tensor(self.tokenizer.padded(""))
        self.denoiser = Denoiser(self.unet, self.schedule)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def batch(self, step: int, share: Share) -> tuple[Tensor, Tensor]:
        """Latents [N, C, h, w] and token ids [N, T]."""
        rng = np.random.default_rng((self.config.seed, step, 3))
        rows = torch.from_numpy(rng.integers(len(self.latents), size=self.config.batch_size))
        ids = self.ids[rows]
        ids[torch.from_numpy(rng.random(len(rows)) < self.config.dropout)] = self.empty
        return self.latents[share.of(rows)].float(), share.of(ids)

    def loss(self, batch: tuple[Tensor, Tensor], step: int, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        x0, ids = (y.to(c.device) for y in batch)
        text = self.text_encoder(ids)
        return denoising_loss(self.denoiser, x0, Batch(text.float()), share, self.weight)

    def weight(self, sigma: Tensor) -> Tensor:
        """1 where noise rules, less where it is nearly gone: min(snr + 1, gamma) / (snr + 1).

        The SNR + 1 weighting of Salimans & Ho 2022 (arXiv 2202.00512, sec. 4), cut off at gamma as Min-SNR is (Hang et
        al. 2023, arXiv 2303.09556, eq. 8). Min-SNR itself falls to nothing at high noise, where counts and places
        are decided.
        """
        snr_1 = sigma**-2 + 1
        return snr_1.clamp(max=self.config.gamma) / snr_1


def token_table(tokenizer: Tokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids [P, T] of some captions."""
    known: dict[str, list[int]] = {}
    return torch.tensor([known[c] if c in known else known.setdefault(c, tokenizer.padded(c)) for c in captions])
