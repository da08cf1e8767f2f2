"""The networks and one step of each kind of training, without values, for `memory.estimate`.

Shapes: N rows of a part, C latent channels, h w latent size, T tokens, D text width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import init_lora
from ..embedded import MODEL
from ..errors import TrainingError
from ..formats.checkpoint import open_checkpoint
from ..formats.vae import open_vae
from ..models.autoencoder import Autoencoder, TinyAutoencoder
from ..models.clip import contrastive_loss
from ..models.config import AutoencoderConfig, TextEncoderConfig, TinyAutoencoderConfig, UNetConfig
from ..models.controlnet import ControlNet, config_for
from ..models.text_encoder import TextEncoder
from ..models.unet import UNet
from . import autoencoder as ae
from . import text_encoder
from .autoencoder import finished, is_run
from .controlnet import ControlNetRecipe, check_hint_widths
from .distill import GUIDANCE_WIDTH, DistillRecipe
from .embedded import EmbeddedRecipe
from .inpainting import InpaintingRecipe
from .lora import LoraRecipe, chooser
from .memory import Estimate, estimate, without_values
from .parallel import Share
from .perceptual import OWN, EncoderFeatures, PerceptualDistance, open_distance
from .pictures import PictureRecipe
from .pretrained import text_config
from .recipe import LoopConfig
from .textual_inversion import InversionRecipe, Vectors
from .tokenizer import scene_tokenizer
from .unet import UNetRecipe
from .unet import networks as untrained

Vae = AutoencoderConfig | TinyAutoencoderConfig


def rehearse(recipe: LoopConfig | EmbeddedRecipe, model: str | None = None, world: int = 1) -> Estimate:
    """What a run by any recipe of `KINDS`, from `model` on, takes in each of `world` processes; of a recipe of several
    runs, what the largest one takes.

    Raises CheckpointError for a model that can't be opened, TrainingError for networks that can't be built.
    """
    try:
        return _rehearsed(recipe, model, world)
    except ValueError as error:
        raise TrainingError(f"the recipe's networks can't be built: {error}") from None


def _rehearsed(recipe: LoopConfig | EmbeddedRecipe, model: str | None, world: int) -> Estimate:
    if isinstance(recipe, EmbeddedRecipe):
        with without_values():
            vae = ae.network(recipe.autoencoder).config
        runs = (_autoencoder(recipe.autoencoder, vae, world), _scratch(recipe.unet, vae, world))
        return max(runs, key=lambda run: run.total)
    if isinstance(recipe, ae.AutoencoderRecipe):
        return _autoencoder(recipe, None if model is None else _vae(model), world)
    if isinstance(recipe, text_encoder.TextEncoderRecipe):
        return _clip(recipe, world)
    if isinstance(recipe, UNetRecipe):
        return _scratch(recipe, _vae(str(MODEL) if model is None else model), world)
    assert isinstance(recipe, PictureRecipe)
    found = open_checkpoint(MODEL if model is None else model)
    config, texts = found.unet_config, (found.text_encoder_config, found.text_encoder_2_config)
    if isinstance(recipe, InpaintingRecipe):
        config = replace(config, in_channels=2 * found.autoencoder_config.latent_channels + 1)
    with without_values():
        return _on_pictures(recipe, config, found.autoencoder_config, texts, world)


def _vae(model: str) -> Vae:
    """The configuration of the autoencoder that a run or a model has."""
    run = Path(model)
    return finished(run).config if is_run(run) else open_vae(model).autoencoder_config


def _rows(recipe: LoopConfig, world: int) -> int:
    return max(1, recipe.batch_size // (world * recipe.accumulate))


def _autoencoder(recipe: ae.AutoencoderRecipe, start: Vae | None, world: int) -> Estimate:
    """An autoencoder on crops (later batches of whole pictures have as many pixels), its discriminator in play."""
    own = open_vae(str(MODEL)).autoencoder_config
    given = open_distance(recipe.features) if recipe.perceptual and recipe.features != OWN else None
    assert isinstance(own, AutoencoderConfig)
    # The stage itself computes, at a step at which everything takes part.
    shown = replace(recipe, device="cpu", adversarial_from=0.0)
    with without_values():
        network = Autoencoder(start) if isinstance(start, AutoencoderConfig) else ae.network(recipe)
        distance = None
        if recipe.perceptual:
            distance = _emptied(given) if given else PerceptualDistance(EncoderFeatures(Autoencoder(own).encoder))
        stage = ae.AutoencoderStage(shown, network, crops=None, distance=distance)  # type: ignore[arg-type]
        pictures = torch.zeros(_rows(recipe, world), 3, recipe.crop, recipe.crop)
        learning = {**stage.modules, **stage.discriminators}
        frozen = () if distance is None else (distance,)
        return estimate(recipe, learning, frozen, lambda: stage.loss(pictures, 0, Share())[0], world)


def _emptied(network: nn.Module) -> nn.Module:
    """A network with the shapes of its values alone."""
    for module in network.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=False)
        for name, b in module._buffers.items():
            module._buffers[name] = None if b is None else torch.empty(b.shape, dtype=b.dtype)
    return network


def _clip(recipe: text_encoder.TextEncoderRecipe, world: int) -> Estimate:
    """A text encoder and the image encoder it learns with."""
    with without_values():
        clip, n = text_encoder.network(recipe, scene_tokenizer()), _rows(recipe, world)
        clip.text = TextEncoder(replace(
            clip.text.config, vocab_size=max(clip.text.config.vocab_size, recipe.vocabulary),
            max_position_embeddings=recipe.tokens,
        ))  # fmt: skip
        pixels, ids = torch.zeros(n, 3, recipe.size, recipe.size), torch.zeros(n, recipe.tokens, dtype=torch.long)

        def loss() -> Tensor:
            pooled = clip.text.penultimate(ids, embeddings=clip.text.token_embedding(ids))[1]
            assert pooled is not None
            return contrastive_loss(clip.see(pixels), pooled.float(), clip.logit_scale)

        return estimate(recipe, {"clip": clip}, (), loss, world)


def _scratch(recipe: UNetRecipe, vae: Vae, world: int) -> Estimate:
    """A U-Net from nothing on an autoencoder's latents, with a text encoder that learns beside it or is given."""
    given = text_config(recipe.text_encoder) if recipe.text_encoder else None
    built = recipe if given is None else replace(recipe, text_width=given.hidden_size)
    with without_values():
        unet, text = untrained(built, scene_tokenizer(), vae.latent_channels, vae.downscale)
        most = max(text.config.vocab_size, recipe.vocabulary)
        return _on_pictures(recipe, unet.config, vae, (given or replace(text.config, vocab_size=most), None), world)


