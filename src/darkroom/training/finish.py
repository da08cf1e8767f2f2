"""From a run's checkpoints to a model: averaged weights, normalised latents, and the folder that diffusers opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from darkroom.data.objects import vocabulary
from darkroom.errors import Error, TrainingError
from darkroom.formats.files import open_tensors
from darkroom.formats.save import save_folder
from darkroom.formats.writer import Entry, whole_file, write_safetensors
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet
from darkroom.prompts.tokenizer import Tokenizer
from darkroom.prompts.vocabulary import build_vocabulary

from . import autoencoder as ae
from . import posthoc, unet
from .config import LoopConfig

FINISHED = "autoencoder.safetensors"  # in an autoencoder's run: its normalised average
SUBJECT = "subject.json"  # in an autoencoder's run: what it began with

Recipe = TypeVar("Recipe", bound=LoopConfig)


def scene_tokenizer() -> Tokenizer:
    """The tokenizer of the built-in scenes: every word of a caption is one token."""
    vocab, merges = build_vocabulary(vocabulary())
    return Tokenizer(vocab, merges)


def recipe_of(kind: type[Recipe], saved: Mapping[str, Any]) -> Recipe:
    """A recipe from what a checkpoint or recipe.json holds; what this version doesn't know is left out."""
    known = {f.name for f in fields(kind)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in known}
    return kind(**values)


def load_ema(run: Path) -> dict[str, nn.Module]:
    """The averaged networks of a run's newest checkpoint, in evaluation mode, under their names.

    {"autoencoder": Autoencoder}, or {"unet": UNet, "text_encoder": TextEncoder}. Raises TrainingError.
    """
    return modules_of(run, checkpoint_of(run))


def checkpoint_of(run: Path, config: LoopConfig | None = None) -> dict[str, Any]:
    """The checkpoint that a run's result is made from, as `config` has it (None: as it was begun): `posthoc.result`."""
    return posthoc.result(run, config)


def modules_of(run: Path, saved: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The averaged networks of a run's checkpoint, in evaluation mode, under their names. Raises TrainingError."""
    names = set(saved["ema"])
    modules: dict[str, nn.Module]
    if names == {"autoencoder"}:
        modules = {"autoencoder": _autoencoder_of(run, recipe_of(ae.AutoencoderRecipe, saved["recipe"]))}
    elif names == {"unet", "text_encoder"}:
        built = unet.networks(recipe_of(unet.UNetRecipe, saved["recipe"]), tokenizer_of(run))
        modules = dict(zip(("unet", "text_encoder"), built, strict=True))
    else:
        raise TrainingError(f"{run} is a run of {', '.join(sorted(names))}; there is no recipe of ours for that")
    for name, module in modules.items():
        try:
            module.load_state_dict(saved["ema"][name])
        except RuntimeError as error:
            raise TrainingError(f"{run}: the {name}'s weights don't fit its recipe: {error}") from error
        module.eval().requires_grad_(False)
    return modules


def _autoencoder_of(run: Path, recipe: ae.AutoencoderRecipe) -> Autoencoder:
    """The network of an autoencoder's run: that of the model it began with, else its recipe's."""
    file = run / SUBJECT
    config = json.loads(file.read_text(encoding="utf-8")).get("network") if file.is_file() else None
    return ae.network(recipe) if config is None else Autoencoder(AutoencoderConfig.from_diffusers(config))


def tokenizer_of(run: Path) -> Tokenizer:
    """The tokenizer that a U-Net was trained with: the run's own if it kept one, else that of the built-in scenes."""
    folder = run / "tokenizer"
    return Tokenizer.from_folder(folder) if folder.is_dir() else scene_tokenizer()


def save_autoencoder(autoencoder: Autoencoder, path: Path, step: int) -> None:
    """Write an autoencoder with its configuration as one file, whole or not at all."""
    metadata = {"config": json.dumps(autoencoder.config.to_diffusers(), sort_keys=True), "step": str(step)}
    weights = {name: tensor.detach().cpu() for name, tensor in autoencoder.state_dict().items()}
    entries = [
        Entry(name, tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in weights.items()
    ]
    with whole_file(path) as draft:
        write_safetensors(draft, entries, metadata)


def step_of_file(path: Path) -> int:
    """The step that `save_autoencoder` wrote; -1 without."""
    with open_tensors(path) as file:
        return int(file.metadata.get("step", -1))


def load_autoencoder(path: Path) -> Autoencoder:
    """What `save_autoencoder` wrote. Raises TrainingError."""
    try:
        with open_tensors(path) as file:
            config = AutoencoderConfig.from_diffusers(json.loads(file.metadata["config"]))
            with torch.device("meta"):
                autoencoder = Autoencoder(config)
            autoencoder.load_state_dict({name: file.load(name) for name in file.names()}, assign=True)
    except (Error, KeyError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{path} is no autoencoder that we saved; delete it to make it anew: {error}") from error
    return autoencoder.eval().requires_grad_(False)


def export_networks(autoencoder: Autoencoder, unet_run: Path, target: Path) -> Path:
    """Write the averaged networks of a U-Net's run, and the autoencoder whose latents it was trained on, as an ordinary
    diffusers folder in float16; whole or not at all.

    Raises TrainingError, CheckpointError.
    """
    trained = load_ema(unet_run)
    network, text_encoder = trained.get("unet"), trained.get("text_encoder")
    if not isinstance(network, UNet) or not isinstance(text_encoder, TextEncoder):
        raise TrainingError(f"{unet_run} is no U-Net's run")
    return save_folder(
        target,
        unet=network.state_dict(),
        autoencoder=autoencoder.state_dict(),
        text_encoder=text_encoder.state_dict(),
        unet_config=network.config,
        autoencoder_config=autoencoder.config,
        text_encoder_config=text_encoder.config,
        scheduler_config=unet.SCHEDULER_CONFIG,
        tokenizer=tokenizer_of(unet_run),
        dtype=torch.float16,
        defaults=unet.DEFAULTS,
    )
