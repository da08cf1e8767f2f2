"""A training by one call: what `darkroom.train` does, and the command `darkroom train` with it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, overload

from ..errors import Error, RequestError, TrainingError
from ..files import owned
from ..names import Training
from ..request import choice
from . import recipe as recipes
from . import state
from .background import stopped_by
from .kinds import KINDS, Kind, Source, check_asked, default_output, log
from .log import NAME as LOG
from .memory import device_memory, gigabytes
from .parallel import launched
from .run import estimate

if TYPE_CHECKING:
    from .autoencoder import AutoencoderRecipe
    from .controlnet import ControlNetRecipe
    from .distill import DistillRecipe
    from .embedded import EmbeddedRecipe
    from .finetune import FinetuneRecipe
    from .inpainting import InpaintingRecipe
    from .lora import LoraRecipe
    from .recipe import LoopConfig
    from .text_encoder import TextEncoderRecipe
    from .textual_inversion import InversionRecipe
    from .unet import UNetRecipe
    from .upscaler import UpscalerRecipe

Preset = Literal["cpu", "gpu", "object", "style"]
Place = str | Path
MOST_WORKERS = 8  # more processes than this share a batch of a small network badly
ROWS = 8  # of a step, that a process of its own is worth
LOOK_EVERY = 0.5  # seconds between looks into a run's log


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far a training is: told when a stage begins, and with every row of the run's log (`log_every` steps).

    Attributes:
        stage: what is being done: "encoding", "training the LoRA".
        step, steps: of the stage; 0 of 0 where it has none.
        run: the folder of the run, if the stage is one.
        figures: the row: loss, lr, samples_per_second, seconds, left, what the kind adds; "validation": the last one.
    """

    stage: str
    step: int = 0
    steps: int = 0
    run: Path | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """The mean loss since the row before."""
        return self.figures.get("loss")

    @property
    def seconds_left(self) -> float | None:
        """To the end of the stage, at the pace it has."""
        return self.figures.get("left")


@dataclass(frozen=True)
class Trained:
    """A training that has come to its end.

    Attributes:
        path: what was made: a file (`darkroom.Lora(path)`, `darkroom.Embedding(path)`) or a folder
            (`darkroom.load(path)`, `darkroom.Control(path, picture)`).
        output: the run's folder; the same call goes on in it, with more `steps` for one.
        recipe: what it was trained by.
        pictures: what there is to look at: a sheet of before and after, the loss.
        next: the command that uses what was made.
    """

    path: Path
    output: Path
    recipe: Any
    pictures: tuple[Path, ...] = ()
    next: str = ""

    def log(self) -> list[dict[str, float]]:
        """The rows of the run's log, in order; none for a training of several runs, whose folders have them."""
        from .log import read_log

        return read_log(self.output)


Tell = Callable[[TrainingProgress], None]


# --- recipes


