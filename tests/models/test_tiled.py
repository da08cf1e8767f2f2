"""Tiled encoding and decoding equal the plain ones, and hold less at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from darkroom.models import tiled
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import SD15_AUTOENCODER, UPSCALER_AUTOENCODER, AutoencoderConfig

TINY = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
CONFIGS = {
    "sd": replace(SD15_AUTOENCODER, block_out_channels=(8, 16, 24, 24), norm_num_groups=8),
    "upscaler": replace(UPSCALER_AUTOENCODER, block_out_channels=(8, 16, 16), norm_num_groups=4),
    "plain": replace(TINY, mid_block_attention=False, use_quant_conv=False, use_post_quant_conv=False),
    "flat": replace(TINY, block_out_channels=(8,), in_channels=1, out_channels=1),
    "wide": replace(TINY, latent_channels=16, layers_per_block=3),
}


def network(config: AutoencoderConfig) -> Autoencoder:
    torch.manual_seed(0)
    made = Autoencoder(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made.eval()


@pytest.mark.parametrize(("memory", "tile"), [(2e4, 800), (1e5, 1500), (4e5, 5000)])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_equals_the_plain_one(monkeypatch, name, memory, tile):
    """Nothing, something and all can be stored: windows of a few pixels, and of many."""
    monkeypatch.setattr(tiled, "TILE", 4 * tile / memory)
    autoencoder = network(CONFIGS[name])
    f = CONFIGS[name].downscale
    for height, width, more in ((3, 2, 0), (5, 3, f - 1)):
        pictures = torch.randn(1, CONFIGS[name].in_channels, f * height + more, f * width)
        pictures[:, :, : f * 2] += 3.0  # statistics differ from window to window
        expected = autoencoder.encode(pictures)
        assert (tiled.encode(autoencoder, pictures, memory) - expected).abs().max() < 1e-4 * max(
            expected.abs().max(), 1
        )
        latents = torch.randn(2, CONFIGS[name].latent_channels, height, width)
        latents[:, :, :2] *= 4
        before, expected = latents.clone(), autoencoder.decode(latents)
        assert (tiled.decode(autoencoder, latents, memory) - expected).abs().max() < 1e-4
        assert torch.equal(latents, before)
