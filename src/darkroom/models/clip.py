"""CLIP: a text encoder and an image encoder with one space for both (Radford et al. 2021, arXiv 2103.00020, Fig. 3).

The image encoder is a vision transformer (their sec. 2.4; Dosovitskiy et al. 2020, arXiv 2010.11929, eq. 1 to 4), made
of the text encoder's layers without their mask.

Shapes: N pictures and their texts, T tokens, S = image_size, D = hidden_size, P = projection_dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionEncoderConfig
from .text_encoder import Layer, TextEncoder, draw_weights, embedding_table

LARGEST = 100.0  # of the scale, to which training clips it: more makes it unstable (their sec. 2.5)


class VisionEncoder(nn.Module):
    """CLIPVisionModelWithProjection: a picture to one embedding, in the space that it shares with a text encoder."""

    def __init__(self, config: VisionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.position_embedding = embedding_table(config.patches + 1, width)
        self.pre_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config, causal=False) for _ in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, config.projection_dim, bias=False)
        if not self.class_embedding.is_meta:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """CLIP's own initial weights, see `text_encoder.draw_weights`."""
        nn.init.normal_(self.class_embedding, std=self.config.hidden_size**-0.5)
        draw_weights(self, self.config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures [N, 3, S, S], normalised as the model was trained -> [N, P], not of unit length.

        Raises ValueError on pictures of another size.
        """
        y: Tensor = self.projection(self.final_norm(self.tokens(pixels)[:, 0]))
        return y

    def tokens(self, pixels: Tensor) -> Tensor:
        """Pictures [N, 3, S, S] -> [N, 1 + patches, D], the class token first, before the final norm."""
        wanted = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if tuple(pixels.shape[1:]) != wanted:
            n = ", ".join(map(str, wanted))
            raise ValueError(f"pictures of shape {tuple(pixels.shape)} given; this image encoder takes [N, {n}]")
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [N, patches, D], row by row
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x: Tensor = self.pre_norm(torch.cat([first, patches], dim=1) + self.position_embedding.weight)
        for layer in self.layers:
            x = layer(x)
        return x


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
    # Every text against every picture; the right ones are on the diagonal.
    logits = scale * texts @ pictures.T
    right = torch.arange(len(texts), device=texts.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
