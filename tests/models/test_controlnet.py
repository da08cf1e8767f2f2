"""The ControlNet against diffusers' ControlNetModel: random weights (the zero convolutions' too), same residuals."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from darkroom.models.config import ControlNetConfig, UNetConfig
from darkroom.models.controlnet import ControlNet
from darkroom.models.presets import SD2_UNET, SD15_UNET
from darkroom.models.unet import UNet


def control(base: UNetConfig, **values) -> ControlNetConfig:
    return ControlNetConfig(**{field.name: getattr(base, field.name) for field in fields(UNetConfig)} | values)


SMALL = {"block_out_channels": (32, 64, 96, 96), "cross_attention_dim": 40}
SD1 = control(replace(SD15_UNET, **SMALL))
TINY_UNET = UNetConfig(
    block_out_channels=(16, 32),
    layers_per_block=(1, 1),
    attention_levels=(True, False),
    only_cross_attention=(False, False),
    transformer_layers=(1, 1),
    heads=(2, 4),
    cross_attention_dim=24,
    norm_num_groups=8,
)
CONFIGS = {
    "sd1": SD1,
    "sd2": control(replace(SD2_UNET, **SMALL, heads=(1, 2, 4, 4), upcast_attention=True, sample_size=64)),
    "bgr, pooled": replace(SD1, hint_bgr=True, global_pool=True),
    "classes": control(TINY_UNET, num_class_embeds=7),
    "other hints": control(TINY_UNET, hint_channels=1, hint_widths=(8, 24), in_channels=9, mid_block_attention=False),
    "only text": control(TINY_UNET, only_cross_attention=(True, False), transformer_layers=(2, 3)),
}


def randomise(network: ControlNet) -> ControlNet:
    """Weights for the convolutions that begin at zero."""
    with torch.no_grad():
        for conv in (*network.zero_convs, network.zero_mid, network.hint.conv_out):
            conv.weight.normal_(std=0.1)
            conv.bias.normal_(std=0.1)
    return network


def inputs(config: ControlNetConfig, height: int, width: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width)
    scale = config.hint_downscale
    given = {
        "x": torch.randn(3, config.in_channels, height, width, generator=generator),
        "timesteps": torch.tensor([981.0, 3.25, 500.0]),
        "text": torch.randn(3, 7, config.cross_attention_dim, generator=generator),
        "hint": torch.rand(3, config.hint_channels, scale * height, scale * width, generator=generator),
    }
    if config.num_class_embeds is not None:
        given["class_labels"] = torch.tensor([2, 0, config.num_class_embeds - 1])
    return given


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_equals_diffusers(name, twins, peer, difference):
    config = CONFIGS[name]
    network, other = twins(config)
    randomise(network)
    from diffusers_names import CONTROLNET, rename

    other.load_state_dict(rename(network.state_dict(), CONTROLNET), strict=True)
    for height, width in [(8, 8), (13, 9)]:
        given = inputs(config, height, width)
        down, middle = network(**given)
        peers_down, peers_middle = other(
            given["x"],
            given["timesteps"],
            given["text"],
            controlnet_cond=given["hint"],
            class_labels=given.get("class_labels"),
            return_dict=False,
        )
        assert len(down) == len(peers_down)
        for residual, expected in zip([*down, middle], [*peers_down, peers_middle], strict=True):
            assert difference(residual, expected.expand_as(residual)) < 1e-5, (height, width)


@torch.no_grad()
def test_from_unet_changes_nothing_at_first_and_equals_diffusers_start():
    torch.manual_seed(0)
    unet = UNet(replace(TINY_UNET, time_cond_proj_dim=6))
    net = ControlNet.from_unet(unet)
    own, copied = net.state_dict(), unet.state_dict()
    copies = {name for name in own if not name.startswith(("hint.", "zero_"))}
    assert copies == {
        name for name in copied if not name.startswith(("up.", "norm_out", "conv_out", "time_embed.cond"))
    }
    assert all(torch.equal(own[name], copied[name]) for name in copies)
    assert all(own[name].data_ptr() != copied[name].data_ptr() for name in copies)
    down, middle = net(**inputs(net.config, 9, 8))
    assert all(not residual.any() for residual in (*down, middle))
    given = inputs(net.config, 9, 8)
    given.pop("hint")
    assert torch.equal(unet(**given), unet(**given, down_residuals=down, mid_residual=middle))
    assert ControlNet.from_unet(unet.to(torch.bfloat16)).conv_in.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", CONFIGS)
def test_config_reads_what_it_writes_and_what_diffusers_writes(name, peer):
    config = CONFIGS[name]
    assert ControlNetConfig.from_diffusers(config.to_diffusers()) == config
    written = dict(peer(config).config)
    assert ControlNetConfig.from_diffusers(written) == config


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"controlnet_conditioning_channel_order": "grb"}, "controlnet_conditioning_channel_order is 'grb'"),
        ({"mid_block_type": None}, "mid_block_type is None; a ControlNet has a middle"),
        ({"class_embed_type": "projection"}, "class_embed_type='projection' is not supported"),
        ({"conditioning_embedding_out_channels": [16, -3]}, r"hint_widths is \(16, -3\)"),
        ({"layers_per_block": [2, 2, 1, 2]}, "layers_per_block is .*; a ControlNet has one for all levels"),
        ({"global_pool_conditions": "yes"}, "global_pool is 'yes'; it is true or false"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "block type 'AttnDownBlock2D' is not one of"),
    ],
)
def test_config_refuses(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        ControlNetConfig.from_diffusers({**SD1.to_diffusers(), **values})


@torch.no_grad()
def test_inputs_that_do_not_fit():
    net = ControlNet(control(TINY_UNET))
    given = inputs(net.config, 8, 8)
    with pytest.raises(ValueError, match=r"a hint of shape \(3, 3, 64, 56\) given; these latents need \(3, 3, 64,"):
        net(**{**given, "hint": given["hint"][..., :56]})
    with pytest.raises(ValueError, match=r"text of shape \(3, 7, 25\) given; this network takes \[N, T, 24\]"):
        net(**{**given, "text": torch.zeros(3, 7, 25)})
