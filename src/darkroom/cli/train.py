"""`darkroom train`: any of `darkroom.training.kinds.KINDS` from the command line."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from ..elsewhere import TRAINING
from ..errors import Error, RequestError, TrainingError
from ..formats.hub import check_source
from ..request import choice, whole
from ..training.kinds import KINDS, Kind, Source, default_output
from . import INTERRUPTED, complain, completion, note, options
from .command import App, Argument, Option
from .progress import Line

app = App()

_MOST_WORKERS = 8  # more processes than this share a batch of a small network badly


def _also(name: str) -> tuple[str, ...]:
    """What other programs call an option."""
    return tuple(f"--{other.replace('_', '-')}" for other in TRAINING.of(name))


def _as_one(command: Callable[..., int]) -> Callable[..., int]:
    """Of the processes that torchrun starts, rank 0 runs the command; the others share what it launches."""

    @wraps(command)
    def run(**arguments: Any) -> int:
        if "RANK" not in os.environ:
            return command(**arguments)
        from ..training.parallel import together

        with together():
            return command(**arguments)

    return run


def _more(typed: Sequence[str]) -> str:
    """What help says further: the settings of the kind that was typed, or the kinds."""
    kind = next((word for word in typed if word in KINDS), None)
    if kind is not None:
        return settings_text(kind, KINDS[kind].recipe_of())
    width = max(map(len, KINDS)) + 4
    kinds = [f"  {name:<{width - 2}}{what.about}" for name, what in KINDS.items()]
    return "\n".join(["Kinds:", *kinds, "", "darkroom train KIND --help has the settings of a kind."])


@app.command(more=_more)
@_as_one
def train(
    kind: Annotated[str, Argument("KIND", f"What to train: {', '.join(KINDS)}.", completion.trainings)],
    output: Annotated[
        str | None,
        Option(
            "--output",
            "-o",
            aliases=_also("output"),
            metavar="DIR",
            help="Where the run lives. [default: runs/KIND-DATA]",
        ),
    ] = None,
    preset: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="cpu (two cores) or gpu (a large one); and what a lora is for: object or style; may be repeated. "
            "[default: cpu]",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        Option(
            aliases=_also("steps"),
            metavar="N",
            parser=options.whole_number,
            help="Length of the run. [default: the preset's]",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; may be repeated."),
    ] = None,
    workers: Annotated[
        int | None,
        Option(
            aliases=_also("workers"),
            metavar="N",
            parser=options.whole_number,
            help="Processes that share every batch. [default: a core each]",
        ),
    ] = None,
    model: Annotated[
        str | None,
        Option(
            aliases=_also("model"),
            complete=completion.models,
            metavar="M",
            help="What to start from; for unet: whose autoencoder to use, a run or a model. "
            "[default: the embedded model]",
        ),
    ] = None,
    data: Annotated[
        str | None,
        Option(
            aliases=_also("data"),
            metavar="DIR",
            help="Pictures to learn from, with their captions. [default: the built-in scenes]",
        ),
    ] = None,
    resume: Annotated[bool, Option("--resume/--no-resume", help="Go on with the run in DIR, if there is one.")] = True,
    skip_damaged: Annotated[
        bool,
        Option("--skip-damaged", help="Go on from the newest checkpoint that is whole, and say which it is."),
    ] = False,
    show: Annotated[
        bool, Option("--show-recipe", help="Print the complete recipe as JSON, and train nothing.")
    ] = False,
    listed: Annotated[
        bool, Option("--settings", help="List the settings of KIND, what each is and what for; train nothing.")
    ] = False,
) -> int:
    """Train networks from nothing, or from a model; interrupt at any moment, and the same command goes on.

    darkroom train lora --data my-pictures/

    darkroom train lora --settings
    """
    presets = preset or []
    with options.named_as_options():
        choice("KIND", kind, KINDS)
        for name in presets:
            choice("--preset", name, KINDS[kind].presets)
        if workers is not None:
            whole("--workers", workers, 1, 256)
    folder = _folder(str(default_output(kind, data)) if output is None else output)
    what = KINDS[kind]
    if model is not None and not what.model:
        takers = ", ".join(name for name, other in KINDS.items() if other.model)
        raise RequestError(f"--model is for {takers}; {kind} starts from nothing")
    if data is not None and not what.data:
        takers = ", ".join(name for name, other in KINDS.items() if other.data)
        raise RequestError(f"--data is for {takers}; {kind} is trained on the built-in scenes")
    from ..training import recipe as recipes

    if model is not None:
        check_source(model)
    if data is not None and not os.path.exists(data) and not set(data) & set("*?[{"):
        raise RequestError(f"--data is {data[:200]!r}, which does not exist; give a folder of pictures, or shards")
    recipes.check_early([*(settings or []), *([] if steps is None else [f"steps={steps}"])])
    from ..training.loop import Stopped

    recipe: Any = what.recipe_of(*presets, model=model)
    if steps is not None:
        if not hasattr(recipe, "steps"):
            raise RequestError("--steps is for one network; use --set autoencoder.steps=N and --set unet.steps=N")
        recipe = recipes.override(recipe, [f"steps={steps}"])
    recipe = recipes.override(recipe, settings or [])
    if listed:
        print(settings_text(kind, recipe))
        return 0
    for sentence in recipes.unused(recipe, recipes.assigned(settings or [])):
        complain(sentence)
    if show:
        from dataclasses import asdict

        print(json.dumps(asdict(recipe), indent=2))
        _tell_memory(recipe, model, _started(workers) or workers or 1)
        return 0
    workers = _started(workers) or workers or _workers(recipe)
    for part in recipes.parts(recipe):
        recipes.check(part, workers)
    if not resume:
        _refuse_old(folder)
    if skip_damaged:
        _skip_damaged(folder)
    _tell_memory(recipe, model, workers)
    if output is None:
        note(f"the run is in {folder}; -o names another folder")
    try:
        with Line() as line:
            made = what.train(recipe, Source(model, data), folder, workers, line.stage)
            print(made, flush=True)
            ending = _conclude(what, recipe, Source(model, data), folder, made, line)
    except Stopped as stop:
        complain(str(stop))
        return INTERRUPTED
    except OSError as error:
        raise TrainingError(f"{str(error.filename or folder)!r} can't be used: {error.strerror or error}") from error
    for sentence in ending:
        note(sentence)
    return 0


def _conclude(what: Kind, recipe: Any, source: Source, folder: Path, made: Path, line: Line) -> list[str]:
    """What is told at the end of a run, whose result is there whatever happens now."""
    try:
        ending = what.conclude(recipe, source, folder, made, line.stage)
    except Error as error:
        return [f"there is no sheet of before and after: {error}"]
    return [*(f"to look at: {path}" for path in ending.pictures), f"next: {ending.next}"]


def settings_text(kind: str, recipe: Any) -> str:
    """All settings of a kind of training: name and value in this recipe, what it is for, what its values must be."""
    from ..training.recipe import listing

    width = min(max(shutil.get_terminal_size((80, 24)).columns, 60), 120) - 1
    lines = [f"Settings of {kind}, to be changed by --set NAME=VALUE:"]
    heading = None
    for each in listing(recipe):
        if each.heading != heading:
            heading = each.heading
            lines += ["", f"{heading}:"]
        left = f"  {each.name}={each.written}"
        told = textwrap.wrap(f"{each.help} [{each.wanted}]" if each.wanted else each.help, width - 26)
        if len(left) > 24:
            lines.append(left)
            left = ""
        lines.append(f"{left:<26}{told[0]}")
        lines += [" " * 26 + line for line in told[1:]]
    return "\n".join(lines)


def _tell_memory(recipe: Any, model: str | None, workers: int) -> None:
    """Say on stderr what a run will take, and whether the device has so much."""
    from ..training.memory import device_memory, gigabytes
    from ..training.recipe import parts
    from ..training.run import estimate as estimated

    estimate, device = estimated(recipe, model, workers), parts(recipe)[0].device
    each = " in each process" if workers > 1 else ""
    complain(f"memory: about {estimate}{each}")
    there = device_memory(device)
    needed = estimate.total * (workers if device == "cpu" else 1)
    if there is not None and needed > there:
        complain(
            f"that is {gigabytes(needed)} GB, and {device} has {gigabytes(there)}; set checkpointing=true, "
            "accumulate, optimizer=adamw8bit, or a smaller batch_size or size"
        )


def _folder(text: str) -> Path:
    """The output folder. Raises RequestError for what can't be one."""
    folder = Path(options.path(text))
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not there.is_dir():
        raise RequestError(f"{str(there)!r} is not a folder: choose another output")
    return folder


