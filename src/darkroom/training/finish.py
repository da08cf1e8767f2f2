"""From an autoencoder's run to the finished network, and the file that it is kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import Error, TrainingError
from ..files import whole_file
from ..formats.tensors import open_tensors
from ..formats.writer import Entry, write_safetensors
from ..models.autoencoder import Autoencoder
from ..models.config import AutoencoderConfig
from ..prompts.tokenizer import Tokenizer, build_vocabulary
from ..toy.objects import vocabulary
from . import autoencoder as ae
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


def autoencoder_of(run: Path, saved: Mapping[str, Any]) -> Autoencoder:
    """The averaged network of an autoencoder's run, in evaluation mode, out of its checkpoint. Raises TrainingError."""
    if set(saved["ema"]) != {"autoencoder"}:
        raise TrainingError(f"{run} is no autoencoder's run, but one of {', '.join(sorted(saved['ema']))}")
    file = run / SUBJECT
    began_with = json.loads(file.read_text(encoding="utf-8")).get("network") if file.is_file() else None
    if began_with is None:
        autoencoder = ae.network(recipe_of(ae.AutoencoderRecipe, saved["recipe"]))
    else:
        autoencoder = Autoencoder(AutoencoderConfig.from_diffusers(began_with))
    try:
        autoencoder.load_state_dict(saved["ema"]["autoencoder"])
    except RuntimeError as error:
        raise TrainingError(f"{run}: the autoencoder's weights don't fit its recipe: {error}") from error
    return autoencoder.eval().requires_grad_(False)


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
