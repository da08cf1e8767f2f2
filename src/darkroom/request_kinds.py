"""Kinds of values that only a request has and that are of several parts: noise levels, a U-Net's levels, margins."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from . import settings as kind
from .errors import shown
from .settings import Kind, SettingError

_LEVEL = re.compile(r"mid|(down|up)\.\d{1,2}", re.ASCII)
_SIDES = ("left", "top", "right", "bottom")


def noise_levels() -> Kind:
    """(lowest sigma, highest sigma); the highest may be endless: None or infinity."""
    sigma = kind.real(0.0, 1e6, "; guidance_interval is (lowest sigma, highest sigma)")

    def check(name: str, value: Any) -> tuple[float, float]:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise SettingError(f"{name} is {shown(value)}; it must be two noise levels, lowest and highest")
        low = sigma.check(f"the lower end of {name}", value[0])
        endless = value[1] in (None, math.inf)
        high = math.inf if endless else sigma.check(f"the upper end of {name}", value[1])
        if low >= high:
            raise SettingError(f"{name} is {shown(value)}; its first number must be below its second")
        return low, high

    return Kind(check, kind.read_two("noise levels", "0.3,5"), "LOW,HIGH", "two noise levels", of=float, count=2)


def unet_levels() -> Kind:
    """Names of the U-Net's levels: "mid", "down.0", "up.1"."""

    def check(name: str, value: Any) -> tuple[str, ...]:
        names = (value,) if isinstance(value, str) else value
        if not isinstance(names, (tuple, list)) or not names:
            raise SettingError(f"{name} is {shown(value)}; it must be a list of the U-Net's levels, such as ('mid',)")
        for level in names:
            if not isinstance(level, str) or not _LEVEL.fullmatch(level):
                raise SettingError(
                    f"{name} has {shown(level)}; a level is 'mid', 'down.0' (the finest) or 'up.0' (the coarsest)"
                )
        return tuple(dict.fromkeys(names))

    return Kind(check, lambda name, text: tuple(text.split(",")), "LIST", "levels of the U-Net", count=0)


def margins(most: int) -> Kind:
    """(left, top, right, bottom), each up to `most` pixels, from a sequence of four or a mapping of those names."""
    pixels = kind.whole(0, most, " pixels")

    def check(name: str, value: Any) -> tuple[int, ...]:
        if isinstance(value, Mapping):
            for side in value:
                if side not in _SIDES:
                    raise SettingError(f"{name} has no side {shown(side)}; there are {', '.join(_SIDES)}")
            value = [value.get(side, 0) for side in _SIDES]
        if not isinstance(value, (tuple, list)) or len(value) != 4:
            raise SettingError(
                f"{name} is {shown(value)}; give pixels for left, top, right and bottom, such as {{'left': 128}}"
            )
        found = tuple(pixels.check(f"{name} {side}", part) for side, part in zip(_SIDES, value, strict=True))
        if not any(found):
            raise SettingError(f"{name} is 0 pixels on every side; give one side or more, such as {{'left': 128}}")
        return found

    def read(name: str, text: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for part in text.split(","):
            side, equals, number = (word.strip() for word in part.partition("="))
            if not equals or not re.fullmatch(r"-?\d{1,9}", number, re.ASCII) or side in found:
                raise SettingError(f"{name} is {text[:60]!r}; give sides and pixels, such as left=128,top=64")
            found[side] = int(number)
        return found

    return Kind(check, read, "SIDES", "pixels for left, top, right and bottom", of=int, count=4)
