"""SDXL's and its refiner's networks against diffusers and transformers: random weights, same input, same output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig, UNetConfig
from darkroom.models.layers import parameter_count
from darkroom.models.presets import SD15_TEXT_ENCODER, SDXL_REFINER_UNET, SDXL_TEXT_ENCODER_2, SDXL_UNET
from darkroom.models.unet import UNet

ADDED = {"addition_time_embed_dim": 12, "cross_attention_dim": 40}
BASE = replace(
    SDXL_UNET,
    **ADDED,
    block_out_channels=(32, 64, 96),
    transformer_layers=(1, 2, 3),
    heads=(1, 2, 3),
    projection_class_embeddings_input_dim=20 + 6 * 12,
)
REFINER = replace(
    SDXL_REFINER_UNET,
    **ADDED,
    block_out_channels=(32, 64, 96, 96),
    transformer_layers=(2, 2, 2, 2),
    heads=(1, 2, 3, 3),
    projection_class_embeddings_input_dim=20 + 5 * 12,
)
SIZES = torch.tensor([[1024, 768, 0, 0, 1024, 1024], [64.0, 32, 13, 7, 8, 4096]])
SMALL = {"vocab_size": 99, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "eos_token_id": 98}


def inputs(config: UNetConfig, height: int, width: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(height * 100 + width)
    return {
        "x": torch.randn(2, config.in_channels, height, width),
        "timesteps": torch.tensor([981.0, 3.25]),
        "text": torch.randn(2, 7, config.cross_attention_dim),
        "pooled": torch.randn(2, 20),
        "sizes": SIZES[:, : config.sizes(20)],
    }


@pytest.mark.parametrize("config", [BASE, REFINER], ids=["base", "refiner"])
@torch.no_grad()
def test_the_unet_equals_diffusers(config, twins, difference):
    network, peer = twins(config)
    for height, width in [(16, 8), (13, 9)]:
        given = inputs(config, height, width)
        added = {"text_embeds": given["pooled"], "time_ids": given["sizes"]}
        expected = peer(given["x"], given["timesteps"], given["text"], added_cond_kwargs=added).sample
        assert difference(network(**given), expected) < 1e-5, (height, width)
        other = network(**(given | {"sizes": given["sizes"] + 50}))
        assert difference(other, expected) > 1e-4


def test_the_refiner_has_its_size(peer):
    with torch.device("meta"):
        count = parameter_count(UNet(SDXL_REFINER_UNET))
        assert count == sum(p.numel() for p in peer(SDXL_REFINER_UNET).parameters())
    assert round(count / 1e6) in range(2250, 2300)


def test_how_many_sizes_a_network_is_told():
    assert SDXL_UNET.sizes(1280) == 6
    assert SDXL_REFINER_UNET.sizes(1280) == 5
    with pytest.raises(ValueError, match=r"is 2816; a pooled text of 768 and 6 or 5 sizes .* make 2304 or 2048"):
        SDXL_UNET.sizes(768)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooled": None}, r"no pooled text or no sizes given; this network needs them"),
        ({"sizes": SIZES[:, :5]}, "a pooled text of 20 and 5 sizes make 80; this network takes 92"),
        ({"sizes": SIZES[:1]}, r"sizes \(1, 6\) given for 2 rows"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        UNet(BASE)(**(inputs(BASE, 8, 8) | change))


def test_other_networks_are_told_no_sizes():
    config = replace(BASE, addition_time_embed_dim=None, projection_class_embeddings_input_dim=None)
    with pytest.raises(ValueError, match="this network is not told them"):
        UNet(config)(**inputs(BASE, 8, 8))


def test_every_parameter_learns():
    torch.manual_seed(0)
    network = UNet(BASE)
    network(**inputs(BASE, 8, 8)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("eos", [98, 2])
@torch.no_grad()
def test_the_second_text_encoder_equals_transformers(eos, twins, difference):
    config = replace(SDXL_TEXT_ENCODER_2, **(SMALL | {"eos_token_id": eos}), num_hidden_layers=4, projection_dim=20)
    network, peer = twins(config)
    ids = torch.randint(3, 97, (3, 77))
    ids[0, 5:] = 0
    ids[0, 5] = ids[1, 76] = ids[2, 1] = ids[2, 70] = 98
    answer = peer(ids, output_hidden_states=True)
    hidden, pooled = network.penultimate(ids)
    assert difference(hidden, answer.hidden_states[-2]) < 1e-5
    assert difference(pooled, answer.text_embeds) < 1e-5
    for skip in (1, 2, 3, 5):
        other, same = network.penultimate(ids, skip)
        assert difference(other, answer.hidden_states[-max(skip, 2)]) < 1e-5
        assert torch.equal(same, pooled)
    with pytest.raises(ValueError, match=r"clip_skip=6 is outside 0\.\.5"):
        network.penultimate(ids, 6)


@torch.no_grad()
def test_the_first_text_encoder_has_nothing_pooled(twins, difference):
    network, peer = twins(replace(SD15_TEXT_ENCODER, **SMALL, num_hidden_layers=3))
    ids = torch.randint(0, 97, (2, 9))
    hidden, pooled = network.penultimate(ids)
    assert pooled is None
    assert difference(hidden, peer(ids, output_hidden_states=True).hidden_states[-2]) < 1e-5


def test_latents_are_normalised_by_channel():
    config = AutoencoderConfig.from_diffusers({"latents_mean": [1, -2, 3, 0], "latents_std": [2, 1, 0.5, 4]})
    assert AutoencoderConfig.from_diffusers(config.to_diffusers()) == config
    assert AutoencoderConfig.from_diffusers({"latents_mean": [1, -2, 3, 0]}).latents_mean is None
    with torch.device("meta"):
        network = Autoencoder(config)
    z = torch.randn(2, 4, 3, 5)
    mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in ([1.0, -2, 3, 0], [2, 1, 0.5, 4]))
    torch.testing.assert_close(network.scale(z), (z - mean) * config.scaling_factor / std)
    torch.testing.assert_close(network.unscale(network.scale(z)), z)
    with pytest.raises(ValueError, match=r"latents_mean is \(1, 2\); it needs one value for each of 4 channels"):
        AutoencoderConfig.from_diffusers({"latents_mean": [1, 2], "latents_std": [2, 1]})
    with pytest.raises(ValueError, match=r"latents_std is .*; it is a number whose size is from 0.0001"):
        AutoencoderConfig(latents_mean=(0.0,) * 4, latents_std=(0.0,) * 4)
