"""Colours, brightness and depth: what stays of a picture when its detail goes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from ..images import Picture, open_map, open_picture
from ..request import choice, real, whole
from .filters import Floats, colours, to_picture


def tile(image: Picture, factor: float = 8.0) -> Image.Image:
    """The picture without its detail: made `factor` 1..64 times smaller (by averages), and large again (bicubic)."""
    real("factor", factor, 1.0, 64.0)
    picture = open_picture(image)
    small = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
    return picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)


def palette(image: Picture, cells: int = 8) -> Image.Image:
    """Where which colours are: a grid of squares of their mean colours, `cells` 1..256 along the shorter side."""
    whole("cells", cells, 1, 256)
    picture = open_picture(image)
    side = max(1.0, min(picture.size) / cells)
    grid = (max(1, round(picture.width / side)), max(1, round(picture.height / side)))
    return picture.resize(grid, Image.Resampling.BOX).resize(picture.size, Image.Resampling.NEAREST)


def depth(image: Picture, far_is_white: bool = False) -> Image.Image:
    """A depth map as ControlNets want it, white near and black far: any map of 8, 16 or 32 bits, spread to 0..255.

    `far_is_white`: the given map holds distances, as sensors write them; it is turned round. A map of one value gives
    black.
    """
    values = open_map(image)
    low, high = float(values.min()), float(values.max())
    spread = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    return to_picture(255.0 - spread if far_is_white and high > low else spread)


def recolour(image: Picture, by: str = "luminance", gamma: float = 1.0) -> Image.Image:
    """The picture in gray, for networks that colour it anew.

    `by` "luminance": CIE lightness, as the eye sees it; "intensity": the largest of red, green and blue. `gamma`
    0.1..10 darkens the middle tones above 1, and brightens them below.
    """
    choice("by", by, ("luminance", "intensity"))
    real("gamma", gamma, 0.1, 10.0)
    values = colours(open_picture(image)) / np.float32(255)
    gray = values.max(axis=0) if by == "intensity" else _lightness(values)
    return to_picture(255 * gray**gamma)


def invert(image: Picture) -> Image.Image:
    """Black to white: a drawing of dark lines on white becomes what ControlNets for lines know."""
    return ImageOps.invert(open_picture(image))


def _lightness(values: Floats) -> Floats:
    """CIE L* / 100 (ISO/CIE 11664-4) of sRGB colours [3, H, W] in 0..1 (IEC 61966-2-1) -> [H, W]."""
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    y = np.tensordot(np.array([0.2126, 0.7152, 0.0722]), linear, axes=1)
    lightness: Floats = np.where(y > (6 / 29) ** 3, 1.16 * np.cbrt(y) - 0.16, y * (29 / 3) ** 3 / 100).astype(
        np.float32
    )
    return lightness
