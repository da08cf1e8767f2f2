"""`darkroom train`: any of `darkroom.training.kinds.KINDS` from the command line."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..elsewhere import TRAINING
from ..errors import Error, RequestError
from ..request import choice
from ..training.kinds import KINDS, Source, check_asked, default_output
from . import INTERRUPTED, complain, completion, note, options
from .command import App, Argument, Option
from .progress import Line

if TYPE_CHECKING:
    from ..training.start import Plan, Trained

app = App()

_NAMES = ("data", "model", "output", "preset", "workers")  # what sentences call by an option's name


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
            help="Processes that share every batch. [default: a core each, of 8 rows or more]",
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
    presets, source = preset or [], Source(model, data)
    with options.named_as_options(*_NAMES):
        choice("KIND", kind, KINDS)
        check_asked(kind, presets, source, workers)
    folder = Path(str(default_output(kind, data)) if output is None else options.path(output))
    what = KINDS[kind]
    from ..training import recipe as recipes

    recipes.check_early([*(settings or []), *([] if steps is None else [f"steps={steps}"])])
    from ..training.loop import Stopped
    from ..training.start import Plan

    recipe: Any = what.recipe_of(*presets, model=model)
    if steps is not None:
        if not hasattr(recipe, "steps"):
            raise RequestError("--steps is for one network; use --set autoencoder.steps=N and --set unet.steps=N")
        recipe = recipes.override(recipe, [f"steps={steps}"])
    recipe = recipes.override(recipe, settings or [])
    if listed:
        print(settings_text(kind, recipe))
        return 0
    for sentence in recipes.unused(recipe, recipes.assigned(settings or []), data is not None):
        complain(sentence)
    if show:
        print(json.dumps(asdict(recipe), indent=2))
        for sentence in Plan(what, recipe, source, folder, workers or 1).memory():
            complain(sentence)
        return 0
    with options.named_as_options(*_NAMES):
        plan = Plan.of(what, recipe, source, folder, workers)
    if not resume:
        plan.refuse_old()
    for sentence in [*(plan.skip_damaged() if skip_damaged else ()), *plan.memory()]:
        complain(sentence)
    if output is None:
        note(f"the run is in {folder}; -o names another folder")
    try:
        with Line() as line:
            trained = plan.train(line.show)
            print(trained.path, flush=True)
            ending = _conclude(plan, trained, line)
    except Stopped as stop:
        complain(str(stop))
        return INTERRUPTED
    for sentence in ending:
        note(sentence)
    return 0


def _conclude(plan: Plan, trained: Trained, line: Line) -> list[str]:
    """What is told at the end of a run, whose result is there whatever happens now."""
    try:
        trained = plan.conclude(trained, line.show)
    except Error as error:
        return [f"there is no sheet of before and after: {error}"]
    return [*(f"to look at: {path}" for path in trained.pictures), f"next: {trained.next}"]


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