@overload
def training_recipe(
    kind: Literal["embedded"], *presets: Preset, model: Place | None = None, **settings: Any
) -> EmbeddedRecipe: ...
@overload
def training_recipe(
    kind: Literal["autoencoder"], *presets: Preset, model: Place | None = None, **settings: Any
) -> AutoencoderRecipe: ...
@overload
def training_recipe(
    kind: Literal["text-encoder"], *presets: Preset, model: Place | None = None, **settings: Any
) -> TextEncoderRecipe: ...
@overload
def training_recipe(
    kind: Literal["unet"], *presets: Preset, model: Place | None = None, **settings: Any
) -> UNetRecipe: ...
@overload
def training_recipe(
    kind: Literal["finetune", "dreambooth"], *presets: Preset, model: Place | None = None, **settings: Any
) -> FinetuneRecipe: ...
@overload
def training_recipe(
    kind: Literal["lora", "dreambooth-lora"], *presets: Preset, model: Place | None = None, **settings: Any
) -> LoraRecipe: ...
@overload
def training_recipe(
    kind: Literal["textual-inversion"], *presets: Preset, model: Place | None = None, **settings: Any
) -> InversionRecipe: ...
@overload
def training_recipe(
    kind: Literal["distill"], *presets: Preset, model: Place | None = None, **settings: Any
) -> DistillRecipe: ...
@overload
def training_recipe(
    kind: Literal["controlnet"], *presets: Preset, model: Place | None = None, **settings: Any
) -> ControlNetRecipe: ...
@overload
def training_recipe(
    kind: Literal["upscaler"], *presets: Preset, model: Place | None = None, **settings: Any
) -> UpscalerRecipe: ...
@overload
def training_recipe(
    kind: Literal["inpainting"], *presets: Preset, model: Place | None = None, **settings: Any
) -> InpaintingRecipe: ...
def training_recipe(kind: Training, *presets: Preset, model: Place | None = None, **settings: Any) -> Any:
    """The recipe of a kind of training: a frozen dataclass, to be looked at, changed by `dataclasses.replace`, and
    given to `train`.

    Args:
        kind: "lora", "textual-inversion", "finetune", ...: what `darkroom train --help` lists.
        presets: "cpu" for two cores (or none), "gpu" for a large one; and what a LoRA is for, "object" or "style".
        model: what will be trained from: a small model has other numbers (`train` says what may be given).
        settings: what is otherwise, by name: rank=8, lr=1e-3. Of a recipe of several parts with "unet.steps" in a
            dictionary: **{"unet.steps": 100}.

    Raises RequestError, TrainingError, with the nearest name.
    """
    choice("kind", kind, get_args(Training))
    for preset in presets:
        choice("preset", preset, KINDS[kind].presets)
    recipe = KINDS[kind].recipe_of(*presets, model=None if model is None else str(model))
    return recipes.override(recipe, [f"{name}={_written(value)}" for name, value in settings.items()])


