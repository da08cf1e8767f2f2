"""A tuning by one command: lessons encoded once, a run that goes on where it stopped, a file in the ecosystem's format.

OUTPUT/lessons-KEY.safetensors   latents of the pictures; kept under a hash of pictures, captions and autoencoder
OUTPUT/step-*.pt, log.jsonl      the run (loop.py)
OUTPUT/lora.safetensors, word.safetensors or controlnet/: what was made
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import darkroom
from darkroom.data.lessons import FolderLessons, Lessons, SceneLessons
from darkroom.errors import CheckpointError, TrainingError
from darkroom.formats.control import save_controlnet
from darkroom.formats.embedding import save_embedding
from darkroom.formats.files import open_tensors
from darkroom.formats.lora_save import save_lora
from darkroom.formats.writer import Entry, whole_file, write_safetensors
from darkroom.pipeline import Pipeline

from . import state
from .finish import fingerprint
from .loop import Stopped, train
from .parallel import launch
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

RECIPES: Mapping[str, Callable[[], TuneRecipe]] = {
    "lora": lambda: LoraRecipe(steps=1000, batch_size=4, lr=1e-4, optimizer="adamw", warmup=20, cooldown=0.5),
    "textual-inversion": lambda: InversionRecipe(
        steps=2000, batch_size=4, lr=5e-3, optimizer="adamw", warmup=20, cooldown=0.5, dropout=0.0, ema=0.99
    ),
    "controlnet": lambda: ControlNetRecipe(steps=10_000, batch_size=8, lr=1e-4, optimizer="adamw", warmup=200),
}
ROWS = 8  # pictures encoded at once
Report = Callable[[str, Path | None, int], None]


@dataclass(frozen=True)
class Subject:
    """What is tuned, on what."""

    model: str | None  # as `darkroom.load` takes it
    data: str | None  # a folder of pictures; None: the built-in scenes
    scenes: int = 20_000  # how many of those

    def pipe(self, device: str) -> Pipeline:
        """The model, in float32."""
        pipe = darkroom.load(self.model, device=device, dtype="float32")
        if pipe.unet.config.in_channels != pipe.autoencoder.config.latent_channels or pipe.unet.config.told_sizes:
            raise TrainingError(f"{pipe.name!r} is no plain text-to-image model of Stable Diffusion 1.x or 2.x")
        return pipe

    def lessons(self, pipe: Pipeline, seed: int) -> Lessons:
        """The pictures and captions, at the model's own size. Raises TrainingError."""
        if self.data is not None:
            return FolderLessons.of(self.data, pipe.size)
        if pipe.size != (128, 128):
            raise TrainingError("the built-in scenes suit the embedded model only; name a folder of pictures by --data")
        return SceneLessons.of(self.scenes, seed)


def tune(
    recipe: TuneRecipe, subject: Subject, output: Path, workers: int = 1, report: Report = lambda *_: None
) -> Path:
    """Train what the recipe says, or go on with it; returns the file or folder that was made.

    Raises TrainingError, CheckpointError; Stopped when SIGINT or SIGTERM came: all is saved then, the same call goes
    on.
    """
    pipe = subject.pipe(recipe.device)
    lessons = subject.lessons(pipe, recipe.seed)
    output.mkdir(parents=True, exist_ok=True)
    report("encoding pictures", None, 0)
    latents = _encoded(pipe, lessons, output)
    report("tuning", output, recipe.steps)
    if _steps_done(output) < recipe.steps:
        launch(_work, workers, recipe, subject, output, latents)
        if _steps_done(output) < recipe.steps:
            raise Stopped(
                f"stopped at step {_steps_done(output)} of {recipe.steps} in {output}; the same command goes on"
            )
    stage = _stage(recipe, pipe, lessons, latents)
    saved = cast("dict[str, Any]", state.load_last(output))
    for name, module in stage.modules.items():
        module.load_state_dict(saved["ema"][name])
    return _write(stage, output)


def _steps_done(run: Path) -> int:
    return max((state.step_of(path) for path in state.checkpoints(run)), default=0)


def _stage(recipe: TuneRecipe, pipe: Pipeline, lessons: Lessons, latents: Path) -> TuneStage:
    try:
        with open_tensors(latents) as file:
            cache = file.load("latents")
    except CheckpointError as error:
        raise TrainingError(f"latents {latents} can't be read; delete them to make them anew: {error}") from error
    return STAGES[type(recipe)](recipe, pipe, lessons, cache)


def _work(recipe: TuneRecipe, subject: Subject, output: Path, latents: Path) -> None:
    pipe = subject.pipe(recipe.device)
    train(_stage(recipe, pipe, subject.lessons(pipe, recipe.seed), latents), output)


@torch.no_grad()
def _encoded(pipe: Pipeline, lessons: Lessons, output: Path) -> Path:
    """The file of the lessons' latents [P, C, h, w] float16, made unless it is there."""
    path = output / f"lessons-{lessons.key[:12]}-{fingerprint(pipe.autoencoder)[:12]}.safetensors"
    if path.is_file():
        return path
    found: list[Tensor] = []
    waiting: list[np.ndarray[Any, Any]] = []
    for i, picture in enumerate(lessons.pictures(), 1):
        waiting.append(picture)
        if len(waiting) == ROWS or i == len(lessons):
            pictures = torch.from_numpy(np.stack(waiting)).permute(0, 3, 1, 2).float() / 127.5 - 1
            moments = pipe.autoencoder.encode(pictures.to(pipe.device)).float()
            found.append(pipe.autoencoder.scale(moments.chunk(2, dim=1)[0]).half().cpu())
            waiting = []
    latents = torch.cat(found)
    with whole_file(path) as draft:
        write_safetensors(draft, [Entry("latents", tuple(latents.shape), latents.dtype, lambda: latents)], {})
    return path


def _write(stage: TuneStage, output: Path) -> Path:
    """What was made, in the form that diffusers and the others read."""
    if isinstance(stage, LoraStage):
        path = output / "lora.safetensors"
        return save_lora(path, stage.lora.adapter(name=output.name), {"unet": stage.pipe.unet})
    if isinstance(stage, InversionStage):
        return save_embedding(output / "word.safetensors", stage.word.vectors.detach(), name=stage.config.word)
    assert isinstance(stage, ControlNetStage)
    return save_controlnet(output / "controlnet", stage.net.state_dict(), stage.net.config, torch.float16)
