"""`darkroom hint`: what a ControlNet would be shown, to look at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from ..errors import RequestError
from ..formats.picture import write_picture
from . import options
from .command import App, Argument, Option

app = App()


@app.command()
def hint(
    name: Annotated[
        str,
        Argument(
            metavar="NAME",
            help="canny, soft-edges, line-art, scribble, tile, palette, depth, recolour or invert.",
        ),
    ],
    image: Annotated[str, Argument(metavar="IMAGE", help="PNG, JPEG or WebP.")],
    output: Annotated[str, Option("-o", "--output", metavar="FILE", help="FILE.png, .jpg, .webp.")] = "hint.png",
    settings: Annotated[
        list[str] | None,
        Option("--set", metavar="OPTION=VALUE", help="An option of the hint, such as low=50 for canny."),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Make a hint for a ControlNet from a picture, write it, and print its path.

    darkroom hint canny photo.jpg -o edges.png --set low=50 --set high=150
    """
    if not options.is_file_name(options.path(output)):
        raise RequestError(f"-o is {output[:200]!r}; give a file that ends in .png, .jpg or .webp")
    if os.path.lexists(output) and not overwrite:
        raise RequestError(f"{output[:200]!r} exists already: choose another name, or add --overwrite")
    from .. import hints

    made = hints.make(name, image, **_values(name, settings or [], hints.options_of(name)))
    print(write_picture(made, Path(output), {}, overwrite=overwrite))


def _values(hint: str, settings: list[str], usual: dict[str, Any]) -> dict[str, Any]:
    """Options from "low=50", each of the type of its default. Raises `RequestError`."""
    found: dict[str, Any] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if not equals:
            raise RequestError(f"--set is {setting[:60]!r}; give an option and its value, such as low=50")
        kind = type(usual.get(option, ""))
        try:
            found[option] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            raise RequestError(f"{option} of the hint {hint!r} is {text[:60]!r}; it must be {wanted}") from None
    return found
