"""What overflows in half precision is computed again in float32: never a black picture."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from darkroom.engine.engine import decode
from darkroom.errors import RequestError
from darkroom.pipeline import Pipeline


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
