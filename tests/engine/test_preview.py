"""Previews: the fitted map shows what the autoencoder would."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from darkroom.engine.preview import Preview, Previewer, fit_preview
from darkroom.models.config import AutoencoderConfig
from darkroom.pipeline import Pipeline


class Affine(nn.Module):
    """An "autoencoder" whose latent is exactly an affine function of the mean colour beneath it."""

    config = AutoencoderConfig(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([[1.0, 0.2, 0], [0, -1, 0.3], [0.5, 0, 2], [1, 1, 1]]))

    def encode(self, pictures: Tensor) -> Tensor:
        mean = nn.functional.avg_pool2d(pictures, 8)
        latent = torch.einsum("nchw,dc->ndhw", mean, self.mix) + 0.7
        return torch.cat([latent, torch.zeros_like(latent)], dim=1)

    def scale(self, latents: Tensor) -> Tensor:
        return latents * 0.18215


def test_an_affine_latent_is_shown_exactly() -> None:
    previewer = Previewer(Affine())  # type: ignore[arg-type]
    colour = torch.tensor([0.2, 0.6, 0.88])
    latent = Affine().encode((2 * colour - 1).reshape(1, 3, 1, 1).expand(1, 3, 32, 32))[0, :4] * 0.18215
    picture = Preview(previewer, latent, 30, 25)()
    assert picture.size == (30, 25)
    assert picture.getpixel((12, 12)) == (51, 153, 224)


def test_random_networks_and_broken_latents_give_a_picture(tiny_pipe: Pipeline) -> None:
    coefficients = fit_preview(tiny_pipe.autoencoder)
    assert coefficients.shape == (5, 3)
    assert bool(coefficients.isfinite().all())
    assert torch.equal(coefficients, fit_preview(tiny_pipe.autoencoder))
    picture = tiny_pipe.previewer.picture(torch.full((4, 8, 8), float("nan")), 64, 64)
    assert isinstance(picture, Image.Image)
