"""Drawings: white lines on black."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..errors import RequestError
from ..images import Picture, open_picture
from ..request import real
from .filters import blur, dilate, luma, to_picture


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
