"""Hints: what a ControlNet is shown, made from an ordinary picture without any network.

Each is a function of a picture (PIL, or a path) that gives an RGB picture of the same size; its options have defaults
that suit photographs of about 512 pixels. `make` finds one by its name, as the command line does. There are edges and
drawings, white on black, and pictures without their detail: their colours, brightness or depth.

H W: height and width. Beyond its border a picture goes on with its last row and column.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .errors import RequestError, nearest
from .images import Picture, open_map, open_picture
from .request import choice, real, whole

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

Floats: TypeAlias = NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_FLAT = 13573 / 2**15  # tan 22.5 degrees as OpenCV has it, so that both take a slope for the same direction
_STEEP = _FLAT + 2  # tan 67.5 degrees


def canny(image: Picture, low: float = 100.0, high: float = 200.0, sigma: float = 1.0) -> Image.Image:
    """Thin edges (Canny 1986, "A computational approach to edge detection"): white lines of one pixel on black.

    Args:
        low, high: an edge goes on while its slope is above `low`, and holds a slope above `high` somewhere. A slope is
            |dx| + |dy| by Sobel's kernels of the steepest of the three colours: 0..2040, on OpenCV's scale.
        sigma: pixels of Gaussian smoothing beforehand, 0..20; with 0 the result is OpenCV's `Canny(image, low, high)`.
    """
    real("low", low, 0.0, 1e4)
    real("high", high, 0.0, 1e4)
    if low > high:
        raise RequestError(f"low is {low:g} and high is {high:g}; low must not be above high")
    real("sigma", sigma, 0.0, 20.0)
    every_dx, every_dy = sobel(blur(colours(open_picture(image)), sigma))
    every_slope = np.abs(every_dx) + np.abs(every_dy)
    steepest = every_slope.argmax(axis=0)[None]
    dx, dy, slope = (np.take_along_axis(values, steepest, 0)[0] for values in (every_dx, every_dy, every_slope))
    ridge = _ridges(dx, dy, slope) & (slope > low)
    return to_picture(255 * connected(ridge, ridge & (slope > high)))


def _ridges(dx: Floats, dy: Floats, slope: Floats) -> NDArray[np.bool_]:
    """Where the slope is a maximum along its own direction, which is rounded to one of four."""
    across, along = np.abs(dx).astype(np.float64), np.abs(dy).astype(np.float64)
    flat, steep = along < _FLAT * across, along > _STEEP * across
    height, width = slope.shape
    padded = np.pad(slope, 1)

    def neighbour(down: int, right: int) -> Floats:
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    falling = (dx < 0) == (dy < 0)  # the slope points to the lower right, or to the upper left
    diagonal = np.where(
        falling,
        (slope > neighbour(-1, -1)) & (slope > neighbour(1, 1)),
        (slope > neighbour(-1, 1)) & (slope > neighbour(1, -1)),
    )
    level = (slope > neighbour(0, -1)) & (slope >= neighbour(0, 1))
    upright = (slope > neighbour(-1, 0)) & (slope >= neighbour(1, 0))
    ridge: NDArray[np.bool_] = np.where(flat, level, np.where(steep, upright, diagonal))
    return ridge


def connected(mask: NDArray[np.bool_], seeds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of `mask` [H, W] that are connected, over sides or corners, with one of the `seeds` in it."""
    stride = mask.shape[1] + 2
    waiting = np.pad(mask & ~seeds, 1).ravel()
    found = np.pad(seeds, 1).ravel()
    around = np.array([dy * stride + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dx, dy) != (0, 0)])
    front = np.flatnonzero(found)
    while len(front):
        near = (front[:, None] + around).ravel()
        front = np.unique(near[waiting[near]])
        waiting[front] = False
        found[front] = True
    return found.reshape(-1, stride)[1:-1, 1:-1]


def soft_edges(image: Picture, sigma: float = 1.0, scales: int = 3) -> Image.Image:
    """Edges by their strength, wide and smooth: white on black, as networks for soft edges (HED) draw them.

    The slope of the smoothed picture, averaged over `scales` 1..6 widths from `sigma` 0.3..10 pixels upwards, each
    twice the last, each multiplied by its width, which makes the widths comparable (Lindeberg 1998, "Edge detection
    and ridge detection with automatic scale selection", sec. 4.1). The steepest hundredth becomes white, unless all is
    nearly flat.
    """
    real("sigma", sigma, 0.3, 10.0)
    if not isinstance(scales, int) or not 1 <= scales <= 6:
        raise RequestError(f"scales is {scales!r}; it must be a whole number from 1 to 6")
    values = colours(open_picture(image))
    total = np.zeros(values.shape[1:], np.float32)
    for width in (sigma * 2.0**k for k in range(scales)):
        dx, dy = sobel(blur(values, width))
        total += width * np.sqrt(dx**2 + dy**2).max(axis=0) / (8 * scales)
    white = max(float(np.quantile(total, 0.99)), 4.0)
    return to_picture(255 * (total / white).clip(0, 1) ** 0.7)


