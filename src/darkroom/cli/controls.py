"""How --control is read: NET=IMAGE, NET=HINT@IMAGE, each with :SCALE or :SCALE:START-STOP after it.

Paths may hold "=", ":" and "@" themselves: of all ways to read the text, the first is taken that names a picture
that exists, with as little as possible cut off its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RequestError

if TYPE_CHECKING:
    from ..engine import Control

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_ENDINGS = (
    re.compile(r"(?P<image>.+)", re.DOTALL),
    re.compile(rf"(?P<image>.+):(?P<scale>{_NUMBER})", re.DOTALL | re.ASCII),
    re.compile(rf"(?P<image>.+):(?P<scale>{_NUMBER}):(?P<start>{_NUMBER})-(?P<stop>{_NUMBER})", re.DOTALL | re.ASCII),
)


def controls(given: list[str] | None, guess: bool) -> list[Control]:
    """The ControlNets and hints that the options name. Raises `RequestError`, before anything is loaded."""
    if guess and not given:
        raise RequestError("--control-guess is given without --control; give it too, or leave it out")
    return [_control(text, guess) for text in given or ()]


def _control(text: str, guess: bool) -> Control:
    from ..engine import Control
    from ..hints import HINTS

    readings = list(_readings(text, tuple(HINTS)))
    for net, hint, match in readings:
        if _exists(match["image"]):
            values: dict[str, Any] = {
                k: float(v) for k, v in match.groupdict().items() if v is not None and k != "image"
            }
            return Control(net, match["image"], guess=guess, hint=hint, **values)
    if not readings:
        raise RequestError(
            f"--control is {text[:200]!r}; give a ControlNet and a picture, as in net.safetensors=edges.png:0.8 or "
            f"net.safetensors=canny@photo.jpg"
        )
    image = readings[-1][2]["image"]
    raise RequestError(f"--control is {text[:200]!r}, and there is no picture {image[:200]!r}; check the path")


def _readings(text: str, names: tuple[str, ...]) -> Iterator[tuple[str, str | None, re.Match[str]]]:
    """(network, hint's name, the rest taken apart) for every way to read the text, the most literal first."""
    for equals in (i for i, letter in enumerate(text) if letter == "=" and 0 < i < len(text) - 1):
        net, rest = text[:equals], text[equals + 1 :]
        name, at, image = rest.partition("@")
        made = at and name.replace("_", "-") in names and image
        for whole, hint in ((rest, None), *(((image, name),) if made else ())):
            for ending in _ENDINGS:
                if match := ending.fullmatch(whole):
                    yield net, hint, match


def _exists(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False
