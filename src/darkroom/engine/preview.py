"""Cheap previews: a latent to a small picture by an affine map of its channels, without a network.

A latent pixel of a Stable Diffusion autoencoder is nearly an affine function of the mean colour beneath it. The map
is fitted once for each autoencoder by least squares: a picture of smooth random colours is encoded, and the colours
are regressed on the latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..images import to_pil, to_unit
from ..models.autoencoder import Autoencoder

FIELD = 24  # side of the fitted picture in latent pixels: 576 equations for C + 1 unknowns a colour


@torch.no_grad()
def fit_preview(autoencoder: Autoencoder) -> Tensor:
    """Coefficients [C + 1, 3], float32 on the CPU: RGB in 0..1 = [latent, 1] @ coefficients. One encoder pass."""
    weight = next(autoencoder.parameters())
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, FIELD // 2, FIELD // 2, generator=random)
    side = FIELD * autoencoder.config.downscale
    colours = F.interpolate(coarse, size=(side, side), mode="bilinear")  # [1, 3, side, side] in 0..1
    moments = autoencoder.encode((2 * colours - 1).to(device=weight.device, dtype=weight.dtype))
    latent = autoencoder.scale(moments.chunk(2, dim=1)[0])[0].double().cpu()  # [C, FIELD, FIELD]
    mean = F.adaptive_avg_pool2d(colours, FIELD)[0]  # [3, FIELD, FIELD]
    unknowns = np.concatenate([latent.flatten(1).T.numpy(), np.ones((FIELD * FIELD, 1))], axis=1)
    solution, *_ = np.linalg.lstsq(unknowns, mean.flatten(1).T.double().numpy(), rcond=1e-6)
    return torch.from_numpy(solution).float()


class Previewer:
    """Makes previews with one autoencoder's map, which is fitted when the first one is looked at.

    With a `network` (a tiny autoencoder of the same latents) that decodes them instead: slower, and sharp.
    """

    def __init__(self, autoencoder: Autoencoder, network: Autoencoder | None = None) -> None:
        self.autoencoder = autoencoder
        self.network = network
        self._coefficients: Tensor | None = None
        self._lock = Lock()

    @property
    def coefficients(self) -> Tensor:
        """[C + 1, 3] float32: RGB in 0..1 = [latent, 1] @ coefficients."""
        with self._lock:
            if self._coefficients is None:
                self._coefficients = fit_preview(self.autoencoder)
            return self._coefficients

    def picture(self, latent: Tensor, width: int, height: int) -> Image.Image:
        """A scaled latent [C, h, w] as an RGB picture of width x height pixels, soft without a network."""
        if self.network is not None:
            return to_pil(self._decoded(self.network, latent)).crop((0, 0, width, height))
        factors = self.coefficients
        rgb = torch.einsum("chw,cd->dhw", latent.detach().float().cpu(), factors[:-1]) + factors[-1][:, None, None]
        small = to_pil(rgb.nan_to_num().clamp(0, 1))
        f = self.autoencoder.config.downscale
        whole = small.resize((small.width * f, small.height * f), Image.Resampling.BILINEAR)
        return whole.crop((0, 0, width, height))

    @staticmethod
    @torch.no_grad()
    def _decoded(network: Autoencoder, latent: Tensor) -> Tensor:
        """[3, H, W] in 0..1."""
        weight = next(network.parameters())
        latent = network.unscale(latent[None].to(device=weight.device, dtype=torch.float32).nan_to_num())
        return to_unit(network.decode(latent.to(weight.dtype))[0].float().nan_to_num())


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview that is made when it is called; until then it costs nothing."""

    previewer: Previewer
    latent: Tensor  # [C, h, w]
    width: int
    height: int

    def __call__(self) -> Image.Image:
        return self.previewer.picture(self.latent, self.width, self.height)
