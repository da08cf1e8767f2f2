"""A ControlNet, trained beside a model that stays as it is.

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
from PIL import Image
from torch import Tensor

from .. import hints
from ..diffusion.condition import ControlBatch
from ..engine.job import Control
from ..errors import TrainingError
from ..formats.control import save_controlnet
from ..models.controlnet import ControlNet
from ..settings import setting
from .kinds import Report
from .parallel import Rank
from .pictures import PictureRecipe, PictureStage
from .recipe import flag, listed, on, several, whole
from .sheets import Use


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNetRecipe(PictureRecipe):
    """A ControlNet (Zhang et al. 2023, arXiv 2302.05543), begun as a copy of the U-Net's way down."""

    hint: str = setting("canny", listed(hints.HINTS), "What it is shown: a name of `darkroom.hints`.")
    attention: bool = setting(
        True, flag(), "Without: no transformers in it, a smaller file, for hints that say where things are."
    )
    hint_widths: tuple[int, ...] = setting(
        (16, 32, 96, 256), several(whole()), "Of the layers that shrink a hint to the size of latents."
    )

    @property
    def stage(self) -> type[ControlNetStage]:
        return ControlNetStage


def controlnet(preset: str = "cpu") -> ControlNetRecipe:
    """Ten thousand steps of eight pictures."""
    return on(ControlNetRecipe(steps=10_000, batch_size=8, lr=1e-4, optimizer="adamw", warmup=200), preset)


class ControlNetStage(PictureStage):
    """A ControlNet's training."""

    config: ControlNetRecipe

    def begin(self) -> None:
        c = self.config
        try:
            self.net = ControlNet.from_unet(self.pipe.unet, attention=c.attention, hint_widths=c.hint_widths)
        except ValueError as error:
            raise TrainingError(str(error)) from None
        check_hint_widths(c, self.net, self.pipe.autoencoder.config.downscale)
        self.modules["controlnet"] = self.net

    def hint(self, i: int, step: int) -> Tensor:
        """The hint of picture i, as a step shows it: [3, H, W] in 0..1."""
        shown = self.dataset.picture(i, self.dataset.version(i, step, self.config.seed))
        made = hints.make(self.config.hint, Image.fromarray(shown))
        return torch.from_numpy(np.asarray(made).copy()).permute(2, 0, 1).float() / 255

    def shown(self, rows: Sequence[int], step: int) -> Any:
        return *super().shown(rows, step), torch.stack([self.hint(i, step) for i in rows])

    def blank(self, rows: int, side: int) -> Any:
        return *super().blank(rows, side), torch.zeros(rows, 3, side, side)

    def loss(self, batch: Any, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        latents, rows, captions, shown = batch
        n = len(rows)
        control = ControlBatch(self.net, tuple(range(n)), shown.to(self.pipe.device), (1.0,) * n, (False,) * n)
        condition = replace(self.condition(captions, rows, step), controls=(control,))
        return self.denoising(latents, rows, condition, rank)

    @contextmanager
    def drawing(self) -> Iterator[Mapping[str, Any]]:
        """Sheets are steered by the hint of the first picture."""
        hint = hints.make(self.config.hint, Image.fromarray(self.dataset.picture(0)))
        with super().drawing() as told:
            yield {**told, "controls": (Control(self.net, hint),)}

    def write(self, output: Path, report: Report) -> Path:
        return save_controlnet(output / "controlnet", self.net.state_dict(), self.net.config, torch.float16)

    @classmethod
    def use(cls, recipe: Any, made: Path) -> Use:
        return Use(control=made, hint=recipe.hint)


def check_hint_widths(recipe: ControlNetRecipe, net: ControlNet, wanted: int) -> None:
    """Raise TrainingError unless a ControlNet brings hints to the size of latents, `wanted` times smaller."""
    if (found := net.config.hint_downscale) != wanted:
        raise TrainingError(
            f"hint_widths has {len(recipe.hint_widths)} widths, which shrink a hint {found} times; this model's "
            f"latents are {wanted} times smaller than its pictures"
        )
