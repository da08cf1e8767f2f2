"""The embedded model by one command: autoencoder, latents, U-Net with its text encoder, folder, scores, card.

Every stage keeps what it has done under the output folder and goes on from there when it is called again:

    autoencoder/  a run (loop.py), and autoencoder.safetensors once it is finished
    latents/      the training scenes, encoded in parts; one folder for every autoencoder
    unet/         a run, and the tokenizer it was trained with
    model/        what diffusers opens;  card.json, README.md: what it is, and how well it does
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import TrainingError
from . import autoencoder as ae
from . import unet
from .autoencoder_run import finish_autoencoder, train_autoencoder
from .card import write_cards
from .finish import scene_tokenizer
from .kinds import Report, Subject
from .recipes import EmbeddedRecipe, check
from .tuning import train_pictures, write_result


def run_embedded(
    recipe: EmbeddedRecipe, subject: Subject, output: Path, workers: int = 1, report: Report = lambda *_: None
) -> Path:
    """`train_embedded` as one of `KINDS`."""
    return train_embedded(recipe, output, workers, report)


def train_embedded(recipe: EmbeddedRecipe, output: Path, workers: int = 1, report: Report = lambda *_: None) -> Path:
    """Train the embedded model, or go on with it, and return the finished diffusers folder.

    Raises TrainingError, and Stopped when SIGINT or SIGTERM came: all is saved then, the same call goes on.
    """
    check_embedded(recipe, workers)
    first, second = output / "autoencoder", output / "unet"
    report("autoencoder", first, recipe.autoencoder.steps)
    train_autoencoder(recipe.autoencoder, first, workers)
    report("normalising latents", None, 0)
    finish_autoencoder(first)
    stage = train_pictures(recipe.unet, Subject(str(first)), second, workers, report, cache=output / "latents")
    model = write_result(stage, second, output, report)
    if recipe.evaluate:
        report("evaluating", None, 0)
    write_cards(output, model, recipe.evaluate, workers)
    return model


def check_embedded(recipe: EmbeddedRecipe, workers: int = 1) -> None:
    """Raise TrainingError on a recipe that could only fail later, after hours."""
    for name, part in (("autoencoder", recipe.autoencoder), ("unet", recipe.unet)):
        try:
            check(part, workers)
        except TrainingError as error:
            raise TrainingError(f"{name}.{error}") from None
    if recipe.evaluate < 0:
        raise TrainingError(f"evaluate is {recipe.evaluate}; it must be 0 or more")
    try:
        with torch.device("meta"):
            levels = len(ae.network(recipe.autoencoder).config.block_out_channels)
            unet.networks(recipe.unet, scene_tokenizer())
    except ValueError as error:
        raise TrainingError(f"the recipe's networks can't be built: {error}") from None
    if levels != 4:
        raise TrainingError(f"autoencoder.widths has {levels} levels; it needs 4, for latents of an eighth the size")
