"""A run of any kind of training, by one call: claimed, encoded, trained, written; it goes on where it stopped.

OUTPUT/subject.json              what the run belongs to: hashes of its pictures and captions, and of the model
OUTPUT/left-out.txt              the pictures that can't be learned from, and why
OUTPUT/class/                    class pictures, where they were drawn for the run (pictures.py)
OUTPUT/cache/                    latents of the pictures (latents.py)
OUTPUT/step-*.pt, log.jsonl      the run (loop.py)
OUTPUT/loss.svg, before-after.png  what it was like (`conclude`)
OUTPUT/lora.safetensors, word.safetensors, controlnet/, vae/, clip/ or model/: what was made
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from ..files import Owner, owned, read_bytes, read_json, whole_file
from . import state
from .chart import draw_loss
from .ema import result
from .kinds import Report, Source, silent
from .loop import check_done, train
from .memory import Estimate
from .parallel import launch, launched
from .recipe import check
from .stage import Stage

CACHE = "cache"  # in the output folder
NOTE = "subject.json"
OLD_NOTE = "lessons.txt"  # of earlier versions: the key of the pictures, and of the model where there is one


def run(recipe: Any, source: Source, output: Path, workers: int = 1, report: Report = silent) -> Path:
    """Train what the recipe says, or go on with it; returns the file or folder that was made.

    Raises TrainingError, CheckpointError; Stopped when SIGINT or SIGTERM came: all is saved then, the same call goes
    on.
    """
    with owned(output, "run", TrainingError):
        return finish(train_to_end(recipe, source, output, workers, report), output, output, report)


def train_to_end(
    recipe: Any,
    source: Source,
    output: Path,
    workers: int = 1,
    report: Report = silent,
    cache: Path | None = None,
) -> Stage:
    """`run` without its last step: train, and return the stage as it began. `cache` is where latents are kept
    (default: in the output folder)."""
    cache = cache or output / CACHE
    with owned(output, "run", TrainingError) as owner:
        state.load_last(output, mmap=True)  # what is wrong with it is told now, and once
        stage = prepare(recipe, source, output, workers, report, cache)
        recipe = stage.config
        unfinished = state.steps_done(output) < recipe.steps
        stage.take(cache, ahead=unfinished)
        report(stage.title, output, recipe.steps)
        if unfinished:
            if _alone(workers):
                train(stage, output)
            else:
                launch(_train, workers, recipe, source, output, cache, owner)
        check_done(output, recipe)
    return stage


def prepare(
    recipe: Any,
    source: Source,
    output: Path,
    workers: int = 1,
    report: Report = silent,
    cache: Path | None = None,
) -> Stage:
    """All that comes before the first step: pictures looked at, the run's folder claimed, latents on disk unless an
    interruption came. Raises TrainingError, CheckpointError."""
    cache = cache or output / CACHE
    recipe = recipe.stage.settled(recipe, source)
    check(recipe, workers)
    stage: Stage = recipe.stage.open(recipe, source, output, report)
    output.mkdir(parents=True, exist_ok=True)
    stage.tell(output)
    claim(stage, output)
    if stage.encoding:
        report(stage.encoding, None, 0)
        if _alone(workers):
            stage.encode(cache)
        else:
            launch(_encode, workers, recipe, source, output, cache)
    return stage


def claim(stage: Stage, output: Path) -> None:
    """Note what a run belongs to. Raises TrainingError where it belongs to something else."""
    belongs = dict(stage.belongs())
    if state.steps_done(output):
        before = {**stage.unnoted, **noted(output)}
        for name, sentence in stage.others.items():
            if name in before and before[name] != belongs[name]:
                raise TrainingError(f"{output} {sentence}; use another folder")
    # Written anew, and whole or not at all: older versions' notes become today's.
    with whole_file(output / NOTE) as draft:
        draft.write_text(json.dumps(belongs, indent=1) + "\n", encoding="utf-8")


def noted(output: Path) -> dict[str, Any]:
    """What `claim` has noted of a run; {} where it has not."""
    note, old = output / NOTE, output / OLD_NOTE
    if note.is_file():
        return read_json(note, error=TrainingError)
    if old.is_file():
        words = read_bytes(old, error=TrainingError).decode(errors="replace").split()
        return dict(zip(("key", "model"), words, strict=False))
    return {}


def finish(stage: Stage, folder: Path, output: Path, report: Report = silent) -> Path:
    """Write what the finished run in `folder` has made, in `output`. Raises TrainingError, CheckpointError."""
    if stage.writing:
        report(stage.writing, None, 0)
    saved = result(folder, stage.config)
    state.check_fit(stage.modules, saved["ema"], folder)
    for name, module in stage.modules.items():
        module.load_state_dict(saved["ema"][name])
    with stage.hooks:
        return stage.write(output, report)


@dataclass(frozen=True, slots=True)
class Ending:
    """What is told when a run is over: the command to type next, and what there is to look at."""

    next: str
    pictures: tuple[Path, ...]


def conclude(recipe: Any, source: Source, output: Path, made: Path, report: Report = silent) -> Ending:
    """Draw the loss of a finished run, and a sheet of before and after with what it has `made`, into its folder.

    Raises what drawing raises: the result is written already.
    """
    recipe = recipe.stage.settled(recipe, source)
    chart = draw_loss(output, f"{output.name}: loss")
    command, sheet = recipe.stage.compare(recipe, source, made, output, report)
    return Ending(command, tuple(found for found in (sheet, chart) if found is not None))


def estimate(recipe: Any, model: str | None = None, world: int = 1) -> Estimate:
    """What a run by any recipe, from `model` on, takes in each of `world` processes; of a recipe of several runs, what
    the largest one takes.

    Raises CheckpointError for a model that can't be opened, TrainingError for networks that can't be built.
    """
    try:
        found: Estimate = recipe.estimate(model, world)
        return found
    except ValueError as error:
        raise TrainingError(f"the recipe's networks can't be built: {error}") from None


def _alone(workers: int) -> bool:
    """Whether this process is the only one, so that it can go on with the stage that it has opened."""
    return workers == 1 and launched() is None


def _encode(recipe: Any, source: Source, output: Path, cache: Path) -> None:
    recipe.stage.open(recipe, source, output).encode(cache)


def _train(recipe: Any, source: Source, output: Path, cache: Path, owner: Owner) -> None:
    """A rank's part. With `owner` the run's folder stays owned until all ranks have left it."""
    stage: Stage = recipe.stage.open(recipe, source, output)
    stage.take(cache)
    train(stage, output)
