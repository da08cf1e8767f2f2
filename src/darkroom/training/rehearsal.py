"""The networks and one step of each kind of training, without values, for `memory.estimate`.

Shapes: N rows of a part, C latent channels, h w latent size, T tokens, D text width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from darkroom.adapters import init_lora
from darkroom.embedded import MODEL
from darkroom.formats.checkpoint import Checkpoint, open_checkpoint
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig, TinyAutoencoderConfig
from darkroom.models.controlnet import ControlNet, config_for
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.tiny_autoencoder import TinyAutoencoder
from darkroom.models.unet import UNet

from .autoencoder import AutoencoderRecipe
from .config import LoopConfig
from .finetune import FinetuneRecipe
from .inpainting import InpaintingRecipe
from .lora import LoraRecipe, chooser
from .memory import Estimate, estimate, without_values
from .tune import ControlNetRecipe, InversionRecipe, Vectors

Rehearsed = LoraRecipe | FinetuneRecipe | InversionRecipe | ControlNetRecipe


def rehearse(recipe: Any, model: str | None = None, world: int = 1) -> Estimate | None:
    """What a run by `recipe`, from `model` on, takes in each of `world` processes; None for a kind without a rehearsal.

    Raises CheckpointError for a model that can't be opened.
    """
    if isinstance(recipe, AutoencoderRecipe) and model is None and not recipe.adversarial and not recipe.perceptual:
        with without_values():
            return _autoencoder(recipe, world)
    if isinstance(recipe, Rehearsed):
        checkpoint = open_checkpoint(MODEL if model is None else model)
        with without_values():
            return _on_pictures(recipe, checkpoint, world)
    return None


def _rows(recipe: LoopConfig, world: int) -> int:
    return max(1, recipe.batch_size // (world * recipe.accumulate))


def _autoencoder(recipe: AutoencoderRecipe, world: int) -> Estimate:
    """An autoencoder from nothing, on crops (later batches of whole pictures have as many pixels)."""
    config = AutoencoderConfig(
        block_out_channels=recipe.widths, layers_per_block=recipe.layers, norm_num_groups=recipe.groups,
        latent_channels=recipe.latent_channels, sample_size=recipe.size,
    )  # fmt: skip
    network, pictures = Autoencoder(config), torch.zeros(_rows(recipe, world), 3, recipe.crop, recipe.crop)
    return estimate(recipe, {"autoencoder": network}, (), lambda: network(pictures).float().square().mean(), world)


def _on_pictures(recipe: Rehearsed, checkpoint: Checkpoint, world: int) -> Estimate:
    """A training of a model's networks, or of something attached to them, on cached latents."""
    config = checkpoint.unet_config
    if isinstance(recipe, InpaintingRecipe):
        config = replace(config, in_channels=2 * checkpoint.autoencoder_config.latent_channels + 1)
    unet, vae = UNet(config), checkpoint.autoencoder_config
    autoencoder = TinyAutoencoder(vae) if isinstance(vae, TinyAutoencoderConfig) else Autoencoder(vae)
    found = (checkpoint.text_encoder_config, checkpoint.text_encoder_2_config)
    texts = {part: TextEncoder(c) for part, c in zip(("text_encoder", "text_encoder_2"), found, strict=True) if c}
    networks: dict[str, nn.Module] = {"unet": unet, **texts}
    for network in (*networks.values(), autoencoder):
        network.requires_grad_(False)
    n, downscale = _rows(recipe, world), autoencoder.config.downscale
    side = recipe.size // downscale if recipe.size else config.sample_size
    x, t = torch.zeros(n, config.in_channels, side, side), torch.zeros(n)
    told: dict[str, Any] = {}
    if config.addition_time_embed_dim is not None and config.projection_class_embeddings_input_dim is not None:
        pooled = found[1].projection_dim if found[1] else 0
        sizes = (config.projection_class_embeddings_input_dim - pooled) // config.addition_time_embed_dim
        told = {"pooled": torch.zeros(n, pooled), "sizes": torch.zeros(n, sizes)}
    learning: dict[str, nn.Module] = {}
    word: Vectors | None = None
    if isinstance(recipe, ControlNetRecipe):
        net = ControlNet(config_for(config, recipe.attention, recipe.hint_widths))
        learning["controlnet"] = net.requires_grad_(True)
        hint = torch.zeros(n, 3, side * downscale, side * downscale)
    elif isinstance(recipe, InversionRecipe):
        word = Vectors(torch.zeros(recipe.vectors, found[0].hidden_size))
        learning["word"] = word
    else:
        for part, network in networks.items():
            if recipe.train not in ("both", "unet" if part == "unet" else "text-encoder"):
                continue
            if isinstance(recipe, LoraRecipe):
                lora = init_lora(network, recipe.rank, recipe.alpha, chooser(recipe.targets, part, network))
                lora.attach(network)
                learning[part] = lora
            else:
                learning[part] = network.requires_grad_(True)

    def loss() -> Tensor:
        text = torch.zeros(n, 77, config.cross_attention_dim)
        if word is not None or any(part in learning for part in texts):
            text = torch.cat([_read(network, n, word) for network in texts.values()], dim=-1)
        extra = dict(told)
        if "controlnet" in learning:
            down, mid = learning["controlnet"](x, t, text, hint, **told)
            extra |= {"down_residuals": down, "mid_residual": mid}
        answer: Tensor = unet(x, t, text, **extra)
        return answer.float().square().mean()

    return estimate(recipe, learning, (*networks.values(), autoencoder), loss, world)


def _read(network: TextEncoder, rows: int, word: Vectors | None) -> Tensor:
    """What a text encoder makes of 77 tokens (its own way forward looks at the ids, which have no values here)."""
    ids = torch.zeros(rows, network.config.max_position_embeddings, dtype=torch.long)
    x = network.token_embedding(ids) + network.position_embedding.weight
    if word is not None:
        x = x + word().mean()
    for layer in network.layers:
        x = layer(x)
    y: Tensor = network.final_norm(x)
    return y