def _written(value: Any) -> str:
    """A value as `recipe.override` reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(_written(part) for part in value)
    return str(value)


def kind_of(recipe: Any) -> Kind:
    """What is trained by a recipe. Raises RequestError for what is none."""
    modules = {base.__module__ for base in type(recipe).__mro__}
    found = [kind for kind in KINDS.values() if f"{__package__}.{kind.recipe.partition(':')[0]}" in modules]
    if not found:
        raise RequestError(
            f"recipe is {str(recipe)[:60]!r}; it must be one of {', '.join(KINDS)}, or what training_recipe gives"
        )
    return found[0]


def name_of(kind: Kind) -> str:
    """What a kind is called."""
    return next(name for name, other in KINDS.items() if other is kind)


# --- a run


@dataclass(frozen=True)
class Plan:
    """A training that can begin: checked as far as no picture is opened."""

    kind: Kind
    recipe: Any
    source: Source
    output: Path
    workers: int

    @classmethod
    def of(cls, kind: Kind, recipe: Any, source: Source, output: Path, workers: int | None) -> Self:
        """`workers` None: as many as there are cores and the batches can be shared by. Raises RequestError,
        TrainingError."""
        there = next((place for place in (output, *output.absolute().parents) if place.exists()), output)
        if not there.is_dir():
            raise RequestError(f"{str(there)!r} is not a folder; choose another output")
        count = started(workers) or workers or default_workers(recipe)
        for part in recipes.parts(recipe):
            recipes.check(part, count)
        return cls(kind, recipe, source, output, count)

    @property
    def runs(self) -> tuple[Path, ...]:
        """Where its runs may be."""
        return self.output, self.output / "autoencoder", self.output / "unet"

    def refuse_old(self) -> None:
        """Raise TrainingError where there is a run already."""
        for run in self.runs:
            if state.checkpoints(run):
                raise TrainingError(f"{str(run)!r} holds a run already; let it go on, or choose another folder")

    def skip_damaged(self) -> list[str]:
        """Set damaged checkpoints aside, so that it goes on from the newest that is whole; a sentence for each."""
        told = []
        for run in self.runs:
            if state.checkpoints(run):
                with owned(run, "run", TrainingError):
                    damaged, step = state.set_damaged_aside(run)
                told += [f"damaged, and left out: {path}" for path in damaged]
                told.append(f"going on from step {step} in {run}")
        return told

    def memory(self) -> list[str]:
        """What it will take, and whether that is too much, a sentence each."""
        found, device = estimate(self.recipe, self.source.model, self.workers), recipes.parts(self.recipe)[0].device
        each = " in each process" if self.workers > 1 else ""
        told, there = [f"memory: about {found}{each}"], device_memory(device)
        needed = found.total * (self.workers if device == "cpu" else 1)
        if there is not None and needed > there:
            told.append(
                f"that is {gigabytes(needed)} GB, and {device} has {gigabytes(there)}; set checkpointing=true, "
                "accumulate, optimizer=adamw8bit, or a smaller batch_size or size"
            )
        return told

    def train(self, tell: Tell) -> Trained:
        """Train to the end, or go on. Raises TrainingError, CheckpointError, loop.Stopped; and what `tell` raises, when
        all is saved."""
        try:
            with Watch(tell) as watch:
                made = self.kind.train(self.recipe, self.source, self.output, self.workers, watch.stage)
        except OSError as error:
            where = str(error.filename or self.output)
            raise TrainingError(f"{where!r} can't be used: {error.strerror or error}") from error
        return Trained(made, self.output, self.recipe)

    def conclude(self, trained: Trained, tell: Tell) -> Trained:
        """The same with what there is to look at, and what to type next. Raises what drawing raises."""
        with Watch(tell) as watch:
            ending = self.kind.conclude(self.recipe, self.source, self.output, trained.path, watch.stage)
        return replace(trained, pictures=ending.pictures, next=ending.next)


def started(workers: int | None) -> int | None:
    """How many processes torchrun started, if it did. Raises RequestError if another number is asked for."""
    world = launched()
    if world is not None and workers not in (None, world):
        raise RequestError(f"workers is {workers}, and torchrun has started {world} processes; leave workers out")
    return world


def default_workers(recipe: Any) -> int:
    """As many processes as there are cores and the batches can be shared by, each with `ROWS` rows or more; one on a
    GPU. With fewer rows the processes wait for each other longer than the threads of one do."""
    runs = recipes.parts(recipe)
    for part in runs:
        recipes.check(part)
    if any(part.device != "cpu" for part in runs):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    enough = min(part.batch_size for part in runs) // ROWS
    for workers in range(min(cores, enough, MOST_WORKERS), 1, -1):
        try:
            for part in runs:
                recipes.check(part, workers)
        except TrainingError:
            continue
        return workers
    return 1


# --- progress


class Watch:
    """Tells of a training's stages as they begin, and of the rows of its log, which whichever process trains writes.

    What the listener raises stops the training as Ctrl-C does: a step is finished and saved. It is raised at the end of
    this context.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._lock = threading.RLock()
        self._stage = TrainingProgress("")
        self._offset = 0  # bytes of the log that were told of
        self._held_out: dict[str, float] = {}
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="darkroom-training")

    def __enter__(self) -> Self:
        self._stopping = stopped_by(lambda: self._error is not None)
        self._stopping.__enter__()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._over.set()
        self._thread.join()
        self._stopping.__exit__(None, None, None)
        if kind is None:
            self._look()
        if self._error is not None and (kind is None or issubclass(kind, KeyboardInterrupt)):
            raise self._error from None

    def stage(self, text: str, run: Path | None, steps: int) -> None:
        """A stage begins: a `kinds.Report`."""
        with self._lock:
            self._look()
            self._stage = TrainingProgress(text, 0, steps, run)
            self._offset = 0 if run is None else _size(run / LOG)
            self._held_out = {}
            self._told(self._stage)

    def _work(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            self._look()

    def _look(self) -> None:
        """Tell of the rows that are new."""
        with self._lock:
            now = self._stage
            if now.run is None:
                return
            self._offset = min(self._offset, _size(now.run / LOG))  # a run that goes on takes rows back
            try:
                with open(now.run / LOG, "rb") as file:
                    file.seek(self._offset)
                    found, end, _ = file.read().rpartition(b"\n")
            except OSError:
                return
            self._offset += len(found + end)
            for line in found.splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                self._held_out |= {"validation": row["validation"]} if "validation" in row else {}
                figures = {**self._held_out, **row}
                self._told(TrainingProgress(now.stage, row["step"], now.steps, now.run, figures))

    def _told(self, progress: TrainingProgress) -> None:
        if self._error is not None:
            return
        try:
            self._tell(progress)
        except BaseException as error:
            self._error = error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# --- the call


def train(
    recipe: Training | LoopConfig | EmbeddedRecipe,
    data: str | Path | None = None,
    output: str | Path | None = None,
    *,
    model: str | Path | None = None,
    preset: Preset | Sequence[Preset] = (),
    workers: int | None = 1,
    resume: bool = True,
    skip_damaged: bool = False,
    conclude: bool = True,
    on_progress: Tell | None = None,
    **settings: Any,
) -> Trained:
    """Train a LoRA, a word, a ControlNet, a model...: what the command `darkroom train` does (docs/tuning.md).

        made = darkroom.train("lora", "my-pictures/", "runs/my-style", steps=500, rank=8)
        pipe.generate("a fox", loras=[made.path])

    Args:
        recipe: a kind ("lora", "textual-inversion", "finetune", ...), or the recipe itself (`training_recipe`).
        data: a folder of pictures with captions, or shards (docs/training-data.md); None: the built-in scenes.
        output: the run's folder; None: runs/KIND-DATA. A run that is in it already goes on.
        model: what to start from, as `load` takes it; None: the embedded model.
        preset: of a kind, one or several: "cpu" or "gpu"; "object" or "style" of a LoRA.
        workers: processes that share every batch; None: as the command, a core each, of 8 rows or more. With more than
            one the program must be a file whose work is under `if __name__ == "__main__":`.
        resume: False: refuse a folder that holds a run.
        skip_damaged: go on from the newest checkpoint that is whole.
        conclude: draw a sheet of before and after, and the loss, into the run's folder.
        on_progress: called with TrainingProgress(stage, step, steps, run, figures), mostly from another thread. What it
            raises stops the training after the step, which is saved, and is raised here.
        settings: of the recipe, by name: steps=500, rank=8.

    SIGINT and SIGTERM stop it, all saved, with `training.loop.Stopped`, a KeyboardInterrupt: the same call goes on.
    Raises RequestError, TrainingError and CheckpointError, in one sentence each.
    """
    source = Source(None if model is None else str(model), None if data is None else str(data))
    presets = (preset,) if isinstance(preset, str) else preset
    named = isinstance(recipe, str)
    check_asked(choice("kind", recipe, KINDS) if named else name_of(kind_of(recipe)), presets, source, workers)
    if isinstance(recipe, str):
        recipe = training_recipe(recipe, *presets, model=model, **settings)
    else:
        recipe = recipes.override(recipe, [f"{name}={_written(v)}" for name, v in settings.items()])
    kind = kind_of(recipe)
    for sentence in recipes.unused(recipe, settings, source.data is not None):
        log.warning("%s", sentence)
    if output is None:
        output = default_output(name_of(kind), source.data)
    plan = Plan.of(kind, recipe, source, Path(output), workers)
    if not resume:
        plan.refuse_old()
    for sentence in plan.skip_damaged() if skip_damaged else ():
        log.warning("%s", sentence)
    told, *too_much = plan.memory()
    log.info("%s", told)
    for sentence in too_much:
        log.warning("%s", sentence)
    tell = on_progress or (lambda progress: None)
    trained = plan.train(tell)
    if not conclude:
        return trained
    try:
        return plan.conclude(trained, tell)
    except Error as error:
        log.warning("there is no sheet of before and after: %s", error)
        return trained
