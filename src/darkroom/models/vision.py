"""The image tower of CLIP: a vision transformer (Radford et al. 2021, arXiv 2103.00020, sec. 2.4; Dosovitskiy et al.
2020, arXiv 2010.11929, eq. 1 to 4), made of the text encoder's layers without their mask.

Shapes: N pictures, S = image_size, D = hidden_size, P = projection_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import VisionEncoderConfig
from .text_encoder import Layer, draw_weights, embedding_table


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
