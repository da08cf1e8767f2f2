"""Edges: white on black, thin (canny) or soft."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import RequestError
from ..images import Picture, open_picture
from ..request import real
from .filters import Floats, blur, colours, sobel, to_picture

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
