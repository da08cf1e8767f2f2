"""CLIP: a text encoder and an image encoder with one space for both (Radford et al. 2021, arXiv 2103.00020, Fig. 3).

Shapes: N pictures and their texts, T tokens, S side of a picture, P = projection_dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .text_encoder import TextEncoder
from .vision import VisionEncoder

LARGEST = 100.0  # of the scale, to which training clips it: more makes it unstable (their sec. 2.5)


class Clip(nn.Module):
    """Both encoders, and the learned scale of their agreement (one over the temperature).

    Raises ValueError where the encoders don't meet in one space.
    """

    def __init__(self, text: TextEncoder, image: VisionEncoder, temperature: float = 0.07) -> None:
        super().__init__()
        t, v = text.config, image.config
        if not t.projection or t.projection_dim != v.projection_dim:
            raise ValueError(f"text projected to {t.projection_dim if t.projection else 'nothing'} and pictures to "
                             f"{v.projection_dim}; both need the same projection_dim")  # fmt: skip
        self.text, self.image = text, image
        # Its logarithm is learned, as one number in a vector: scalars can't be shared between processes.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]))

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [N, 3, S, S], normalised, and token ids [N, T] -> both embedded [N, P] at unit length, and the
        scale [1]."""
        return self.see(pixels), self.read(ids), self.logit_scale.float().exp()

    def see(self, pixels: Tensor) -> Tensor:
        """Pictures [N, 3, S, S], normalised -> [N, P] float32 of unit length."""
        return F.normalize(self.image(pixels).float(), dim=-1)

    def read(self, ids: Tensor) -> Tensor:
        """Token ids [N, T] -> [N, P] float32 of unit length."""
        pooled = self.text.penultimate(ids)[1]
        assert pooled is not None
        return F.normalize(pooled.float(), dim=-1)


def contrastive_loss(pictures: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """How badly each picture finds its text among all, and each text its picture: the mean of both cross-entropies.

    `pictures` and `texts` are [N, P] at unit length, row by row of each other (their Fig. 3).
    """
    logits = scale * texts @ pictures.T
    right = torch.arange(len(texts), device=texts.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
