"""Latents to pictures: by the autoencoder (in float32 where half precision overflows), or roughly, by an affine map.

A latent pixel of a Stable Diffusion autoencoder is nearly an affine function of the mean colour beneath it. The map
is fitted once for each autoencoder by least squares: a picture of smooth random colours is encoded, and the colours
are regressed on the latent. So a preview needs no network.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import RequestError
from ..images import to_pil, to_unit
from ..kernels.exact import same_bits
from ..models.autoencoder import Autoencoder
from .job import Job

NARROW = (torch.float16, torch.bfloat16)
FIELD = 24  # side of the fitted picture in latent pixels: 576 equations for C + 1 unknowns a colour

log = logging.getLogger(__name__)


def finish(autoencoder: Autoencoder, job: Job) -> Image.Image | Tensor:
    """What a job that is done sampling gives: a picture, a tensor [3, H, W] in 0..1, or a latent [C, h, w]."""
    latent = job.state.x * job.final_scale
    if job.known is not None:
        latent = job.known.restore(latent)
    if job.output == "latent":
        return latent.cpu()
    width, height = job.size
    picture = decode(autoencoder, latent[None])[0, :, :height, :width].cpu()
    if job.composite is not None:
        picture = job.composite.put(picture)
    return to_pil(picture) if job.output == "pil" else picture.contiguous()


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    """Scaled latents [N, C, h, w] -> pictures [N, 3, H, W] float32 in 0..1, one at a time to keep memory low.

    One at a time also keeps the bits of a picture independent of its company.
    """
    device = next(autoencoder.parameters()).device

    def decoded(latent: Tensor, network: Autoencoder) -> Tensor:
        with same_bits(network):
            return network.decode(network.unscale(latent[None]).to(next(network.parameters()).dtype))

    latents = latents.to(device).float()
    return torch.cat([to_unit(finite(autoencoder, partial(decoded, latent), "decoding")) for latent in latents])


def finite(autoencoder: Autoencoder, call: Callable[[Autoencoder], Tensor], what: str) -> Tensor:
    """What `call` answers for the autoencoder; where that is not finite in half precision, for a float32 copy of it.

    The copy is made for this call alone: the model stays as it is. `call` must bring its inputs to the autoencoder's
    dtype itself; `what` ("decoding") is for the log. Raises RequestError where the answer isn't finite in float32.
    """
    answer = call(autoencoder)
    if bool(answer.isfinite().all()):
        return answer
    dtype = next(autoencoder.parameters()).dtype
    if dtype in NARROW:
        log.warning("%s overflowed in %s; doing it again in float32", what, str(dtype).removeprefix("torch."))
        answer = call(copy.deepcopy(autoencoder).float())
        if bool(answer.isfinite().all()):
            return answer
    raise RequestError(
        f"{what} answered with numbers that are not finite, in float32 too; check the autoencoder and the latents"
    )


# --- previews


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
