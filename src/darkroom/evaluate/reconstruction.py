"""What an autoencoder keeps of a picture: PSNR, SSIM, LPIPS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import RequestError
from ..images import from_pixels, pad_to_grid, to_pixels

if TYPE_CHECKING:
    from ..models.autoencoder import Autoencoder
    from ..models.lpips import Lpips

Array = NDArray[np.uint8]
WINDOW, SIGMA = 11, 1.5  # Wang et al.'s Gaussian window in pixels
K1, K2 = 0.01, 0.03  # and their constants
SMALLEST = 1e-12  # of a mean squared error: equal pictures have no infinite PSNR


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, pictures: Sequence[Array], rows: int = 32) -> list[Array]:
    """Pictures of one size, [H, W, 3] each, through the autoencoder and back; any size is padded and cut again."""
    done: list[Array] = []
    weight = next(autoencoder.parameters())
    config = getattr(autoencoder, "config", None)
    for i in range(0, len(pictures), rows):
        stack = from_pixels(np.stack(pictures[i : i + rows]))
        padded = stack if config is None else pad_to_grid(stack, config.downscale)
        back = autoencoder(padded.to(weight)).float().cpu()[..., : stack.shape[2], : stack.shape[3]]
        done += list(to_pixels(back))
    return done


def psnr(a: Sequence[Array], b: Sequence[Array]) -> float:
    """Peak signal-to-noise ratio in dB of 0..255 pictures, by the mean squared error over all of them."""
    error = np.mean([_squared_error(x, y) for x, y in zip(a, b, strict=True)])
    return float(10 * np.log10(255**2 / max(float(error), SMALLEST)))


def _squared_error(a: Array, b: Array) -> float:
    return float(np.mean((a.astype(np.float64) - b) ** 2))


def ssim(a: Array, b: Array) -> float:
    """Structural similarity of two pictures [H, W, 3] of 0..255, -1..1, 1 where they are equal.

    Wang et al. 2004 (IEEE Trans. Image Processing 13, eq. 13): a Gaussian window of 11 pixels and sigma 1.5, K 0.01 and
    0.03, averaged over all places where the window lies inside, and over the channels. Raises RequestError on pictures
    under 11 pixels a side.
    """
    if a.shape != b.shape or min(a.shape[:2]) < WINDOW:
        sizes = f"{a.shape[1]}x{a.shape[0]} and {b.shape[1]}x{b.shape[0]}"
        raise RequestError(f"pictures of {sizes} pixels have no SSIM; give two of one size, {WINDOW} a side or more")
    x, y = (torch.from_numpy(p.astype(np.float64)).permute(2, 0, 1) for p in (a, b))
    moments = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    mx, my, xx, yy, xy = moments
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    likeness = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(likeness.mean())


def _blur(x: Tensor) -> Tensor:
    """The window's weighted means of [K, C, H, W], where it lies inside: [K, C, H - 10, W - 10]."""
    at = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    weights = torch.exp(-(at**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    flat = x.reshape(-1, 1, *x.shape[2:])
    flat = F.conv2d(F.conv2d(flat, weights[None, None, :, None]), weights[None, None, None, :])
    return flat.reshape(*x.shape[:2], *flat.shape[2:])


def reconstruction(
    autoencoder: Autoencoder,
    pictures: Iterable[Array],
    lpips: Lpips | None = None,
    rows: int = 8,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """PSNR in dB (by the error over all pictures), mean SSIM and, with its network, mean LPIPS of pictures of one size.

    `report` is called with the pictures done. Raises RequestError where there is none.
    """
    errors: list[float] = []
    alike: list[float] = []
    distances: list[float] = []
    left = iter(pictures)
    while batch := list(islice(left, rows)):
        back = reconstruct(autoencoder, batch, rows)
        errors += [_squared_error(x, y) for x, y in zip(batch, back, strict=True)]
        alike += [ssim(x, y) for x, y in zip(batch, back, strict=True)]
        if lpips is not None:
            distances += perceptual(lpips, batch, back)
        report(len(errors))
    if not errors:
        raise RequestError("there is no picture to reconstruct")
    found = {
        "pictures": len(errors),
        "psnr": float(10 * np.log10(255**2 / max(float(np.mean(errors)), SMALLEST))),
        "ssim": float(np.mean(alike)),
    }
    return found | ({"lpips": float(np.mean(distances))} if lpips is not None else {})


@torch.no_grad()
def perceptual(lpips: Lpips, a: Sequence[Array], b: Sequence[Array]) -> list[float]:
    """LPIPS of each pair of pictures of one size."""
    weight = next(lpips.parameters())
    first, second = (from_pixels(np.stack(p)).to(weight) for p in (a, b))
    return [float(d) for d in lpips(first, second).cpu()]
