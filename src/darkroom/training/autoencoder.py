"""Training an autoencoder on scenes: reconstruction and a whisper of KL (Rombach et al. 2022, sec. 3.1).

Shapes: N pictures, C latent channels, S side of a crop, s = S / 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkroom.data.glyphs import Glyph
from darkroom.data.objects import CANVAS, GRID
from darkroom.data.scenes import draw_collage, draw_scene, render_scene
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig

from .loop import LoopConfig, step_seed
from .parallel import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderRecipe(LoopConfig):
    """An autoencoder from nothing, on the built-in scenes."""

    widths: tuple[int, ...] = (16, 32, 96, 192)
    layers: int = 1
    groups: int = 4
    crop: int = 64  # side of the crops until `whole_from`
    whole_from: float = 0.8  # fraction of the run after which whole pictures are used (a quarter as many a batch)
    decoder_from: float = 1.0  # fraction of the run after which only the decoder goes on, and the latents are final
    collages: float = 0.2  # fraction of pictures off the grid, with emoji that are no object of ours
    kl: float = 1e-6  # weight of the KL term
    l1: float = 0.1  # weight of the absolute error beside the squared one


def network(recipe: AutoencoderRecipe) -> Autoencoder:
    """The untrained network of a recipe."""
    config = AutoencoderConfig(
        block_out_channels=recipe.widths, layers_per_block=recipe.layers, norm_num_groups=recipe.groups,
        sample_size=CANVAS, scaling_factor=1.0, force_upcast=False,
    )  # fmt: skip
    torch.manual_seed(step_seed(recipe.seed, -1))
    return Autoencoder(config)


@dataclass
class AutoencoderStage:
    """The loop's view of an autoencoder's training."""

    config: AutoencoderRecipe
    autoencoder: Autoencoder
    others: Sequence[Glyph] = field(default_factory=list)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.autoencoder}

    def batch(self, step: int, share: Share) -> Tensor:
        """Pictures [N, 3, S, S] in -1..1."""
        c = self.config
        whole = step >= c.whole_from * c.steps
        count = c.batch_size // (CANVAS // c.crop) ** 2 if whole else c.batch_size
        pictures = []
        for i in share.of(range(count)):
            # Indices never depend on the size of an earlier batch, so that any step can be made on its own.
            index = step * c.batch_size + i
            rng = np.random.default_rng((c.seed, index, 2))
            if rng.random() < c.collages:
                picture = draw_collage(c.seed, index, self.others)
                x, y = (int(v) for v in rng.integers(CANVAS - c.crop + 1, size=2))
            else:
                scene = draw_scene(c.seed, index)
                picture = render_scene(scene)
                o = scene.objects[int(rng.integers(len(scene.objects)))]
                x, y = (_around(rng, at, o.side, c.crop) for at in (o.x, o.y))
            pictures.append(picture if whole else picture[y : y + c.crop, x : x + c.crop])
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1

    def loss(self, batch: Tensor, step: int, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        pictures = batch.to(c.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and step < c.decoder_from * c.steps):
            mean, logvar = self.autoencoder.encode(pictures).float().chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        latents = mean + torch.exp(0.5 * logvar) * share.of(torch.randn(len(mean) * share.world, *mean.shape[1:])).to(
            mean.device
        )
        y = self.autoencoder.decode(latents).float()
        squared = F.mse_loss(y, pictures)
        absolute = F.l1_loss(y, pictures)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        psnr = -10 * torch.log10(F.mse_loss(y.detach().clamp(-1, 1), pictures) / 4)
        figures = {"psnr": psnr, "kl": kl.detach(), "deviation": mean.detach().std()}
        return squared + c.l1 * absolute + c.kl * kl, figures


def _around(rng: np.random.Generator, at: int, side: int, crop: int) -> int:
    """A crop's corner on the grid so that the crop meets the object at `at`."""
    low, high = max(0, at - crop // 2), min(CANVAS - crop, at + side - crop // 2)
    return (
        int(rng.integers(low // GRID, high // GRID + 1)) * GRID
        if high > low
        else min(low, CANVAS - crop) // GRID * GRID
    )
