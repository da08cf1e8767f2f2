"""Latents to pictures: what overflows in half precision comes back in float32, and previews show what is meant."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from darkroom.engine.decode import Preview, Previewer, decode, fit_preview
from darkroom.errors import RequestError
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


def loud(pipe: Pipeline, factor: float) -> torch.nn.Module:
    """The autoencoder with a decoder whose activations pass float16's 65504 on the way, and come back."""
    autoencoder = copy.deepcopy(pipe.autoencoder)
    autoencoder.decoder.conv_in.weight.mul_(factor)
    autoencoder.decoder.conv_in.bias.mul_(factor)
    return autoencoder


def test_a_decode_that_overflows_is_repeated_once(tiny_pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    wide = loud(tiny_pipe, 1e5).half().float()  # type: ignore[operator]
    narrow = copy.deepcopy(wide).half()
    assert not bool(narrow.decode(narrow.unscale(latent).half()).isfinite().all())
    with caplog.at_level(logging.WARNING):
        picture = decode(narrow, latent)
    assert torch.equal(picture, decode(wide, latent))
    assert picture.std() > 0
    assert [r.message for r in caplog.records] == ["decoding overflowed in float16; doing it again in float32"]
    assert next(narrow.parameters()).dtype == torch.float16


def test_what_is_not_finite_in_float32_either_is_an_error(tiny_pipe: Pipeline) -> None:
    latent = torch.full((1, 4, 8, 8), torch.nan)
    for autoencoder in (tiny_pipe.autoencoder, copy.deepcopy(tiny_pipe.autoencoder).half()):
        with pytest.raises(RequestError, match="decoding answered with numbers that are not finite, in float32 too"):
            decode(autoencoder, latent)
