"""Hints: what a ControlNet is shown, made from an ordinary picture without any network.

Each is a function of a picture (PIL, or a path) that gives an RGB picture of the same size; its options have defaults
that suit photographs of about 512 pixels. `make` finds one by its name, as the command line does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from ..errors import RequestError
from ..images import Picture
from ..request import choice, nearest
from .edges import canny, soft_edges
from .lines import line_art, scribble
from .tones import depth, invert, palette, recolour, tile

__all__ = [
    "HINTS",
    "canny",
    "depth",
    "invert",
    "line_art",
    "make",
    "palette",
    "recolour",
    "scribble",
    "soft_edges",
    "tile",
]

Hint = Callable[..., Image.Image]

HINTS: Mapping[str, Hint] = {
    "canny": canny,
    "soft-edges": soft_edges,
    "line-art": line_art,
    "scribble": scribble,
    "tile": tile,
    "palette": palette,
    "depth": depth,
    "recolour": recolour,
    "invert": invert,
}


def make(name: str, image: Picture, **options: Any) -> Image.Image:
    """The hint of that name ("canny", "soft-edges", ...) from a picture, with options of its function.

    Raises RequestError for an unknown name, option or value, ImageError for a picture that can't be read.
    """
    has = options_of(name)
    for option in options:
        if option not in has:
            names = ", ".join(has) or "none"
            raise RequestError(f"the hint {name!r} has no option {option!r}{nearest(option, has)}; it has {names}")
    return HINTS[known(name)](image, **options)


def known(name: str) -> str:
    """A hint's name as HINTS has it ("soft_edges" is "soft-edges"). Raises RequestError for an unknown one."""
    return choice("the hint", name.replace("_", "-") if isinstance(name, str) else name, HINTS)


def options_of(name: str) -> dict[str, Any]:
    """The options of a hint and their defaults."""
    parameters = inspect.signature(HINTS[known(name)]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
