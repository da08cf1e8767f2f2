"""The U-Net against diffusers' UNet2DConditionModel: random weights, same input, same output."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from darkroom.models.config import UNetConfig
from darkroom.models.presets import INPAINTING_UNET, SD2_UNET, SD15_UNET, UPSCALER_UNET
from darkroom.models.unet import UNet, timestep_embedding

SMALL = {"block_out_channels": (32, 64, 96, 96), "cross_attention_dim": 40}
SD1 = replace(SD15_UNET, **SMALL)
TINY = UNetConfig(
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
    "sd2": replace(SD2_UNET, **SMALL, heads=(1, 2, 4, 4), upcast_attention=True),
    "inpainting": replace(INPAINTING_UNET, **SMALL),
    "upscaler": replace(UPSCALER_UNET, block_out_channels=(32, 64, 64, 96), cross_attention_dim=40),
    "lcm": replace(SD1, time_cond_proj_dim=20),
    "tiny": TINY,
    "no attention in the middle": replace(TINY, mid_block_attention=False),
    "no middle": replace(TINY, mid_block=False),
    "per level": replace(
        TINY,
        block_out_channels=(20, 30, 40),
        layers_per_block=(1, 3, 2),
        attention_levels=(False, True, True),
        only_cross_attention=(False, True, False),
        transformer_layers=(1, 2, 3),
        heads=(5, 3, 2),
        norm_num_groups=5,
        norm_eps=1e-3,
        out_channels=8,
        use_linear_projection=True,
    ),
    "sines first": replace(TINY, flip_sin_to_cos=False, freq_shift=1, norm_num_groups=1),
    "one level": UNetConfig(
        block_out_channels=(15,),
        layers_per_block=(1,),
        attention_levels=(True,),
        only_cross_attention=(False,),
        transformer_layers=(1,),
        heads=(3,),
        cross_attention_dim=24,
        norm_num_groups=5,
    ),
}


def inputs(config: UNetConfig, height: int, width: int, rows: int = 3) -> dict[str, torch.Tensor]:
    """Random inputs of three rows with different timesteps, one of them fractional."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    given = {
        "x": torch.randn(rows, config.in_channels, height, width, generator=generator),
        "timesteps": torch.tensor([981.0, 3.25, 500.0])[:rows],
        "text": torch.randn(rows, 7, config.cross_attention_dim, generator=generator),
    }
    if config.num_class_embeds is not None:
        given["class_labels"] = torch.tensor([2, 0, config.num_class_embeds - 1])[:rows]
    if config.time_cond_proj_dim is not None:
        given["time_cond"] = torch.randn(rows, config.time_cond_proj_dim, generator=generator)
    return given


def ask_peer(peer, given, residuals=None, mid_residual=None):
    return peer(
        given["x"],
        given["timesteps"],
        given["text"],
        class_labels=given.get("class_labels"),
        timestep_cond=given.get("time_cond"),
        down_block_additional_residuals=residuals,
        mid_block_additional_residual=mid_residual,
    ).sample


def skips_of(network, given):
    """The tensors a U-Net carries across, in the order they arise."""
    skips = []
    hooks = [network.conv_in.register_forward_hook(lambda _m, _i, out: skips.append(out))]
    hooks += [level.register_forward_hook(lambda _m, _i, out: skips.extend(out)) for level in network.down]
    network(**given)
    for hook in hooks:
        hook.remove()
    return skips


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_equals_diffusers(name, twins, difference):
    config = CONFIGS[name]
    network, peer = twins(config)
    sizes = [(16, 16), (13, 9), (15, 22), (8, 24)] if config.heads == (8,) * 4 else [(16, 8), (13, 9)]
    for height, width in sizes:
        given = inputs(config, height, width)
        answer = network(**given)
        assert answer.shape == (3, config.out_channels, height, width)
        assert difference(answer, ask_peer(peer, given)) < 1e-5, (height, width)


@pytest.mark.parametrize("name", ["sd1", "inpainting", "lcm"])
@torch.no_grad()
def test_equals_diffusers_at_one_latent_pixel(name, twins, difference):
    """In float64: the groups of a single value are all rounding, which GroupNorm divides by the root of its epsilon."""
    config = CONFIGS[name]
    network, peer = (twin.double() for twin in twins(config))
    given = {k: v.double() if v.is_floating_point() else v for k, v in inputs(config, 1, 3).items()}
    answer = network(**given)
    assert answer.shape == (3, config.out_channels, 1, 3)
    assert difference(answer, ask_peer(peer, given)) < 1e-7  # the embeddings of timesteps are float32 in both


@pytest.mark.parametrize("name", ["sd1", "upscaler", "no attention in the middle"])
@torch.no_grad()
def test_control_residuals(name, twins, difference):
    config = CONFIGS[name]
    network, peer = twins(config)
    given = inputs(config, 13, 10)
    skips = skips_of(network, given)
    torch.manual_seed(1)
    residuals = [torch.randn_like(skip) for skip in skips]
    middle = torch.randn_like(skips[-1])
    answer = network(**given, down_residuals=residuals, mid_residual=middle)
    assert difference(answer, ask_peer(peer, given, tuple(residuals), middle)) < 1e-5
    assert difference(answer, network(**given)) > 1e-2
    with pytest.raises(ValueError, match=f"{len(skips) - 1} down_residuals given; this U-Net has {len(skips)} skips"):
        network(**given, down_residuals=residuals[1:])
    with pytest.raises(ValueError, match=r"a residual of shape \(3, 1, 2, 2\) given where the U-Net has"):
        network(**given, mid_residual=torch.zeros(3, 1, 2, 2))


