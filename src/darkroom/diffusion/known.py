"""Keeping the known part of a picture while the rest is drawn (inpainting with an ordinary model)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of a picture's latent, and where.

    The known part is put back into the *denoised* answer, so that x = latent + sigma * noise stays true there at every
    noise level without new noise (with noise added anew, each step would forget what the last one had agreed on).
    """

    latent: Tensor  # [C, h, w] float32, scaled as the U-Net sees it
    mask: Tensor  # [1, h, w] float32 in 0..1: 1 is drawn anew, 0 is known

    def restore(self, denoised: Tensor) -> Tensor:
        """The denoised answer [C, h, w] with the known part put back."""
        mask = self.mask.to(denoised.device)
        return self.latent.to(denoised.device).lerp(denoised, mask)