def _refuse_old(folder: Path) -> None:
    from ..training.state import checkpoints

    for run in _runs(folder):
        if checkpoints(run):
            raise TrainingError(f"{str(run)!r} holds a run already; leave --no-resume out, or choose another folder")


def _skip_damaged(folder: Path) -> None:
    from ..files import owned
    from ..training.state import checkpoints, set_damaged_aside

    for run in _runs(folder):
        if checkpoints(run):
            with owned(run, "run", TrainingError):
                damaged, step = set_damaged_aside(run)
            for path in damaged:
                complain(f"damaged, and left out: {path}")
            complain(f"going on from step {step} in {run}")


def _runs(folder: Path) -> tuple[Path, ...]:
    """Where a command's runs may be."""
    return folder, folder / "autoencoder", folder / "unet"


def _started(workers: int | None) -> int | None:
    """How many processes torchrun started, if it did. Raises RequestError if another number is asked for."""
    from ..training.parallel import launched

    world = launched()
    if world is not None and workers not in (None, world):
        raise RequestError(f"--workers is {workers}, and torchrun has started {world} processes; leave --workers out")
    return world


def _workers(recipe: Any) -> int:
    """As many processes as there are cores and the batches can be shared by; one on a GPU."""
    from ..training.recipe import check, parts

    runs = parts(recipe)
    for part in runs:
        check(part)
    if any(part.device != "cpu" for part in runs):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for workers in range(min(cores, _MOST_WORKERS), 1, -1):
        try:
            for part in runs:
                check(part, workers)
        except TrainingError:
            continue
        return workers
    return 1
