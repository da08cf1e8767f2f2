"""The embedded model by one command: autoencoder, latents, U-Net with its text encoder, folder, scores, card.

Every stage keeps what it has done under the output folder and goes on from there when it is called again:

    autoencoder/  a run (loop.py), and autoencoder.safetensors once it is finished
    latents/      the training scenes, encoded in parts; one folder for every autoencoder
    unet/         a run, and the tokenizer it was trained with
    model/        what diffusers opens;  card.json, README.md: what it is, and how well it does
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from darkroom.data.glyphs import find_font, other_emoji
from darkroom.data.objects import SIZES
from darkroom.errors import TrainingError

from . import autoencoder as ae
from . import state, unet
from .cache import fingerprint
from .card import write_cards
from .finish import (
    FINISHED,
    export,
    export_networks,
    finish_autoencoder,
    load_autoencoder,
    load_ema,
    save_autoencoder,
    scene_tokenizer,
    tokenizer_of,
)
from .kinds import Report, Subject
from .latents import encode_scenes, read_latents, write_latents
from .loop import Stopped, check_done, train
from .parallel import launch, share
from .recipes import EmbeddedRecipe, check

__all__ = [
    "autoencoder_file",
    "cache_latents",
    "export",
    "export_networks",
    "finish_autoencoder",
    "load_autoencoder",
    "load_ema",
    "load_latents",
    "run_autoencoder",
    "run_embedded",
    "run_unet",
    "train_autoencoder",
    "train_embedded",
    "train_unet",
]

PART = 2048  # scenes in a part of the latent cache


def run_embedded(
    recipe: EmbeddedRecipe, subject: Subject, output: Path, workers: int = 1, report: Report = lambda *_: None
) -> Path:
    """`train_embedded` as one of `KINDS`."""
    return train_embedded(recipe, output, workers, report)


def run_autoencoder(
    recipe: ae.AutoencoderRecipe, subject: Subject, output: Path, workers: int = 1, report: Report = lambda *_: None
) -> Path:
    """Train an autoencoder on the built-in scenes and normalise its latents; returns its file."""
    report("autoencoder", output, recipe.steps)
    train_autoencoder(recipe, output, workers)
    report("normalising latents", None, 0)
    finish_autoencoder(output)
    return output / FINISHED


def run_unet(
    recipe: unet.UNetRecipe, subject: Subject, output: Path, workers: int = 1, report: Report = lambda *_: None
) -> Path:
    """Train a U-Net and its text encoder on the built-in scenes; returns the model's folder."""
    report("encoding scenes", None, 0)
    finished = autoencoder_file(subject.model, output)
    latents = cache_latents(finished, output / "latents", recipe, workers)
    report("unet", output, recipe.steps)
    train_unet(recipe, output, latents, workers)
    report("writing the model", None, 0)
    return export_networks(load_autoencoder(finished), output, output / "model")


def train_embedded(recipe: EmbeddedRecipe, output: Path, workers: int = 1, report: Report = lambda *_: None) -> Path:
    """Train the embedded model, or go on with it, and return the finished diffusers folder.

    Raises TrainingError, and Stopped when SIGINT or SIGTERM came: all is saved then, the same call goes on.
    """
    check_embedded(recipe, workers)
    first, second = output / "autoencoder", output / "unet"
    report("autoencoder", first, recipe.autoencoder.steps)
    train_autoencoder(recipe.autoencoder, first, workers)
    report("normalising latents", None, 0)
    autoencoder = finish_autoencoder(first)
    report("encoding scenes", None, 0)
    latents = cache_latents(first / FINISHED, output / "latents", recipe.unet, workers)
    report("unet", second, recipe.unet.steps)
    train_unet(recipe.unet, second, latents, workers)
    report("writing the model", None, 0)
    model = export_networks(autoencoder, second, output / "model")
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


def train_autoencoder(recipe: ae.AutoencoderRecipe, run: Path, workers: int = 1) -> None:
    """Train an autoencoder on the built-in scenes to the end of its recipe. Raises TrainingError, Stopped."""
    if state.steps_done(run) < recipe.steps:
        launch(_autoencoder_work, workers, recipe, run, _with_others(run))
        check_done(run, recipe.steps)


def _autoencoder_work(recipe: ae.AutoencoderRecipe, run: Path, with_others: bool) -> None:
    others = other_emoji(find_font(), SIZES["large"]) if with_others else []
    train(ae.AutoencoderStage(recipe, ae.network(recipe).to(recipe.device), others), run)


