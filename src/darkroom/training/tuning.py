"""A training on pictures by one command: latents encoded once, a run that goes on where it stopped, a result that the
ecosystem's tools read.

OUTPUT/class/                    class pictures, where they were drawn for the run (classes.py)
OUTPUT/cache/                    latents of the pictures (latents.py)
OUTPUT/lessons.txt               hashes of pictures and captions, and of the model: what the run belongs to
OUTPUT/step-*.pt, log.jsonl      the run (loop.py)
OUTPUT/lora.safetensors, word.safetensors, controlnet/ or model/: what was made
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..data.dataset import Lessons
from ..errors import TrainingError
from ..files import clear_drafts, whole_file
from ..pipeline import Pipeline
from . import state
from .distill import DistillRecipe, DistillStage
from .ema import result
from .finetune import FinetuneRecipe, FinetuneStage
from .inpainting import InpaintingRecipe, InpaintingStage
from .kinds import Report, Subject, log, tell_left_out
from .latents import fill, latents_of, place
from .loop import check_done, train
from .lora import LoraRecipe, LoraStage
from .parallel import launch, launched, share
from .recipes import check
from .scratch import ScratchStage
from .stage import PictureRecipe, PictureStage
from .tune import ControlNetRecipe, ControlNetStage, InversionRecipe, InversionStage
from .unet import UNetRecipe

STAGES: Mapping[type[PictureRecipe], type[PictureStage]] = {
    LoraRecipe: LoraStage,
    InversionRecipe: InversionStage,
    ControlNetRecipe: ControlNetStage,
    FinetuneRecipe: FinetuneStage,
    InpaintingRecipe: InpaintingStage,
    UNetRecipe: ScratchStage,
    DistillRecipe: DistillStage,
}
Tune = TypeVar("Tune", bound=PictureRecipe)
CACHE = "cache"  # in the output folder
BELONGS = "lessons.txt"
DREAMBOOTH: Mapping[str, Any] = {"caption": "a photo of sks", "dropout": 0.0, "prior_weight": 1.0}


def on(recipe: Tune, preset: str) -> Tune:
    """A recipe for a preset: the same numbers, on its device."""
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


def finetune(preset: str = "cpu") -> FinetuneRecipe:
    """Two thousand steps of four pictures."""
    return on(FinetuneRecipe(steps=2000, batch_size=4, lr=1e-5, optimizer="adamw", warmup=50, cooldown=0.5), preset)


def dreambooth(preset: str = "cpu") -> FinetuneRecipe:
    """Eight hundred steps of a picture of the subject and one of its class (Ruiz et al. 2022, arXiv 2208.12242)."""
    recipe = FinetuneRecipe(
        steps=800, batch_size=2, lr=5e-6, optimizer="adamw", warmup=20, cooldown=0.5, ema=0.99, **DREAMBOOTH
    )
    return on(recipe, preset)


def dreambooth_lora(preset: str = "cpu") -> LoraRecipe:
    """The same as a LoRA."""
    return on(replace(lora(), steps=800, batch_size=2, ema=0.99, **DREAMBOOTH), preset)


def inpainting(preset: str = "cpu") -> InpaintingRecipe:
    """Ten thousand steps of eight pictures."""
    return on(InpaintingRecipe(steps=10_000, batch_size=8, lr=1e-5, optimizer="adamw", warmup=200), preset)


def stage_of(recipe: PictureRecipe, pipe: Pipeline, lessons: Lessons, cache: Path, ahead: bool = False) -> PictureStage:
    """A run's stage, over latents that are there; `ahead`: encode its texts now. Raises TrainingError."""
    stage = STAGES[type(recipe)](recipe, pipe, lessons, latents_of(lessons, pipe.autoencoder, cache, _half(recipe)))
    stage.keep_texts(cache, ahead)
    return stage


def tune(
    recipe: PictureRecipe, subject: Subject, output: Path, workers: int = 1, report: Report = lambda *_: None
) -> Path:
    """Train what the recipe says, or go on with it; returns the file or folder that was made.

    Raises TrainingError, CheckpointError; Stopped when SIGINT or SIGTERM came: all is saved then, the same call goes
    on.
    """
    return write_result(train_pictures(recipe, subject, output, workers, report), output, output, report)


