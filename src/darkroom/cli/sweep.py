"""`darkroom sweep`: one prompt, every combination of some values, one labelled sheet."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..errors import RequestError
from ..formats.picture import PictureExists, file_stem
from ..sweeps.axes import LETTERS, parse_axis
from ..sweeps.sweep import Sweep
from . import INTERRUPTED, USER_ERROR, complain, options
from .command import App, Argument, Option
from .display import Display, uninterrupted
from .drawing import DrawingOptions, drawing

if TYPE_CHECKING:
    from ..engine import Engine, Inputs

app = App()

_AXIS = "NAME=V1,V2,..."


@app.command()
@options.taking(drawing)
def sweep(
    prompt: Annotated[str, Argument(metavar="PROMPT", help="What to draw.")],
    x: Annotated[str, Option("--x", metavar=_AXIS, help="What changes from column to column.")],
    y: Annotated[str | None, Option("--y", metavar=_AXIS, help="What changes from row to row.")] = None,
    z: Annotated[str | None, Option("--z", metavar=_AXIS, help="What changes from block to block.")] = None,
    output: options.Output = ".",
    save_cells: Annotated[bool, Option("--save-cells", help="Also write each picture, as it comes.")] = False,
    *,
    asked: DrawingOptions,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Draw a grid: one prompt with every combination of some values, on one labelled sheet.

    darkroom sweep "a fox on a yellow background" --x steps=10,20,30 --y sampler=lms,dpmpp_2m -o out/

    An axis is a request's field or its option's name: steps, sampler, seed, guidance, size, ... Numbers may be ranges
    (steps=10..30:10, guidance=1..7[4]). "prompt=fox,owl" replaces the first words by each; quotes keep commas. Beside
    the sheet, a JSON file of the same name says what is where, with each picture's complete recipe.
    """
    axes = [parse_axis(letter, given) for letter, given in zip(LETTERS, (x, y, z), strict=True) if given is not None]
    with options.named_as_options():
        base = replace(asked.request, prompt=prompt)
    grid = Sweep.plan(base, axes)
    sheet = _sheet(output, grid, overwrite)
    with Display("loading the model") as display:
        pipe = asked.load()
        from ..engine import Engine

        engine = Engine(pipe, deterministic=pipe.device.type == "cpu")
        inputs = asked.inputs(pipe, [cell.request for cell in grid.cells])
        code = _draw(grid, engine, inputs, display, sheet, save_cells, overwrite)
    paths = []
    if grid.images:
        with uninterrupted():
            _make(sheet.parent)
            paths = [str(path) for path in grid.save(sheet, overwrite=overwrite)]
            if not as_json:
                print("\n".join(paths), flush=True)
    if as_json:
        print(json.dumps({"paths": paths, **grid.to_dict()}, indent=2))
    return code


def _draw(
    grid: Sweep, engine: Engine, inputs: Inputs, display: Display, sheet: Path, save_cells: bool, overwrite: bool
) -> int:
    """Draw all cells, writing each as it comes if asked to; the exit code. Ctrl-C leaves what is finished."""
    from ..engine import Failed, Finished, Progress

    crossed, code = 0, 0
    total = 0
    told = set[str]()
    try:
        for cell, event in grid.draw(engine, inputs):
            if isinstance(event, Progress):
                crossed += 1
                total = max(total, event.steps * len(grid.cells), crossed)
                now = f"picture {len(grid.images) + len(grid.errors) + 1} of {len(grid.cells)}"
                display.steps(crossed, total, now)
            elif isinstance(event, Failed):
                code = USER_ERROR
                display.complain(f"the cell {cell.words} failed: {event.error}")
            elif isinstance(event, Finished):
                for sentence in event.warnings:
                    if sentence not in told:
                        told.add(sentence)
                        display.complain(sentence)
                if not save_cells:
                    continue
                with uninterrupted():
                    folder = sheet.with_suffix("")
                    _make(folder)
                    grid.save_cell(cell.place, folder, overwrite=overwrite)
    except KeyboardInterrupt:
        display.close()
        noted = ", and the sheet shows those" if grid.images else ""
        complain(f"interrupted; {len(grid.images)} of {len(grid.cells)} pictures are drawn{noted}")
        code = INTERRUPTED
    return code


def _sheet(output: str, grid: Sweep, overwrite: bool) -> Path:
    """The sheet's file. What can be known to fail fails now, before a model is loaded."""
    if options.is_file_name(options.path(output)):
        sheet = Path(output)
        if not sheet.parent.is_dir():
            raise RequestError(f"there is no folder {str(sheet.parent)!r}: create it first, or choose another place")
        if taken := _taken(sheet, overwrite):
            raise PictureExists(f"{taken!r} exists already: choose another name, or add --overwrite")
    else:
        stem = f"sweep-{file_stem(grid.base.to_dict())}"
        sheet, count = Path(output) / f"{stem}.png", 1
        while _taken(sheet, overwrite):
            count += 1
            sheet = Path(output) / f"{stem}-{count}.png"
    options.check_folder(sheet.parent)
    return sheet


def _taken(sheet: Path, overwrite: bool) -> str | None:
    """Which file or folder of a sheet's name is there already: the sheet, its JSON, its cells."""
    names = (sheet, sheet.with_suffix(".json"), sheet.with_suffix(""))
    return next((str(path) for path in names if not overwrite and os.path.lexists(path)), None)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"can't create the folder {str(folder)!r}: {str(error.strerror).lower()}") from error
