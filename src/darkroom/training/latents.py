"""Latents of the built-in scenes: measured, normalised, and cached for the U-Net's training.

Shapes: P scenes, C latent channels, h w latent size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from darkroom.data.scenes import Scene, draw_scene, render_scene
from darkroom.models.autoencoder import Autoencoder


def pictures_of(scenes: Iterable[Scene]) -> Tensor:
    """[P, 3, 128, 128] in -1..1."""
    stacked = np.stack([render_scene(s) for s in scenes])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_scenes(autoencoder: Autoencoder, seed: int, start: int, count: int, rows: int = 64) -> Iterator[Tensor]:
    """Latent means of the training scenes start, start + 1, ... in batches: [rows, C, h, w] float16, scaled."""
    device = next(autoencoder.parameters()).device
    for first in range(start, start + count, rows):
        scenes = [draw_scene(seed, i) for i in range(first, min(first + rows, start + count))]
        with torch.autocast(device.type, torch.bfloat16):
            moments = autoencoder.encode(pictures_of(scenes).to(device))
        yield autoencoder.scale(moments.float().chunk(2, dim=1)[0]).half().cpu()


@torch.no_grad()
def normalise(autoencoder: Autoencoder, pictures: Tensor, rows: int = 64) -> None:
    """Give every latent channel zero mean and unit deviation over `pictures`, in place; pictures decode as before.

    The shift and the scale go into the two 1x1 convolutions around the latent, so that the file needs nothing that
    other programs do not read. Afterwards `config.scaling_factor` is 1.
    """
    quant, post_quant = autoencoder.quant, autoencoder.post_quant
    if quant is None or post_quant is None:
        raise ValueError("an autoencoder without quant convolutions can't be normalised")
    latents = torch.cat([autoencoder.encode(p).chunk(2, dim=1)[0] for p in torch.split(pictures, rows)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    c = len(mean)
    quant.weight[:c] /= std[:, None, None, None]
    quant.bias[:c] = (quant.bias[:c] - mean) / std  # type: ignore[index]
    quant.bias[c:] -= 2 * std.log()  # type: ignore[index]
    post_quant.bias += (post_quant.weight[:, :, 0, 0] * mean).sum(dim=1)  # type: ignore[operator]
    post_quant.weight *= std[None, :, None, None]
    autoencoder.config = dataclasses.replace(autoencoder.config, scaling_factor=1.0, shift_factor=0.0)
