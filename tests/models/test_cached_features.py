"""CachedFeatures features of a U-Net, reused: what the outermost blocks make of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from darkroom.models.config import UNetConfig
from darkroom.models.unet import CachedFeatures, UNet

BASE = UNetConfig(
    sample_size=8,
    block_out_channels=(16, 32, 32),
    layers_per_block=(2, 1, 1),
    attention_levels=(True, True, False),
    only_cross_attention=(False, False, False),
    transformer_layers=(1, 1, 1),
    heads=(2, 2, 2),
    cross_attention_dim=24,
    norm_num_groups=8,
)
SHAPES = {
    "three levels": BASE,
    "one block a level, no attention at the finest": replace(
        BASE, layers_per_block=(1, 1, 1), attention_levels=(False, True, True)
    ),
    "a single level": UNetConfig(
        sample_size=8,
        block_out_channels=(16,),
        layers_per_block=(2,),
        attention_levels=(True,),
        only_cross_attention=(False,),
        transformer_layers=(1,),
        heads=(2,),
        cross_attention_dim=24,
        norm_num_groups=8,
    ),
}


def network(config: UNetConfig) -> UNet:
    torch.manual_seed(0)
    return UNet(config).eval().requires_grad_(False)


def inputs(seed: int, size: tuple[int, int] = (8, 8)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(9))
    return torch.randn(2, 4, *size, generator=g), torch.tensor([500.0, 20.0]), text


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_features_of_the_same_input_give_the_same_answer(shape: str, size: tuple[int, int]) -> None:
    unet = network(SHAPES[shape])
    x = inputs(0, size)
    plain = unet(*x)
    cached = CachedFeatures()
    assert torch.equal(unet(*x, cached=cached), plain)  # recording changes nothing
    assert cached.features is not None
    kept = cached.features.clone()
    assert torch.equal(unet(*x, cached=cached), plain)  # and what is reused is right where nothing moved
    assert torch.equal(cached.features, kept)


def test_features_of_another_input_are_used_and_the_deep_levels_are_not_run() -> None:
    unet = network(BASE)
    cached = CachedFeatures()
    unet(*inputs(0), cached=cached)
    ran: list[str] = []
    for name in ("down.0.resnets.0", "down.0.resnets.1", "down.0.downsample", "down.1", "mid", "up.0", "up.1",
                 "up.2.resnets.0", "up.2.resnets.1", "up.2.resnets.2"):  # fmt: skip
        unet.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    mixed = unet(*inputs(1), cached=cached)
    assert ran == ["down.0.resnets.0", "up.2.resnets.1", "up.2.resnets.2"]
    assert not torch.allclose(mixed, unet(*inputs(0)), atol=1e-3)  # the new input counts,
    assert not torch.allclose(mixed, unet(*inputs(1)), atol=1e-3)  # and so do the old features