def _with_others(run: Path) -> bool:
    """Whether the collages of a run show other emoji too: if the font is here when it begins, and to its end."""
    try:
        find_font()
        there = True
    except TrainingError:
        there = False
    note = run / "others.json"
    if not state.checkpoints(run):
        run.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(there) + "\n")
    wanted = json.loads(note.read_text()) if note.is_file() else there
    if wanted and not there:
        raise TrainingError(f"{run} began with the emoji font at hand; install fonts-noto-color-emoji to go on")
    return bool(wanted)


def autoencoder_file(source: str | None, folder: Path) -> Path:
    """The file of the autoencoder that a U-Net's latents shall come from.

    `source` is an autoencoder's run, or whatever `darkroom.load` takes (None: the embedded model): then the file is
    written into `folder`. Raises TrainingError, CheckpointError.
    """
    if source is not None:
        run = Path(source)
        if (run / FINISHED).is_file() or state.checkpoints(run):
            finish_autoencoder(run)
            return run / FINISHED
    import darkroom

    autoencoder = darkroom.load(source, device="cpu", dtype="float32").autoencoder
    config = autoencoder.config
    if (config.latent_channels, config.downscale) != (4, 8):
        raise TrainingError(
            f"the autoencoder of {source or 'the embedded model'} makes {config.latent_channels} channels of a "
            f"{config.downscale}th the size; the U-Net of the built-in scenes takes 4 of an eighth"
        )
    path = folder / FINISHED
    if not path.is_file() or fingerprint(load_autoencoder(path)) != fingerprint(autoencoder):
        save_autoencoder(autoencoder, path, step=-1)
    return path


def cache_latents(finished: Path, folder: Path, recipe: unet.UNetRecipe, workers: int = 1) -> Path:
    """Encode `recipe.scenes` training scenes by a finished autoencoder's file; returns the folder of the parts.

    Parts are written whole or not at all, under a hash of the autoencoder's weights: what is there is not made again.
    """
    place = folder / f"{fingerprint(load_autoencoder(finished))[:16]}-{recipe.seed}"
    if missing := _missing(place, recipe.scenes):
        launch(_encode_work, min(workers, len(missing)), finished, place, recipe)
        if _missing(place, recipe.scenes):
            raise Stopped(f"stopped while encoding scenes into {place}; the same command goes on")
    return place


def _parts(folder: Path, scenes: int) -> list[tuple[Path, int, int]]:
    """The files of a cache: (path, first scene, scenes)."""
    sizes = [(first, min(PART, scenes - first)) for first in range(0, scenes, PART)]
    return [(folder / f"scenes-{first:08d}-{count}.safetensors", first, count) for first, count in sizes]


def _missing(folder: Path, scenes: int) -> list[tuple[Path, int, int]]:
    return [part for part in _parts(folder, scenes) if not part[0].is_file()]


def _encode_work(finished: Path, folder: Path, recipe: unet.UNetRecipe) -> None:
    autoencoder = load_autoencoder(finished).to(recipe.device)
    mine = share()
    for path, first, count in _missing(folder, recipe.scenes)[mine.rank :: mine.world]:
        tensor = torch.cat(list(encode_scenes(autoencoder, recipe.seed, first, count)))
        write_latents(path, tensor)


def load_latents(folder: Path, scenes: int) -> Tensor:
    """A cache's latents: [scenes, C, h, w] float16. Raises TrainingError."""
    return torch.cat([read_latents(path) for path, _, _ in _parts(folder, scenes)])


def train_unet(recipe: unet.UNetRecipe, run: Path, latents: Path, workers: int = 1) -> None:
    """Train a U-Net and its text encoder on cached latents, to the end. Raises TrainingError, Stopped.

    A run belongs to one autoencoder's latents: going on with another's is refused.
    """
    note, tokenizer = run / "latents.txt", run / "tokenizer"
    begun = state.steps_done(run)
    if note.is_file() and begun and note.read_text().strip() != latents.name:
        raise TrainingError(f"{run} was trained on the latents of another autoencoder; use another folder")
    if begun >= recipe.steps:
        return
    if not begun:
        run.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(tokenizer, ignore_errors=True)
        scene_tokenizer().save(tokenizer)
        note.write_text(latents.name + "\n")
    launch(_unet_work, workers, recipe, run, latents)
    check_done(run, recipe.steps)


def _unet_work(recipe: unet.UNetRecipe, run: Path, latents: Path) -> None:
    tokenizer = tokenizer_of(run)
    network, text_encoder = unet.networks(recipe, tokenizer)
    cache = load_latents(latents, recipe.scenes)
    stage = unet.UNetStage(recipe, network.to(recipe.device), text_encoder.to(recipe.device), tokenizer, cache)
    train(stage, run)
