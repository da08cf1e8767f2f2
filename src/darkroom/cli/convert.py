"""`darkroom convert`: a model from one layout to the other."""

from __future__ import annotations

import json
import os
from typing import Annotated

from ..errors import RequestError
from ..formats.writer import SAVED, saved_type
from ..request import choice
from . import options
from .command import App, Argument, Option

app = App()


@app.command()
def convert(
    source: Annotated[str, Argument(metavar="SRC", help="A folder, a file, or ORG/NAME on the hub.")],
    target: Annotated[str, Argument(metavar="DST", help="A name ending in .safetensors, or a new folder.")],
    dtype: Annotated[
        str | None, Option(metavar="T", help=f"Of the numbers: {', '.join(SAVED)}. [default: as they are]")
    ] = None,
    variant: Annotated[str | None, Option(metavar="V", help='Which weights of a folder, such as "fp16".')] = None,
    form: Annotated[str | None, Option(metavar="F", help="Of an embedding's file: diffusers, kohya or sdxl.")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace what is at DST.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a model as a diffusers folder or as a single file, and print its path.

    darkroom convert v1-5.safetensors v1-5/

    A LoRA in kohya's form is written in diffusers', and the other way round.
    """
    if dtype is not None:
        with options.named_as_options():
            choice("dtype", dtype, SAVED)
    if os.path.lexists(options.path(target)) and not overwrite:
        raise RequestError(f"{target[:200]!r} exists already: choose another name, or add --overwrite")
    from ..formats.artifact import convert as write

    path = write(source, target, None if dtype is None else saved_type(dtype), variant, form)
    print(json.dumps({"path": str(path)}) if as_json else path)
