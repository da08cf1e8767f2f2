"""D(x; sigma, condition): the denoised picture, and the only caller of a U-Net.

N rows, C latent channels, C' extra input channels, H W latent size, T tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..accelerate.merging import merging
from ..adapters import attached
from ..models.unet import CachedFeatures, timestep_embedding
from .condition import Batch, Condition, collate, residuals, to_device
from .scalings import Scaling, scaling_for
from .schedule import Schedule

Sigma = Tensor | Sequence[float] | float


class Denoiser:
    """D(x; sigma) = c_skip x + c_out unet(c_in x, t, condition) (Karras et al. 2022, arXiv 2206.00364, eq. 7).

    Args:
        unet: called as unet(x [N, C + C', H, W], timesteps [N], text [N, T, D], class_labels [N] or None, **extra).
            Its config.time_cond_proj_dim is read when conditions carry a guidance scale.
        schedule: says what the network is told at a noise level.
        scaling: what the network's output means (default: by schedule.prediction_type).

    x is float32 in our coordinates, x0 + sigma noise; the network runs in its own dtype on its own device; answers
    are float32 where x was. sigma is one level, or one a row: floats (best: no device is asked) or a [N] tensor.
    """

    def __init__(self, unet: nn.Module, schedule: Schedule, scaling: Scaling | None = None) -> None:
        self.unet = unet
        self.schedule = schedule
        self.scaling = scaling if scaling is not None else scaling_for(schedule.prediction_type, schedule.sigma_data)

    def __call__(
        self, x: Tensor, sigma: Sigma, conditions: Sequence[Condition] | Batch, t: Sigma | None = None, **extra: Any
    ) -> Tensor:
        """The denoised picture [N, C, H, W] float32 for x [N, C, H, W] at sigma.

        t overrides the timesteps (default: `schedule.sigma_to_t(sigma)`), for schedules that round them.
        extra goes to the U-Net (control residuals).
        """
        levels = _rows(sigma, x)
        output = self._network(x, levels, conditions, t, extra)
        c_skip, c_out = (_column(f(levels), x) for f in (self.scaling.c_skip, self.scaling.c_out))
        return c_skip * x.float() + c_out * output

    def raw(
        self, x: Tensor, sigma: Sigma, conditions: Sequence[Condition] | Batch, t: Sigma | None = None, **extra: Any
    ) -> Tensor:
        """The network's own output [N, C, H, W] as float32 (noise, v, x0 or velocity). Differentiable.

        Training compares it with `scaling.target(x0, noise, sigma)`; a `Batch` may bring text with gradients.
        """
        return self._network(x, _rows(sigma, x), conditions, t, extra)

    def _network(
        self,
        x: Tensor,
        levels: Tensor,
        conditions: Sequence[Condition] | Batch,
        t: Sigma | None,
        extra: dict[str, Any],
    ) -> Tensor:
        weight = next(self.unet.parameters(), x)  # a network without weights runs where x is
        device, dtype = weight.device, weight.dtype
        batch = conditions if isinstance(conditions, Batch) else collate(conditions, device, dtype)
        if len(batch.text) != len(x):
            raise ValueError(f"{len(x)} rows of x but {len(batch.text)} conditions")
        timesteps = self.schedule.told(self.schedule.sigma_to_t(levels) if t is None else _rows(t, x).float())
        # Scaled in float32, and only then rounded to the network's type: x is as large as sigma, up to thousands.
        latent = (_column(self.scaling.c_in(levels), x) * x.float()).to(device=device, dtype=dtype)
        if batch.channels is not None:
            latent = torch.cat([latent, batch.channels.to(device=device, dtype=dtype)], dim=1)
        if batch.guidance_scales is not None:
            extra = {"time_cond": self._guidance_embedding(batch.guidance_scales.to(device)), **extra}
        if batch.pooled is not None and batch.sizes is not None:
            extra = {"pooled": batch.pooled.to(device=device, dtype=dtype), "sizes": batch.sizes.to(device), **extra}
        if batch.identity is not None:
            extra = {"identity": batch.identity, **extra}
        if (control := residuals(batch, latent, timesteps)) is not None:
            extra = {"down_residuals": control[0], "mid_residual": control[1], **extra}
        labels = batch.class_labels
        # Compiled code passes over hooks that came after it; a plain call of `forward` is not compiled.
        network = self.unet if batch.loras is None and not batch.merging else self.unet.forward
        size = (latent.shape[-2], latent.shape[-1])
        with (
            attached(self.unet, "unet", batch.loras or ()),
            merging(self.unet, batch.merging, size),
            _reusing(batch, device, dtype) as cached,
        ):
            if cached is not None:
                extra = {"cached": cached, **extra}
            output: Tensor = network(
                latent,
                timesteps.to(device),
                batch.text.to(device=device, dtype=dtype),
                class_labels=None if labels is None else labels.to(device),
                **extra,
            )
        return output.to(device=x.device, dtype=torch.float32)

    def _guidance_embedding(self, scales: Tensor) -> Tensor:
        """Sinusoids [N, time_cond_proj_dim] of 1000 (scale - 1) (Luo et al. 2023, arXiv 2310.04378, sec. 4.1)."""
        width = getattr(getattr(self.unet, "config", None), "time_cond_proj_dim", None)
        if width is None:
            raise ValueError("conditions carry a guidance_scale, but this U-Net does not take one as an input")
        return timestep_embedding((scales - 1) * 1000, width, cosines_first=False, freq_shift=1)


@contextmanager
def _reusing(batch: Batch, device: torch.device, dtype: torch.dtype) -> Iterator[CachedFeatures | None]:
    """The rows' cached features as one call's; afterwards each row has what the call left."""
    if batch.cached is None:
        yield None
        return
    rows = [None if row is None else row.features for row in batch.cached]
    given = [features.to(device=device, dtype=dtype) for features in rows if features is not None]
    cached = CachedFeatures(torch.stack(given) if given else None)
    yield cached
    if not given and cached.features is not None:
        for row, features in zip(batch.cached, cached.features, strict=True):
            if row is not None:
                row.features = features.clone()  # a row on its own: a view would keep the whole batch in memory


def _rows(values: Sigma, x: Tensor) -> Tensor:
    """One number a row of x, [N], on x's device; in float64 where it comes from the host."""
    rows = len(x)
    if isinstance(values, Tensor):
        if values.shape not in ((), (1,), (rows,)):
            raise ValueError(f"{rows} rows of x but noise levels of shape {tuple(values.shape)}")
        return values.to(x.device).expand(rows)
    numbers = [float(values)] * rows if isinstance(values, (int, float)) else [float(v) for v in values]
    if len(numbers) != rows:
        raise ValueError(f"{rows} rows of x but {len(numbers)} noise levels")
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    return to_device(torch.tensor(numbers, dtype=dtype), x.device)


def _column(values: Tensor, x: Tensor) -> Tensor:
    """Coefficients [N] as float32 [N, 1, 1, 1] against x."""
    return values.float().reshape(-1, *(1,) * (x.ndim - 1))
