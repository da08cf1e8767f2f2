"""An autoencoder by one command: from nothing or from a finished one, on the built-in scenes or on one's own pictures.

RUN/step-*.pt, log.jsonl       the run (loop.py)
RUN/subject.json               the pictures and the autoencoder that it began with
RUN/autoencoder.safetensors    the averaged weights, their latents scaled; for what is trained on them next
RUN/vae/                       the same as diffusers opens it
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import TrainingError
from ..formats.vae import save_vae
from ..models.autoencoder import Autoencoder
from ..toy.glyphs import find_font, other_emoji
from ..toy.objects import SIZES
from . import state
from .autoencoder import AutoencoderRecipe, AutoencoderStage, network
from .crops import Crops, LessonCrops, SceneCrops, open_crops
from .ema import result
from .finish import FINISHED, SUBJECT, autoencoder_of, load_autoencoder, recipe_of, save_autoencoder, step_of_file
from .kinds import Report, Subject, tell_left_out
from .loop import check_done, train
from .parallel import launch
from .perceptual import open_distance
from .recipes import check
from .scaling import fold, measure, tell
from .warm import open_autoencoder

FOLDER = "vae"  # in a run: its result as diffusers opens it
MEASURED = 512  # pictures over which latents are measured


def run_autoencoder(
    recipe: AutoencoderRecipe, subject: Subject, output: Path, workers: int = 1, report: Report = lambda *_: None
) -> Path:
    """Train an autoencoder and scale its latents; returns the folder that diffusers opens.

    `subject.model`, where given, is the finished autoencoder to go on from: as `darkroom.load(vae=...)` takes it, or a
    run of ours. Raises TrainingError, CheckpointError; Stopped when SIGINT or SIGTERM came.
    """
    report("autoencoder", output, recipe.steps)
    train_autoencoder(recipe, output, workers, subject)
    report("normalising latents", None, 0)
    finish_autoencoder(output)
    return output / FOLDER


def train_autoencoder(recipe: AutoencoderRecipe, run: Path, workers: int = 1, subject: Subject = Subject()) -> None:
    """Train an autoencoder to the end of its recipe, or go on with it. Raises as `run_autoencoder` does."""
    _check_start(recipe, subject)
    network_config = None
    if subject.model is not None:
        c = _start(subject.model).config
        network_config = c.to_diffusers()
        recipe = replace(
            recipe, widths=c.block_out_channels, layers=c.layers_per_block, groups=c.norm_num_groups,
            latent_channels=c.latent_channels,
        )  # fmt: skip
    check(recipe, workers)
    if state.steps_done(run) < recipe.steps:
        _note(run, _crops(recipe, subject), subject, network_config)
        launch(_work, workers, recipe, run, subject, _with_others(run) if subject.data is None else False)
    check_done(run, recipe)


def finish_autoencoder(run: Path) -> Autoencoder:
    """The average of a run's newest checkpoint, its latents scaled.

    It is kept in `run`/autoencoder.safetensors and `run`/vae. The file is read when it is there and as new as the
    checkpoint, so that later stages all see the same weights.
    Raises TrainingError.
    """
    path = run / FINISHED
    steps = [state.step_of(p) for p in state.checkpoints(run)]
    if path.is_file() and (not steps or step_of_file(path) == steps[-1]):
        return load_autoencoder(path)
    saved = result(run)
    autoencoder = autoencoder_of(run, saved)
    recipe = recipe_of(AutoencoderRecipe, saved["recipe"])
    if recipe.scaling != "kept":
        subject = Subject(data=_noted(run).get("data"))
        moments = measure(autoencoder, _crops(recipe, subject).some(MEASURED))
        (fold if recipe.scaling == "folded" else tell)(autoencoder, moments)
    save_vae(run / FOLDER, autoencoder.state_dict(), autoencoder.config)
    save_autoencoder(autoencoder, path, saved["step"])
    return autoencoder


def _work(recipe: AutoencoderRecipe, run: Path, subject: Subject, with_others: bool) -> None:
    crops = _crops(recipe, subject)
    if isinstance(crops, SceneCrops) and with_others:
        crops.others = other_emoji(find_font(), SIZES["large"])
    built = network(recipe) if subject.model is None else _start(subject.model)
    distance = open_distance(recipe.features).to(recipe.device) if recipe.perceptual else None
    train(AutoencoderStage(recipe, built.to(recipe.device), crops, distance), run)


def _crops(recipe: AutoencoderRecipe, subject: Subject) -> Crops:
    return SceneCrops(recipe) if subject.data is None else open_crops(recipe, subject.data)


def _start(model: str) -> Autoencoder:
    """The finished autoencoder to go on from, with parameters that learn."""
    run = Path(model)
    if (run / FINISHED).is_file() or state.checkpoints(run):
        found: nn.Module = finish_autoencoder(run)
    else:
        found = open_autoencoder(model)
    if not isinstance(found, Autoencoder):
        raise TrainingError(f"{model[:200]!r} is a tiny autoencoder, which draws no latents; give an AutoencoderKL")
    c = found.config
    if (c.in_channels, c.out_channels) != (3, 3):
        raise TrainingError(
            f"the autoencoder of {model[:200]!r} takes {c.in_channels} channels and makes {c.out_channels}; pictures "
            "have 3"
        )
    return found.train().requires_grad_(True)


def _check_start(recipe: AutoencoderRecipe, subject: Subject) -> None:
    """Raise TrainingError where the recipe says one thing of what there was before and the subject another."""
    if subject.model is None and recipe.scaling == "kept":
        raise TrainingError("scaling is 'kept', and nothing is there to keep: name an autoencoder by --model")
    if subject.model is None and recipe.decoder_from == 0:
        raise TrainingError(
            "decoder_from is 0, and the encoder would never learn: name an autoencoder by --model, or set decoder_from"
        )
    if recipe.decoder_from == 0 and recipe.scaling != "kept":
        raise TrainingError(
            f"decoder_from is 0, so latents stay what they were, and scaling {recipe.scaling!r} changes them; set "
            "scaling=kept"
        )


def _note(run: Path, crops: Crops, subject: Subject, network_config: dict[str, Any] | None) -> None:
    """Write down what a run begins with. Raises TrainingError where it began with something else."""
    key = crops.lessons.key if isinstance(crops, LessonCrops) else "scenes"
    if state.steps_done(run):
        before = _noted(run)
        if before.get("key", "scenes") != key:
            raise TrainingError(f"{run} was trained on other pictures, or they have changed; use another folder")
        if before.get("network") != network_config:
            raise TrainingError(f"{run} began with another autoencoder; use another folder")
        return
    run.mkdir(parents=True, exist_ok=True)
    data = None if subject.data is None else str(Path(subject.data).absolute())
    note = {"data": data, "key": key, "model": subject.model, "network": network_config}
    (run / SUBJECT).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    if isinstance(crops, LessonCrops):
        tell_left_out(run, crops.lessons.left_out)


def _noted(run: Path) -> dict[str, Any]:
    file = run / SUBJECT
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


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
