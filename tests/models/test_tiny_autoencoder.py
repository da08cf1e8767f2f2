"""The tiny autoencoder against diffusers' own."""

import pytest
import torch

from darkroom.models.autoencoder import TinyAutoencoder
from darkroom.models.config import TinyAutoencoderConfig

SMALL = {
    "encoder_block_out_channels": [8, 8, 8],
    "decoder_block_out_channels": [12, 12, 12],
    "num_encoder_blocks": [1, 2, 1],
    "num_decoder_blocks": [2, 1, 1],
    "latent_channels": 5,
}


@pytest.fixture(params=[SMALL, {}], ids=["small", "published"])
def pair(request):
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    torch.manual_seed(0)
    peer = AutoencoderTiny(**request.param).eval()
    ours = TinyAutoencoder(TinyAutoencoderConfig.from_diffusers(dict(peer.config))).eval()
    state = {name.replace(".layers.", "."): tensor for name, tensor in peer.state_dict().items()}
    ours.load_state_dict(state, strict=True)
    return ours, peer


@torch.no_grad()
def test_it_is_diffusers_own(pair):
    ours, peer = pair
    f, c = ours.config.downscale, ours.config.latent_channels
    pictures = torch.rand(2, 3, 5 * f, 3 * f) * 2 - 1
    latents = peer.encode(pictures).latents
    mean, log_variance = ours.encode(pictures).chunk(2, dim=1)
    torch.testing.assert_close(mean, latents, rtol=1e-5, atol=1e-5)
    assert float(log_variance.max()) == -30.0
    noise = 3 * torch.randn(2, c, 4, 6)
    torch.testing.assert_close(ours.decode(noise), peer.decode(noise).sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(pictures), peer.decode(latents).sample, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.scale(noise), noise)


def test_its_configuration_comes_back(pair):
    config = pair[0].config
    assert TinyAutoencoderConfig.from_diffusers(config.to_diffusers()) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"act_fn": "silu"}, "act_fn='silu'"),
        ({"upsampling_scaling_factor": 3}, "upsampling_scaling_factor=3"),
        ({"num_encoder_blocks": [1, 2]}, "encoder_blocks.*3 levels"),
        ({"decoder_block_out_channels": [8, 16, 8]}, "one width"),
        ({"num_decoder_blocks": [1, 10_000, 1]}, "at most"),
        ({"latent_channels": 0}, "latent_channels is 0"),
    ],
)
def test_what_it_can_not_be_is_said(changes, words):
    with pytest.raises(ValueError, match=words):
        TinyAutoencoderConfig.from_diffusers(SMALL | changes)


def test_wrong_shapes_are_refused(pair):
    with pytest.raises(ValueError, match="latents of shape"):
        pair[0].decode(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="pictures of shape"):
        pair[0].encode(torch.zeros(1, 1, 32, 32))
