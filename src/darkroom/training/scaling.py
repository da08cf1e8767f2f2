"""The scale of an autoencoder's latents: measured over pictures, and written into its weights or beside them.

A U-Net wants latents of about unit deviation (Rombach et al. 2022, arXiv 2112.10752, app. G).
Shapes: C latent channels, h w latent size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import TrainingError
from ..models.autoencoder import Autoencoder
from .latents import stacked


@dataclass(frozen=True, slots=True)
class Moments:
    """The mean and the deviation of every latent channel [C], and the deviation of all values together."""

    mean: Tensor
    std: Tensor
    overall: float


@torch.no_grad()
def measure(autoencoder: Autoencoder, pictures: Iterable[NDArray[np.uint8]]) -> Moments:
    """The moments of the latent means of some pictures [H, W, 3], of any sizes. Raises TrainingError on none."""
    device = next(autoencoder.parameters()).device
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for picture in pictures:
        latent = autoencoder.encode(stacked([picture]).to(device)).chunk(2, dim=1)[0][0].double().cpu().flatten(1)
        count += latent.shape[1]
        total, squares = total + latent.sum(dim=1), squares + latent.square().sum(dim=1)
    if not count or not bool(squares.isfinite().all()):
        raise TrainingError("the autoencoder's latents can't be measured: they hold NaN or infinity, or there are none")
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    if bool((std == 0).any()):
        raise TrainingError(
            f"latent channel {int(std.argmin())} is the same everywhere: the autoencoder has learned nothing yet"
        )
    overall = ((squares / count).mean() - mean.mean().square()).sqrt()
    return Moments(mean.float(), std.float(), float(overall))


@torch.no_grad()
def fold(autoencoder: Autoencoder, moments: Moments) -> None:
    """Give every latent channel zero mean and unit deviation, in place; pictures decode as before.

    The shift and the scale go into the two 1x1 convolutions around the latent, so that the file needs nothing that
    other programs do not read. Afterwards `config.scaling_factor` is 1. Raises TrainingError without the convolutions.
    """
    quant, post_quant = autoencoder.quant, autoencoder.post_quant
    if quant is None or post_quant is None:
        raise TrainingError(
            "scaling is 'folded', and this autoencoder has no quant convolutions to fold into; set scaling=factor"
        )
    mean, std = moments.mean.to(quant.weight.device), moments.std.to(quant.weight.device)
    c = len(mean)
    quant.weight[:c] /= std[:, None, None, None]
    quant.bias[:c] = (quant.bias[:c] - mean) / std  # type: ignore[index]
    quant.bias[c:] -= 2 * std.log()  # type: ignore[index]
    post_quant.bias += (post_quant.weight[:, :, 0, 0] * mean).sum(dim=1)  # type: ignore[operator]
    post_quant.weight *= std[None, :, None, None]
    _scaled(autoencoder, 1.0)


def tell(autoencoder: Autoencoder, moments: Moments) -> None:
    """Note the factor that gives all latent values together unit deviation, and change no weight."""
    _scaled(autoencoder, 1 / moments.overall)


def _scaled(autoencoder: Autoencoder, factor: float) -> None:
    autoencoder.config = dataclasses.replace(
        autoencoder.config, scaling_factor=factor, shift_factor=0.0, latents_mean=None, latents_std=None
    )