def write_result(stage: PictureStage, run: Path, output: Path, report: Report = lambda *_: None) -> Path:
    """Write what a finished run has made, in the folder `output`. Raises TrainingError, CheckpointError."""
    saved = result(run, stage.config)
    state.check_fit(stage.modules, saved["ema"], run)
    for name, module in stage.modules.items():
        module.load_state_dict(saved["ema"][name])
    report("writing what was made", None, 0)
    with stage.hooks:
        made = stage.write(output)
    clear_drafts(output)  # of a process that was killed here
    return made


def train_pictures(
    recipe: PictureRecipe,
    subject: Subject,
    output: Path,
    workers: int = 1,
    report: Report = lambda *_: None,
    cache: Path | None = None,
) -> PictureStage:
    """`tune` without its last step: train to the end, and return the stage as it began. `cache` is where latents are
    kept (default: in the output folder)."""
    cache = cache or output / CACHE
    pipe, lessons = encode_ahead(recipe, subject, output, workers, report, cache)
    stage = stage_of(recipe, pipe, lessons, cache, ahead=state.steps_done(output) < recipe.steps)
    if count := stage.cut_captions():
        log.warning(
            "%d of %d captions are longer than the %d tokens that chunks=%d reads; only their beginning is learned "
            "from", count, len(lessons), recipe.chunks * (stage.encoders[0].length - 2), recipe.chunks,
        )  # fmt: skip
    report("training", output, recipe.steps)
    if state.steps_done(output) < recipe.steps:
        if _alone(workers):
            train(stage, output)
        else:
            launch(_work, workers, recipe, subject, output, cache)
    check_done(output, recipe)
    return stage


def encode_ahead(
    recipe: PictureRecipe,
    subject: Subject,
    output: Path,
    workers: int = 1,
    report: Report = lambda *_: None,
    cache: Path | None = None,
) -> tuple[Pipeline, Lessons]:
    """All that comes before the first step: pictures looked at, a run's folder claimed, latents on disk unless an
    interruption came. Returns the model and its pictures. Raises TrainingError, CheckpointError.
    """
    check(recipe, workers)
    cache = cache or output / CACHE
    pipe, lessons = STAGES[type(recipe)].open(recipe, subject, output, report)
    output.mkdir(parents=True, exist_ok=True)
    tell_left_out(output, lessons.left_out)
    if without := sum(not caption for caption in lessons.captions):
        log.warning(
            "%d of %d pictures have no caption, and are learned from with the empty one; "
            "write one beside each, or set one for all (caption=...)", without, len(lessons),
        )  # fmt: skip
    _claim(output, f"{lessons.key} {pipe.model_hash or place(cache, pipe.autoencoder).name}\n")
    report("encoding pictures", None, 0)
    if _alone(workers):
        fill(cache, lessons, pipe.autoencoder, bfloat16=_half(recipe))
    else:
        launch(_encode, workers, recipe, subject, output, cache)
    return pipe, lessons


def _half(recipe: PictureRecipe) -> bool:
    return recipe.encode_precision == "bfloat16"


def _alone(workers: int) -> bool:
    return workers == 1 and launched() is None


def _claim(output: Path, belongs: str) -> None:
    """Note what a run belongs to. Raises TrainingError where it belongs to something else."""
    note = output / BELONGS
    if state.steps_done(output) and note.is_file() and note.read_text(encoding="utf-8") != belongs:
        raise TrainingError(f"{output} was trained on other pictures or for another model; use another folder")
    with whole_file(note) as draft:
        draft.write_text(belongs, encoding="utf-8")


def _encode(recipe: PictureRecipe, subject: Subject, output: Path, cache: Path) -> None:
    pipe, lessons = STAGES[type(recipe)].open(recipe, subject, output)
    fill(cache, lessons, pipe.autoencoder, share(), bfloat16=_half(recipe))


def _work(recipe: PictureRecipe, subject: Subject, output: Path, cache: Path) -> None:
    train(stage_of(recipe, *STAGES[type(recipe)].open(recipe, subject, output), cache), output)