def line_art(image: Picture, low: float = 6.0, high: float = 40.0, sigma: float = 6.0) -> Image.Image:
    """Lines by thresholds: what is darker than its surroundings. White lines on black, their edges smooth.

    Args:
        low, high: how much darker, 0..255: up to `low` is black, from `high` on is white, between them is gray.
        sigma: pixels of the surroundings, 0.5..50.
    """
    real("low", low, 0.0, 255.0)
    real("high", high, 0.0, 255.0)
    if low >= high:
        raise RequestError(f"low is {low:g} and high is {high:g}; low must be below high")
    real("sigma", sigma, 0.5, 50.0)
    gray = luma(open_picture(image))
    darker = blur(gray, sigma) - gray
    part = ((darker - low) / (high - low)).clip(0, 1)
    return to_picture(255 * part * part * (3 - 2 * part))


def scribble(image: Picture, sigma: float = 1.4, threshold: float = 0.012, thickness: float = 2.0) -> Image.Image:
    """Thick strokes, as by hand: white on black.

    A difference of Gaussians, cut hard (Winnemöller, Kyprianidis and Olsen 2012, "XDoG", sec. 2, with k = 1.6): a
    stroke is where the picture smoothed by `sigma` 0.3..20 pixels is darker than when smoothed by 1.6 times that, by
    more than `threshold` 0..1 of the way from black to white. Strokes are widened by `thickness` 0..20 pixels.
    """
    real("sigma", sigma, 0.3, 20.0)
    real("threshold", threshold, 0.0, 1.0)
    real("thickness", thickness, 0.0, 20.0)
    gray = luma(open_picture(image)) / np.float32(255)
    strokes = blur(gray, 1.6 * sigma) - blur(gray, sigma) > threshold
    return to_picture(255 * dilate(strokes, thickness).astype(np.float32))


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


# What the hints are made of: pictures to numbers and back, smoothing, slopes.


def colours(picture: Image.Image) -> Floats:
    """A picture as [3, H, W] in 0..255."""
    return np.asarray(picture.convert("RGB")).astype(np.float32).transpose(2, 0, 1)


def luma(picture: Image.Image) -> Floats:
    """A picture's brightness [H, W] in 0..255."""
    gray: Floats = np.tensordot(LUMA, colours(picture), axes=1)
    return gray


def to_picture(values: NDArray[np.generic]) -> Image.Image:
    """[H, W], or [3, H, W], in 0..255 as an RGB picture, rounded and clipped."""
    whole = np.clip(np.rint(np.asarray(values, np.float32)), 0, 255).astype(np.uint8)
    return Image.fromarray(whole if whole.ndim == 2 else whole.transpose(1, 2, 0)).convert("RGB")


def blur(values: Floats, sigma: float) -> Floats:
    """Gaussian smoothing of [..., H, W], cut off at 3 sigma (at least one pixel); sigma 0 changes nothing."""
    if sigma <= 0:
        return values
    radius = max(1, math.ceil(3 * sigma))
    x = np.arange(-radius, radius + 1, dtype=np.float64)
    weights = np.exp(-(x**2) / (2 * sigma**2))
    return _along(_along(values, weights / weights.sum(), -1), weights / weights.sum(), -2)


def sobel(values: Floats) -> tuple[Floats, Floats]:
    """The slopes of [..., H, W] to the right and downwards, by Sobel's 3x3 kernels (eight times the true slope)."""
    rise, smooth = np.array([-1.0, 0.0, 1.0]), np.array([1.0, 2.0, 1.0])
    return _along(_along(values, rise, -1), smooth, -2), _along(_along(values, smooth, -1), rise, -2)


def _along(values: Floats, weights: NDArray[np.float64], axis: int) -> Floats:
    """Correlation with an odd number of weights along an axis."""
    radius, length = len(weights) // 2, values.shape[axis]
    pads = [(0, 0)] * values.ndim
    pads[axis] = (radius, radius)
    padded = np.pad(values, pads, mode="edge")
    result = np.zeros_like(values)
    for offset, weight in enumerate(weights):
        if weight:
            result += np.float32(weight) * np.take(padded, range(offset, offset + length), axis)
    return result


def dilate(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """[H, W] widened by a disc of `radius` pixels."""
    reach = math.floor(radius)
    height, width = mask.shape
    padded = np.pad(mask, reach)
    result = np.zeros_like(mask)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dx * dx + dy * dy <= radius * radius:
                result |= padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
    return result
