"""Sheets that show what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import RequestError
from ..sweeps.sheet import arrange


def one_above_another(rows: Mapping[str, Sequence[NDArray[np.uint8]]], captions: Sequence[str]) -> Image.Image:
    """Rows of pictures [H, W, 3] by their names, a column for each caption."""
    cells = {
        (x, y, 0): Image.fromarray(picture)
        for y, pictures in enumerate(rows.values())
        for x, picture in enumerate(pictures[: len(captions)])
    }
    return arrange({place: cell.size for place, cell in cells.items()}, (captions, tuple(rows), ())).draw(cells)


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write it as the file's ending says. Raises RequestError."""
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"{str(path)!r} can't be written ({error}); name another") from None
