"""What the hints are made of: smoothing, slopes, and pictures to numbers and back.

H W: height and width. Beyond its border a picture goes on with its last row and column.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats: TypeAlias = NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


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