@torch.no_grad()
def test_rows_are_independent(twins, difference):
    network, _ = twins(CONFIGS["upscaler"])
    given = inputs(network.config, 9, 10)
    together = network(**given)
    for row in range(3):
        alone = network(**{key: value[row : row + 1] for key, value in given.items()})
        assert difference(together[row : row + 1], alone) < 1e-5


@torch.no_grad()
def test_one_timestep_for_all_rows(twins):
    network, _ = twins(TINY)
    given = inputs(TINY, 8, 8)
    each = network(given["x"], torch.full((3,), 7.5), given["text"])
    assert torch.equal(network(given["x"], torch.tensor(7.5), given["text"]), each)
    assert torch.equal(network(given["x"], torch.tensor([7.5], dtype=torch.float64), given["text"]), each)


def test_timestep_embedding_by_hand():
    embedded = timestep_embedding(torch.tensor([0.0, 2.5]), 4)
    assert embedded[0].tolist() == [1.0, 1.0, 0.0, 0.0]
    expected = [math.cos(2.5), math.cos(0.025), math.sin(2.5), math.sin(0.025)]
    assert embedded[1].tolist() == pytest.approx(expected, abs=1e-6)
    swapped = timestep_embedding(torch.tensor([2.5]), 5, cosines_first=False)
    assert swapped[0].tolist() == pytest.approx([*expected[2:], *expected[:2], 0.0], abs=1e-6)
    assert embedded.dtype == timestep_embedding(torch.tensor([3]), 4).dtype == torch.float32


@torch.no_grad()
def test_half_precision_keeps_its_dtype_and_the_timestep_precise(twins, difference):
    network, _ = twins(SD1)
    given = inputs(SD1, 8, 8)
    given["timesteps"] = torch.tensor([981.0, 982.0, 983.0])  # one and the same number in bfloat16
    exact = network(**given)
    half = UNet(SD1).eval()
    half.load_state_dict(network.state_dict())
    half.to(torch.bfloat16)
    answer = half(**given)  # float32 inputs are welcome
    assert answer.dtype == torch.bfloat16
    assert difference(answer.float(), exact) < 0.1
    time = half.embed_time(given["timesteps"], None, None)
    assert not torch.equal(time[0], time[1])


@torch.no_grad()
def test_channels_last_gives_the_same_answer(twins, difference):
    network, _ = twins(CONFIGS["per level"])
    given = inputs(network.config, 9, 10)
    expected = network(**given)
    given["x"] = given["x"].to(memory_format=torch.channels_last)
    assert difference(network.to(memory_format=torch.channels_last)(**given), expected) < 1e-5


@pytest.mark.parametrize("autocast", [False, True])
def test_every_parameter_learns(autocast):
    torch.manual_seed(0)
    config = replace(CONFIGS["per level"], num_class_embeds=3, time_cond_proj_dim=6)
    network = UNet(config)
    given = inputs(config, 9, 10)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        answer = network(**given)
    answer.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    idle = [name for name, p in network.named_parameters() if not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 9, 8, 8)}, r"latents of shape \(3, 9, 8, 8\) given; this network takes \[N, 4, H, W\]"),
        ({"x": torch.zeros(4, 8, 8)}, r"latents of shape \(4, 8, 8\)"),
        ({"text": torch.zeros(3, 7, 768)}, r"text of shape \(3, 7, 768\) given; this network takes \[N, T, 24\]"),
        ({"text": torch.zeros(1, 7, 24)}, "1 rows of text given for 3 rows of latents"),
        ({"timesteps": torch.zeros(2)}, r"timesteps of shape \(2,\) given for 3 rows"),
        ({"class_labels": torch.zeros(3, dtype=torch.long)}, "this network has no classes"),
        ({"time_cond": torch.zeros(3, 8)}, r"time_cond of shape \(3, 8\) given"),
    ],
)
def test_inputs_of_another_network_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        UNet(TINY)(**(inputs(TINY, 8, 8) | change))


def test_classes_are_asked_for():
    config = replace(TINY, num_class_embeds=10)
    given = inputs(config, 8, 8)
    with pytest.raises(ValueError, match=r"class_labels of shape \(2,\) given for 3 rows"):
        UNet(config)(**(given | {"class_labels": torch.zeros(2, dtype=torch.long)}))
    with pytest.raises(ValueError, match=r"class_labels \[0, 10, 1\] given; this network has classes 0\.\.9"):
        UNet(config)(**(given | {"class_labels": torch.tensor([0, 10, 1])}))
    del given["class_labels"]
    with pytest.raises(ValueError, match=r"needs them, \[N\] in 0\.\.9"):
        UNet(config)(**given)
