"""Latents of the built-in scenes: measured, normalised, and cached for the U-Net's training.

Shapes: P scenes, C latent channels, h w latent size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from darkroom.data.scenes import Scene, draw_scene, render_scene
from darkroom.errors import CheckpointError, TrainingError
from darkroom.formats.files import open_tensors
from darkroom.formats.writer import Entry, whole_file, write_safetensors
from darkroom.models.autoencoder import Autoencoder

Pixels = NDArray[np.uint8]


def pictures_of(scenes: Iterable[Scene]) -> Tensor:
    """[P, 3, 128, 128] in -1..1."""
    return stacked([render_scene(s) for s in scenes])


def stacked(pictures: Sequence[Pixels]) -> Tensor:
    """Pictures [H, W, 3] of one size as [P, 3, H, W] in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_pictures(
    autoencoder: Autoencoder, pictures: Iterable[Pixels], rows: int = 64, bfloat16: bool = False
) -> Iterator[Tensor]:
    """Latent means of pictures [H, W, 3] of one size in batches: [rows, C, h, w] float16, scaled.

    `bfloat16` is quicker, and good enough for thousands of pictures of which none comes often.
    """
    device = next(autoencoder.parameters()).device
    waiting = iter(pictures)
    while batch := list(islice(waiting, rows)):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            moments = autoencoder.encode(stacked(batch).to(device))
        yield autoencoder.scale(moments.float().chunk(2, dim=1)[0]).half().cpu()


def encode_scenes(autoencoder: Autoencoder, seed: int, start: int, count: int, rows: int = 64) -> Iterator[Tensor]:
    """Latent means of the training scenes start, start + 1, ... in batches: [rows, C, h, w] float16, scaled."""
    scenes = (render_scene(draw_scene(seed, i)) for i in range(start, start + count))
    return encode_pictures(autoencoder, scenes, rows, bfloat16=True)


def write_latents(path: Path, latents: Tensor) -> None:
    """Keep latents in a file, whole or not at all."""
    with whole_file(path) as draft:
        write_safetensors(draft, [Entry("latents", tuple(latents.shape), latents.dtype, lambda: latents)], {})


def read_latents(path: Path) -> Tensor:
    """What `write_latents` wrote. Raises TrainingError."""
    try:
        with open_tensors(path) as file:
            return file.load("latents")
    except CheckpointError as error:
        raise TrainingError(f"latents {path} can't be read; delete them to make them anew: {error}") from error


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
