"""The embedded model by one command: autoencoder, latents, U-Net with its text encoder, folder, scores, card.

Every stage keeps what it has done under the output folder and goes on from there when it is called again:

    autoencoder/  a run (autoencoder.py)
    latents/      the training scenes, encoded in parts; one folder for every autoencoder
    unet/         a run (unet.py)
    model/        what diffusers opens;  card.json, README.md: what it is, and how well it does
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import TrainingError
from ..files import owned
from ..settings import setting
from . import autoencoder as ae
from . import unet
from .autoencoder import AutoencoderRecipe
from .card import write_cards
from .chart import draw_loss
from .kinds import Report, Source, silent
from .memory import Estimate
from .recipe import COUNT, check
from .run import Ending, conclude, finish, run, train_to_end
from .tokenizer import scene_tokenizer
from .unet import UNetRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedRecipe:
    """Both stages of the embedded model."""

    autoencoder: AutoencoderRecipe
    unet: UNetRecipe
    evaluate: int = setting(100, COUNT, "Pictures a category in the scores of the card; 0: none.")

    def estimate(self, model: str | None, world: int) -> Estimate:
        """As `LoopConfig.estimate`: of the run that takes more."""
        vae = ae.sketched(self.autoencoder).config
        runs: tuple[Estimate, ...] = (self.autoencoder.estimate(None, world), unet.estimate(self.unet, vae, world))
        return max(runs, key=lambda found: found.total)


def embedded(preset: str = "cpu") -> EmbeddedRecipe:
    """Two CPU cores, about five hours: the shipped model in one go (its card tells of its stages); longer is better.
    Or one data-centre GPU."""
    return EmbeddedRecipe(autoencoder=ae.autoencoder(preset), unet=unet.unet(preset))


def train_embedded(
    recipe: EmbeddedRecipe, source: Source, output: Path, workers: int = 1, report: Report = silent
) -> Path:
    """Train the embedded model, or go on with it, and return the finished diffusers folder; it has no `source`.

    Raises TrainingError, and Stopped when SIGINT or SIGTERM came: all is saved then, the same call goes on.
    """
    check_embedded(recipe, workers)
    first, second = output / "autoencoder", output / "unet"
    with owned(output, "run", TrainingError):
        run(recipe.autoencoder, Source(), first, workers, report)
        stage = train_to_end(recipe.unet, Source(str(first)), second, workers, report, cache=output / "latents")
        model = finish(stage, second, output, report)
        if recipe.evaluate:
            report("evaluating", None, 0)
        write_cards(output, model, recipe.evaluate, workers)
    return model


def conclude_embedded(
    recipe: EmbeddedRecipe, source: Source, output: Path, made: Path, report: Report = silent
) -> Ending:
    """As `run.conclude`, of both runs."""
    first, second = output / "autoencoder", output / "unet"
    chart = draw_loss(first, "autoencoder: loss")
    ending = conclude(recipe.unet, Source(str(first)), second, made, report)
    return Ending(ending.next, (*ending.pictures, *((chart,) if chart else ())))


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