def _on_pictures(
    recipe: PictureRecipe,
    config: UNetConfig,
    vae: Vae,
    found: tuple[TextEncoderConfig, TextEncoderConfig | None],
    world: int,
) -> Estimate:
    """A training of a model's networks, or of something attached to them, on cached latents."""
    unet = UNet(config)
    autoencoder = TinyAutoencoder(vae) if isinstance(vae, TinyAutoencoderConfig) else Autoencoder(vae)
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
    student: nn.Module = unet
    aim: Callable[[Tensor, Tensor, Tensor], None] | None = None  # what a distillation asks besides, without gradients
    word: Vectors | None = None
    if isinstance(recipe, ControlNetRecipe):
        net = ControlNet(config_for(config, recipe.attention, recipe.hint_widths))
        check_hint_widths(recipe, net, downscale)
        learning["controlnet"] = net.requires_grad_(True)
        hint = torch.zeros(n, 3, side * downscale, side * downscale)
    elif isinstance(recipe, InversionRecipe):
        word = Vectors(torch.zeros(recipe.vectors, found[0].hidden_size))
        learning["word"] = word
    elif isinstance(recipe, DistillRecipe):
        student, aim = _student(recipe, unet, learning, told)
    else:
        train = ("unet" if recipe.text_encoder else "both") if isinstance(recipe, UNetRecipe) else recipe.train  # type: ignore[attr-defined]
        for part, network in networks.items():
            if train not in ("both", "unet" if part == "unet" else "text-encoder"):
                continue
            if isinstance(recipe, LoraRecipe):
                lora = init_lora(network, recipe.rank, recipe.alpha, chooser(recipe.targets, part, network))
                lora.attach(network)
                learning[part] = lora
            else:
                learning[part] = network.requires_grad_(True)

    # Captions of all lengths in one batch have the most tokens (`condition.alike`).
    repeats = 1 if n == 1 else math.lcm(*range(1, recipe.chunks + 1)) // recipe.chunks

    def loss() -> Tensor:
        text = torch.zeros(n, 77 * recipe.chunks, config.cross_attention_dim)
        if word is not None or any(part in learning for part in texts):
            read = [_read(network, n * recipe.chunks, word) for network in texts.values()]
            text = torch.cat(read, dim=-1).reshape(n, -1, config.cross_attention_dim)
        text = text.repeat(1, repeats, 1)
        extra = dict(told)
        if "controlnet" in learning:
            down, mid = learning["controlnet"](x, t, text, hint, **told)
            extra |= {"down_residuals": down, "mid_residual": mid}
        answer: Tensor = student(x, t, text, **extra)
        if aim is not None:
            aim(x, t, text)
        return answer.float().square().mean()

    return estimate(recipe, learning, (*networks.values(), autoencoder), loss, world)


def _student(
    recipe: DistillRecipe, unet: UNet, learning: dict[str, nn.Module], told: dict[str, Any]
) -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], None]]:
    """Who learns in a distillation of `unet`, and what is asked of others meanwhile: the teacher with and without the
    text, and the student that is aimed at. Both students are put into `learning`."""
    target: nn.Module | None = None
    if recipe.student == "lora":
        chosen = chooser(recipe.targets, "unet", unet)
        lora = init_lora(unet, recipe.rank, recipe.alpha, chosen)
        learning["student"], student = lora, unet
        lora.attach(unet)
        if recipe.target_ema:  # a copy of tensors without values would be of another mode than all others
            learning["target"] = copied = init_lora(unet, recipe.rank, recipe.alpha, chosen).requires_grad_(False)
            copied.on = False
            copied.attach(unet)
        target = unet
    else:
        guided = len(recipe.guidance) == 2
        config = replace(unet.config, time_cond_proj_dim=GUIDANCE_WIDTH if guided else None)
        learning["student"] = student = UNet(config)
        target = student
        if recipe.target_ema:
            learning["target"] = target = UNet(config).requires_grad_(False)

    def aim(x: Tensor, t: Tensor, text: Tensor) -> None:
        with torch.no_grad():
            both = {name: torch.cat([value, value]) for name, value in told.items()}
            unet(torch.cat([x, x]), torch.cat([t, t]), torch.cat([text, text]), **both)
            target(x, t, text, **told)

    return student, aim


def _read(network: TextEncoder, rows: int, word: Vectors | None) -> Tensor:
    """What a text encoder makes of 77 tokens, which have no values that it could look at."""
    x: Tensor = network.token_embedding(torch.zeros(rows, network.config.max_position_embeddings, dtype=torch.long))
    if word is not None:
        x = x + word().mean()
    y: Tensor = network(torch.zeros(x.shape[:2], dtype=torch.long), embeddings=x)
    return y
