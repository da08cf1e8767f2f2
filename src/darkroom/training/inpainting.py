"""A text-to-image model becomes an inpainting model: four channels more for a masked picture, one for its mask.

Rombach et al. 2022 (arXiv 2112.10752), sec. 4.5, in the form that Stable Diffusion's inpainting models have.

Shapes: N rows, C latent channels, h w latent size, H W picture size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import TrainingError
from ..formats.checkpoint import Checkpoint
from ..images import from_pixels
from ..models.config import UNetConfig
from ..models.unet import UNet
from ..pipeline import Pipeline
from ..settings import setting
from .finetune import FinetuneRecipe, FinetuneStage, rebuilt
from .kinds import Source
from .parallel import Rank
from .recipe import FRACTION, on
from .sheets import Use, middle

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class InpaintingRecipe(FinetuneRecipe):
    """A U-Net that sees a mask and the picture without what is masked. Masks are strokes, boxes, borders or all."""

    boxes: float = setting(0.25, FRACTION, "Fraction of masks that are boxes.")
    borders: float = setting(
        0.15, FRACTION, "Fraction of masks that are borders of the picture on one to three sides (outpainting)."
    )
    whole: float = setting(0.1, FRACTION, "Fraction of masks that hide the whole picture; all others are strokes.")

    @property
    def stage(self) -> type[InpaintingStage]:
        return InpaintingStage


def inpainting(preset: str = "cpu") -> InpaintingRecipe:
    """Ten thousand steps of eight pictures."""
    return on(InpaintingRecipe(steps=10_000, batch_size=8, lr=1e-5, optimizer="adamw", warmup=200), preset)


class InpaintingStage(FinetuneStage):
    """The training of an inpainting model."""

    config: InpaintingRecipe

    @classmethod
    def check_model(cls, pipe: Pipeline) -> None:
        channels, latent = pipe.unet.config.in_channels, pipe.autoencoder.config.latent_channels
        if channels not in (latent, 2 * latent + 1) or pipe.autoencoder.config.latent_channels != 4:
            raise TrainingError(
                f"the U-Net of {pipe.name!r} takes {channels} channels; give a text-to-image model (4) or an "
                "inpainting model to go on with (9)"
            )

    @classmethod
    def model(cls, recipe: Any, source: Source) -> Pipeline:
        pipe = super().model(recipe, source)
        return pipe if pipe.unet.config.in_channels == 9 else rebuilt(pipe, unet=widened(pipe.unet, 9))

    @classmethod
    def unet_config(cls, found: Checkpoint) -> UNetConfig:
        return replace(found.unet_config, in_channels=2 * found.autoencoder_config.latent_channels + 1)

    def blank(self, rows: int, side: int) -> Any:
        latents, *others = super().blank(rows, side)
        return latents, *others, torch.zeros(rows, 1 + latents.shape[1], *latents.shape[2:])

    def mask(self, i: int, step: int) -> Mask:
        """What is hidden of picture i in a step: [H, W]."""
        width, height = self.dataset.sizes[i]
        return random_mask(np.random.default_rng((self.config.seed, step, i, 11)), width, height, self.config)

    def shown(self, rows: Sequence[int], step: int) -> Any:
        """Beside the latents, pictures and captions: mask and masked latent [N, 1 + C, h, w], in the U-Net's order."""
        return *super().shown(rows, step), torch.stack([self.beside(i, step) for i in rows])

    @torch.no_grad()
    def beside(self, i: int, step: int) -> Tensor:
        """The mask, 1 where it hides, on the latent grid as diffusers has it there (the nearest pixel), and a sample of
        the latent of the picture with gray in place of what is hidden: [1 + C, h, w].
        """
        autoencoder = self.pipe.autoencoder
        first, grid = next(autoencoder.parameters()), autoencoder.config.downscale
        shown = self.dataset.picture(i, self.dataset.version(i, step, self.config.seed))
        mask = torch.from_numpy(self.mask(i, step)).float()
        picture = from_pixels(shown.copy())
        moments = autoencoder.encode((picture * (1 - mask))[None].to(first)).float().cpu()
        mean, logvar = moments.chunk(2, dim=1)
        noise = np.random.default_rng((self.config.seed, step, i, 12)).standard_normal(tuple(mean.shape), np.float32)
        drawn = autoencoder.scale(mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * torch.from_numpy(noise))
        return torch.cat([mask[None, ::grid, ::grid], drawn[0]])

    def loss(self, batch: Any, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        latents, rows, captions, channels = batch
        condition = replace(self.condition(captions, rows, step), channels=channels.to(self.pipe.device))
        return self.denoising(latents, rows, condition, rank)

    @contextmanager
    def drawing(self) -> Iterator[Mapping[str, Any]]:
        """Sheets show the first picture with a box in its middle drawn anew."""
        shown = Image.fromarray(self.dataset.picture(0))
        with super().drawing() as told:
            yield {**told, "image": shown, "mask": middle(shown.size)}

    @classmethod
    def use(cls, recipe: Any, made: Path) -> Use:
        return Use(model=made, paints=True)


def widened(unet: UNet, channels: int) -> UNet:
    """A U-Net that takes more input channels, of which it makes nothing yet: their weights are zero."""
    config = replace(unet.config, in_channels=channels)
    weights = dict(unet.state_dict())
    first = weights["conv_in.weight"]
    grown = first.new_zeros(len(first), channels, *first.shape[2:])
    grown[:, : first.shape[1]] = first
    with torch.device("meta"):
        wide = UNet(config)
    wide.load_state_dict({**weights, "conv_in.weight": grown}, assign=True)
    return wide.eval().requires_grad_(False)


def random_mask(rng: np.random.Generator, width: int, height: int, recipe: InpaintingRecipe) -> Mask:
    """What is hidden of a picture: [height, width], never nothing."""
    kind = rng.random()
    if kind < recipe.whole:
        return np.ones((height, width), bool)
    mask = Image.new("1", (width, height))
    draw = ImageDraw.Draw(mask)
    if kind < recipe.whole + recipe.borders:
        _borders(rng, draw, width, height)
    elif kind < recipe.whole + recipe.borders + recipe.boxes:
        for _ in range(int(rng.integers(1, 4))):
            w, h = (max(1, int(side * rng.uniform(0.1, 0.7))) for side in (width, height))
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            draw.rectangle((x, y, x + w - 1, y + h - 1), fill=1)
    else:
        for _ in range(int(rng.integers(1, 5))):
            _stroke(rng, draw, width, height)
    hidden = np.asarray(mask).copy()
    return hidden if hidden.any() else np.ones_like(hidden)


def _borders(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    for side in rng.permutation(4)[: int(rng.integers(1, 4))]:
        x, y = (max(1, int(length * rng.uniform(0.1, 0.4))) for length in (width, height))
        box: Sequence[Sequence[int]] = (
            (0, 0, x - 1, height - 1), (width - x, 0, width - 1, height - 1),
            (0, 0, width - 1, y - 1), (0, height - y, width - 1, height - 1),
        )  # fmt: skip
        draw.rectangle(tuple(box[int(side)]), fill=1)


def _stroke(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """A brush's bent line with round ends."""
    side = min(width, height)
    brush = max(1, int(side * rng.uniform(0.04, 0.16)))
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    angle = rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(2, 9))):
        angle += rng.uniform(-1.2, 1.2)
        length = side * rng.uniform(0.08, 0.35)
        end = np.clip((x + length * np.cos(angle), y + length * np.sin(angle)), 0, (width, height))
        to = (float(end[0]), float(end[1]))
        draw.line((x, y, *to), fill=1, width=brush)
        for at in ((x, y), to):
            draw.ellipse((at[0] - brush / 2, at[1] - brush / 2, at[0] + brush / 2, at[1] + brush / 2), fill=1)
        x, y = to
