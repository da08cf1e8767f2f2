"""What every training of a U-Net, or of something attached to one, minimises.

Shapes: N rows, C latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from darkroom.diffusion.condition import Batch
from darkroom.diffusion.denoiser import Denoiser

from .parallel import Share


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    batch: Batch,
    share: Share,
    weight: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over rows of weight(sigma) * |network's output - target|^2, at timesteps spread over the schedule.

    Args:
        x0: this process's latents [N, C, h, w], scaled as the U-Net sees them, float32.
        batch: what they are conditioned on; gradients go through it.
        share: which part of the whole batch this is. Noise and timesteps are drawn from torch's generator for the whole
            batch, so that every process sees its part of the same draw.
        weight: of sigma [N], on the squared error of the network's own output (noise or v); None: 1.

    Returns the loss and, detached, the unweighted error.
    """
    schedule, rows = denoiser.schedule, len(x0) * share.world
    noise = share.of(torch.randn(rows, *x0.shape[1:])).to(x0.device)
    # Timesteps spread evenly over the batch: less variance than independent ones.
    spread = share.of((torch.arange(rows) + torch.rand(())) / rows)
    t = (spread * schedule.steps).long().clamp(max=schedule.steps - 1).to(x0.device)
    sigma = schedule.t_to_sigma(t.float()).view(-1, 1, 1, 1).float()
    answer = denoiser.raw(x0 + sigma * noise, sigma.flatten(), batch, t=t.float())
    target = denoiser.scaling.target(x0, noise, sigma)
    error = (answer - target).square().mean(dim=(1, 2, 3))
    loss = error if weight is None else weight(sigma.flatten()) * error
    return loss.mean(), {"error": error.detach().mean()}
