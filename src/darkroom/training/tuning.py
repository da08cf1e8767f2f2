"""A tuning by one command: lessons encoded once, a run that goes on where it stopped, a file in the ecosystem's format.

OUTPUT/cache/                    latents of the pictures (latents.py)
OUTPUT/lessons.txt               hashes of pictures and captions, and of the model: what the run belongs to
OUTPUT/step-*.pt, log.jsonl      the run (loop.py)
OUTPUT/lora.safetensors, word.safetensors or controlnet/: what was made
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

import darkroom
from darkroom.data.lessons import Lessons, open_lessons
from darkroom.errors import TrainingError
from darkroom.formats.control import save_controlnet
from darkroom.formats.embedding import save_embedding
from darkroom.formats.lora_save import save_lora
from darkroom.pipeline import Pipeline

from . import state
from .kinds import LEFT_OUT, Report, Subject
from .latents import fill, latents_of
from .loop import check_done, train
from .parallel import launch, share
from .tune import (
    STAGES,
    ControlNetRecipe,
    ControlNetStage,
    InversionRecipe,
    InversionStage,
    LoraRecipe,
    LoraStage,
    TuneRecipe,
    TuneStage,
)

Tune = TypeVar("Tune", bound=TuneRecipe)
CACHE = "cache"  # in the output folder
BELONGS = "lessons.txt"


def on(recipe: Tune, preset: str) -> Tune:
    """A tuning's recipe for a preset: the same numbers, on its device."""
    return replace(recipe, device="cuda") if preset == "gpu" else recipe


def lora(preset: str = "cpu") -> LoraRecipe:
    """A thousand steps of four pictures."""
    return on(LoraRecipe(steps=1000, batch_size=4, lr=1e-4, optimizer="adamw", warmup=20, cooldown=0.5), preset)


def textual_inversion(preset: str = "cpu") -> InversionRecipe:
    """Two thousand steps of four pictures; captions are never dropped."""
    recipe = InversionRecipe(
        steps=2000, batch_size=4, lr=5e-3, optimizer="adamw", warmup=20, cooldown=0.5, dropout=0.0, ema=0.99
    )
    return on(recipe, preset)


def controlnet(preset: str = "cpu") -> ControlNetRecipe:
    """Ten thousand steps of eight pictures."""
    return on(ControlNetRecipe(steps=10_000, batch_size=8, lr=1e-4, optimizer="adamw", warmup=200), preset)


def pipe_of(subject: Subject, device: str) -> Pipeline:
    """The subject's model, in float32. Raises TrainingError, CheckpointError."""
    pipe = darkroom.load(subject.model, device=device, dtype="float32")
    if pipe.unet.config.in_channels != pipe.autoencoder.config.latent_channels or pipe.unet.config.told_sizes:
        raise TrainingError(f"{pipe.name!r} is no plain text-to-image model of Stable Diffusion 1.x or 2.x")
    return pipe


def lessons_of(subject: Subject, pipe: Pipeline, seed: int) -> Lessons:
    """The pictures and captions, at the model's own size. Raises TrainingError."""
    return open_lessons(subject.data, pipe.size, scenes=subject.scenes, seed=seed)


def tune(
    recipe: TuneRecipe, subject: Subject, output: Path, workers: int = 1, report: Report = lambda *_: None
) -> Path:
    """Train what the recipe says, or go on with it; returns the file or folder that was made.

    Raises TrainingError, CheckpointError; Stopped when SIGINT or SIGTERM came: all is saved then, the same call goes
    on.
    """
    pipe = pipe_of(subject, recipe.device)
    lessons = lessons_of(subject, pipe, recipe.seed)
    output.mkdir(parents=True, exist_ok=True)
    (output / LEFT_OUT).write_text("".join(f"{path}: {why}\n" for path, why in lessons.left_out), encoding="utf-8")
    belongs, note = f"{lessons.key} {pipe.model_hash}\n", output / BELONGS
    if state.steps_done(output) and (not note.is_file() or note.read_text(encoding="utf-8") != belongs):
        raise TrainingError(f"{output} was trained on other pictures or for another model; use another folder")
    note.write_text(belongs, encoding="utf-8")
    report("encoding pictures", None, 0)
    if workers == 1:
        fill(output / CACHE, lessons, pipe.autoencoder)
    else:
        launch(_encode, workers, recipe, subject, output)
    stage = STAGES[type(recipe)](recipe, pipe, lessons, latents_of(lessons, pipe.autoencoder, output / CACHE))
    report("tuning", output, recipe.steps)
    if state.steps_done(output) < recipe.steps:
        if workers == 1:
            train(stage, output)
        else:
            launch(_work, workers, recipe, subject, output)
        check_done(output, recipe.steps)
    saved = cast("dict[str, Any]", state.load_last(output))
    for name, module in stage.modules.items():
        module.load_state_dict(saved["ema"][name])
    return _write(stage, output)


def _encode(recipe: TuneRecipe, subject: Subject, output: Path) -> None:
    pipe = pipe_of(subject, recipe.device)
    fill(output / CACHE, lessons_of(subject, pipe, recipe.seed), pipe.autoencoder, share())


def _work(recipe: TuneRecipe, subject: Subject, output: Path) -> None:
    pipe = pipe_of(subject, recipe.device)
    lessons = lessons_of(subject, pipe, recipe.seed)
    train(STAGES[type(recipe)](recipe, pipe, lessons, latents_of(lessons, pipe.autoencoder, output / CACHE)), output)


def _write(stage: TuneStage, output: Path) -> Path:
    """What was made, in the form that diffusers and the others read."""
    if isinstance(stage, LoraStage):
        path = output / "lora.safetensors"
        return save_lora(path, stage.lora.adapter(name=output.name), {"unet": stage.pipe.unet})
    if isinstance(stage, InversionStage):
        return save_embedding(output / "word.safetensors", stage.word.vectors.detach(), name=stage.config.word)
    assert isinstance(stage, ControlNetStage)
    return save_controlnet(output / "controlnet", stage.net.state_dict(), stage.net.config, torch.float16)
