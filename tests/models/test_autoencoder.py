"""The autoencoder against diffusers' AutoencoderKL: random weights, same input, same output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig
from darkroom.models.presets import SD15_AUTOENCODER, UPSCALER_AUTOENCODER

TINY = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
CONFIGS = {
    "sd": replace(SD15_AUTOENCODER, block_out_channels=(32, 64, 96, 96)),
    "upscaler": replace(UPSCALER_AUTOENCODER, block_out_channels=(32, 64, 64)),
    "plain": replace(
        TINY, latent_channels=3, mid_block_attention=False, use_quant_conv=False, use_post_quant_conv=False
    ),
    "grey": replace(TINY, in_channels=1, out_channels=1, latent_channels=16, layers_per_block=3, norm_num_groups=8),
}


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_equals_diffusers(name, twins, difference):
    config = CONFIGS[name]
    network, peer = twins(config)
    f = config.downscale
    for height, width, more in ((5, 3, 0), (2, 4, f - 1)):
        pictures = torch.randn(2, config.in_channels, f * height + more, f * width)
        moments = network.encode(pictures)
        assert moments.shape == (2, 2 * config.latent_channels, height, width)
        assert difference(moments, peer.encode(pictures).latent_dist.parameters) < 1e-5
        latents = torch.randn(2, config.latent_channels, height, width)
        decoded = network.decode(latents)
        assert decoded.shape == (2, config.out_channels, f * height, f * width)
        assert difference(decoded, peer.decode(latents).sample) < 1e-5
        mean = moments.chunk(2, dim=1)[0]
        assert torch.equal(network(pictures), network.decode(mean))


def test_scale_and_back():
    network = Autoencoder(replace(TINY, scaling_factor=0.5, shift_factor=0.25))
    latents = torch.tensor([[[[1.25]]]])
    assert network.scale(latents).item() == 0.5
    assert torch.equal(network.unscale(network.scale(latents)), latents)
    assert Autoencoder(TINY).scale(torch.ones(1)).item() == pytest.approx(0.18215)


@pytest.mark.parametrize("autocast", [False, True])
def test_every_parameter_learns(autocast):
    torch.manual_seed(0)
    network = Autoencoder(TINY)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        pictures = torch.randn(2, 3, 16, 16)
        moments = network.encode(pictures)
        loss = network.decode(moments.chunk(2, dim=1)[0]).float().square().mean() + moments.float().square().mean()
    loss.backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_inputs_of_another_network_are_named():
    network = Autoencoder(TINY)
    with pytest.raises(ValueError, match=r"pictures of shape \(1, 4, 16, 16\) given; .* \[N, 3, H, W\]"):
        network.encode(torch.zeros(1, 4, 16, 16))
    with pytest.raises(ValueError, match=r"latents of shape \(1, 8, 4, 4\) given; .* \[N, 4, h, w\]"):
        network.decode(torch.zeros(1, 8, 4, 4))
    with pytest.raises(ValueError, match="at least 2 x 2"):
        network.encode(torch.zeros(1, 3, 1, 16))
