"""Drawing a grid through one engine, and what comes of it: a sheet, and a list of what is where."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import Error, RequestError
from ..formats.picture import write_atomically, write_picture
from ..request import Request
from .axes import LETTERS, PROMPT, Axis, Cell, cells
from .sheet import Box, Place, Sheet, arrange

if TYPE_CHECKING:
    from ..engine import Engine, Event, Inputs

SCHEMA = 1


@dataclass(eq=False)
class Sweep:
    """A grid of pictures: planned by `plan`, drawn by `draw`, and then one picture with labels.

    Attributes:
        base: the request whose values the axes replace; its seed is every cell's.
        axes: one to three, x (columns), y (rows), z (blocks).
        cells: all combinations, x fastest.
        images: the pictures drawn so far, by place (x, y, z).
        requests: their complete recipes.
        errors: why a cell has no picture.
        files: where `save_cell` has written single pictures, as folder/name.
    """

    base: Request
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    images: dict[Place, Image.Image] = field(default_factory=dict)
    requests: dict[Place, Request] = field(default_factory=dict)
    errors: dict[Place, Error] = field(default_factory=dict)
    files: dict[Place, str] = field(default_factory=dict)

    @classmethod
    def plan(cls, base: Request, axes: Sequence[Axis]) -> Sweep:
        """Every cell's request, checked. Raises RequestError, naming axis and value."""
        if not 1 <= len(axes) <= len(LETTERS):
            raise RequestError(f"a grid has one to three axes, not {len(axes)}")
        base = base.seeded()
        sweep = cls(base, tuple(axes), tuple(cells(base, axes)))
        sweep.layout()  # a sheet that is too large is refused here
        return sweep

    def draw(self, engine: Engine, inputs: Inputs | None = None) -> Iterator[tuple[Cell, Event]]:
        """Draw all cells together; each event as it comes, with its cell.

        A cell that the model can't draw is refused, by a RequestError that names it, before the first is begun.
        One that fails on the way has its error in `errors`, and the others go on.
        """
        import torch  # a grid is planned without it

        from ..engine import Failed, Finished
        from ..engine.prepare import prepare

        jobs = []
        for number, cell in enumerate(self.cells):
            try:
                with torch.no_grad():
                    jobs.append(prepare(engine.model, cell.request, str(number), inputs))
            except RequestError as error:
                raise RequestError(f"the cell {cell.words} can't be drawn: {error}") from error
            self.requests[cell.place] = jobs[-1].request
        self.layout()
        by_id = {engine.resume(job): cell for job, cell in zip(jobs, self.cells, strict=True)}
        for event in engine.run():
            cell = by_id[event.id]
            if isinstance(event, Finished):
                self.images[cell.place], self.requests[cell.place] = event.image, event.request
            elif isinstance(event, Failed):
                self.errors[cell.place] = event.error
            yield cell, event

    def layout(self) -> Sheet:
        """Where the cells go on the sheet, by the pictures' sizes as far as they are known."""
        sizes = {}
        for cell in self.cells:
            request = self.requests.get(cell.place, cell.request)
            asked = (request.width or 64, request.height or 64)
            sizes[cell.place] = self.images[cell.place].size if cell.place in self.images else asked
        labels = [[axis.label(i) for i in range(len(axis.values))] for axis in self.axes]
        return arrange(sizes, [*labels, [], [], []][:3], self.base.prompt)

    @property
    def image(self) -> Image.Image:
        """The sheet: an RGB picture. Cells that are not drawn are gray."""
        return self.layout().draw(self.images)

    def to_dict(self) -> dict[str, Any]:
        """What is where on the sheet, as a plain JSON object: axes, and each cell's box, values and complete recipe."""
        layout = self.layout()
        return {
            "schema": SCHEMA,
            "size": list(layout.size),
            "complete": len(self.images) == len(self.cells),
            "axes": [
                {"axis": letter, "name": axis.name, "values": _plain(axis.values)}
                for letter, axis in zip(LETTERS, self.axes, strict=False)
            ],
            "cells": [self._cell(cell, layout.boxes[cell.place]) for cell in self.cells],
        }

    def _cell(self, cell: Cell, box: Box) -> dict[str, Any]:
        x, y, z = cell.place
        told = {
            "x": x,
            "y": y,
            "z": z,
            "box": list(box),
            "values": _plain(cell.values),
            "drawn": cell.place in self.images,
        }
        if cell.place in self.files:
            told["file"] = self.files[cell.place]
        if cell.place in self.errors:
            told["error"] = str(self.errors[cell.place])
        return told | {"recipe": self.requests.get(cell.place, cell.request).to_dict()}

    def recipe(self) -> dict[str, Any]:
        """What the sheet's own metadata says: all that its cells have in common, and the axes."""
        recipes = [self.requests.get(cell.place, cell.request).to_dict() for cell in self.cells]
        common = {k: v for k, v in recipes[0].items() if all(k in other and other[k] == v for other in recipes)}
        if any(axis.name == PROMPT for axis in self.axes):
            common |= {"prompt": self.base.prompt, "negative_prompt": self.base.negative_prompt}
        axes = self.to_dict()["axes"]
        told = {f"{one['axis'].upper()} {key.title()}": _told(one[key]) for one in axes for key in ("name", "values")}
        return common | {"sweep": axes, "extra": {"Script": "darkroom sweep", **told}}

    def save_cell(self, place: Place, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the picture of a cell, with its recipe: "x1-y2.png" is the first column's second."""
        name = "-".join(f"{letter}{i + 1}" for letter, i in zip(LETTERS, place[: len(self.axes)], strict=False))
        path = Path(folder) / f"{name}.png"
        write_picture(self.images[place], path, self.requests[place].to_dict(), overwrite=overwrite)
        self.files[place] = f"{path.parent.name}/{path.name}"
        return path

    def save(self, path: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write the sheet as PNG, JPEG or WebP, and what is where as JSON beside it, under the same name.

        Returns both paths.
        Raises ImageError where a file exists (unless `overwrite`) or can't be written.
        """
        path = Path(path)
        text = json.dumps({"sheet": path.name, **self.to_dict()}, indent=2)
        picture = write_picture(self.image, path, self.recipe(), overwrite=overwrite)
        table = path.with_suffix(".json")
        write_atomically(table, f"{text}\n".encode("ascii"), overwrite=overwrite)
        return [picture, table]


def _plain(value: Any) -> Any:
    """Tuples as lists, for JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _told(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(str(item) for item in value)
