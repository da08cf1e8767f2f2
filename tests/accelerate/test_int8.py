"""Layers in 8 bits: near the layer they were made of, within what rounding explains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import darkroom
from darkroom.accelerate import int8
from darkroom.accelerate.int8 import Int8Conv2d, Int8Linear, _rounded, int8_problem, to_int8
from darkroom.adapters import Adapter, Scaled
from darkroom.adapters.adapter import Merged
from darkroom.adapters.updates import Update
from darkroom.errors import RequestError
from darkroom.models.config import UNetConfig
from darkroom.models.unet import UNet

pytestmark = pytest.mark.skipif(int8_problem(torch.device("cpu")) is not None, reason="a build of torch without oneDNN")

CONFIG = UNetConfig(
    sample_size=16,
    block_out_channels=(32, 64),
    layers_per_block=(1, 1),
    attention_levels=(True, True),
    only_cross_attention=(False, False),
    transformer_layers=(1, 1),
    heads=(2, 2),
    cross_attention_dim=24,
    norm_num_groups=8,
)


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG).eval().requires_grad_(False)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 16, 16, generator=g), torch.tensor([500.0, 20.0]), torch.randn(2, 5, 24, generator=g)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("of", [lambda x: x, torch.relu, lambda x: x - 7, lambda x: x + 7, lambda x: 0 * x])
@pytest.mark.parametrize("strides", ["contiguous", "channels-last", "neither"])
def test_activations_are_rounded_to_the_nearest_of_256(of: Callable[[Tensor], Tensor], strides: str) -> None:
    x = of(torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(2)))
    if strides == "channels-last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif strides == "neither":
        x = x.transpose(1, 2)
    rounded, scale, zero = _rounded(x)
    assert rounded.dtype == torch.uint8
    assert rounded.shape == x.shape
    assert 0 <= zero <= 255
    assert float((scale * (rounded.float() - zero) - x).abs().max()) <= 0.501 * scale
    assert scale == pytest.approx(max((max(float(x.max()), 0) - min(float(x.min()), 0)) / 254, 1e-12))


@pytest.mark.parametrize("layer", [nn.Linear(256, 16), nn.Conv2d(64, 16, 3), nn.Conv2d(64, 16, 1)])
@torch.no_grad()
def test_the_largest_products_add_up_to_the_whole_sum_on_every_processor(layer: nn.Linear | nn.Conv2d) -> None:
    """Where pairs of products are added in 16 bits, 2 * 255 * 127 would be cut off at 32,767."""
    layer.weight.data.fill_(1.0)
    layer.bias.data.zero_()  # type: ignore[union-attr]
    x = torch.ones(64, 256) if isinstance(layer, nn.Linear) else torch.ones(1, 64, 12, 12)
    layer.__class__ = Int8Linear if isinstance(layer, nn.Linear) else Int8Conv2d
    inputs = layer.weight[0].numel()
    torch.testing.assert_close(layer(x), torch.full_like(layer(x), inputs), rtol=1e-5, atol=0)


@pytest.mark.parametrize("largest", [64, 127])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(48, 80), (2, 64, 48)),
        (nn.Linear(48, 20, bias=False), (100, 48)),
        (nn.Conv2d(24, 40, 3, padding=1), (2, 24, 12, 10)),
        (nn.Conv2d(24, 24, 3, stride=2, padding=1), (2, 24, 13, 11)),
        (nn.Conv2d(24, 16, 1), (1, 24, 9, 9)),
    ],
)
def test_a_layer_answers_as_sums_of_what_was_rounded_say(
    layer: nn.Linear | nn.Conv2d,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    largest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if largest > int8.largest():
        pytest.skip("this processor adds products in 16 bits")
    monkeypatch.setattr(int8, "largest", lambda: largest)
    torch.manual_seed(3)
    layer.reset_parameters()  # when they were collected, numbers depended on what had been imported
    layer = layer.to(dtype).requires_grad_(False)
    x = (torch.randn(shape) + 0.5).to(dtype)
    weight = layer.weight.float()
    plain = layer(x).float()
    rounded, scale, zero = _rounded(x)
    scales = weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.ndim - 1)) / largest
    layer.weight.data = ((weight / scales).round() * scales).float()  # the same, written out in float32
    bias = None if layer.bias is None else layer.bias.float()
    seen = scale * (rounded.float() - zero)
    expected = (
        torch.nn.functional.linear(seen, layer.weight, bias)
        if isinstance(layer, nn.Linear)
        else torch.nn.functional.conv2d(seen, layer.weight, bias, layer.stride, layer.padding)
    )
    layer.weight.data = weight.to(dtype)
    layer.__class__ = Int8Linear if isinstance(layer, nn.Linear) else Int8Conv2d
    with torch.no_grad():
        y = layer(x)
    assert y.dtype == dtype
    assert y.shape == plain.shape
    assert apart(y.float(), expected) < (1e-5 if dtype == torch.float32 else 4e-3)
    assert 1e-4 < apart(y.float(), plain) < 0.03
    layer.to(torch.float32).__class__ = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d


@torch.no_grad()
def test_a_unet_in_int8_stays_near_and_keeps_its_weights() -> None:
    unet, x = network(), inputs()
    plain, names = unet(*x), list(unet.state_dict())
    made = to_int8(unet)
    assert made == sum(type(m) in (Int8Linear, Int8Conv2d) for m in unet.modules()) > 40
    assert type(unet.conv_in) is nn.Conv2d
    assert list(unet.state_dict()) == names
    assert 1e-4 < apart(unet(*x), plain) < 0.05
    assert torch.equal(copy.deepcopy(unet)(*x), unet(*x))
    assert to_int8(unet) == 0


@torch.no_grad()
def test_layers_that_have_answered_already_are_rounded_as_well() -> None:
    used = network()
    used(*inputs())  # packs them
    assert to_int8(used) == to_int8(network()) > 20


@torch.no_grad()
def test_a_lora_acts_attached_and_merged_and_leaves_without_a_trace() -> None:
    from darkroom.adapters import attached

    plain, unet, x = network(), network(), inputs()
    to_int8(unet)
    before = unet(*x)
    g = torch.Generator().manual_seed(0)
    shapes = {"mid.attention.blocks.0.attn1.q": [(4, 64), (64, 4)]}
    shapes |= {"up.1.resnets.0.conv1": [(4, 96, 3, 3), (32, 4, 1, 1)]}
    factors = {path: [torch.randn(shape, generator=g) for shape in pair] for path, pair in shapes.items()}
    updates = {path: Update({"down": down, "up": up}) for path, (down, up) in factors.items()}
    scaled = Scaled(Adapter({"unet": updates}), 0.1)
    with attached(plain, "unet", [[scaled]]):
        expected = plain(*x)
    with attached(unet, "unet", [[scaled]]):
        got = unet(*x)
    assert apart(got, expected) < 0.1
    assert apart(got, before) > 0.3
    with Merged({"unet": unet}, [scaled]):
        assert apart(unet(*x), expected) < 0.1  # the changed weights are rounded anew
    assert torch.equal(unet(*x), before)


def test_gradients_flow_as_in_the_plain_network() -> None:
    plain, unet, x = network(), network(), inputs()
    to_int8(unet)
    for net in (plain, unet):
        net.mid.requires_grad_(True)  # type: ignore[union-attr]
        net(*x).square().sum().backward()
    a, b = (net.get_parameter("mid.resnet1.conv1.weight").grad for net in (plain, unet))
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a, b)


def test_a_loaded_model_draws_nearly_the_same_picture() -> None:
    def draw(**wishes: Any) -> Tensor:
        pipe = darkroom.load(dtype="float32", **wishes)
        answer = pipe.generate("a large fox on a yellow background", steps=8, seed=1, output="latent")
        assert isinstance(answer.images, Tensor)
        return answer.images

    plain, rounded = draw(), draw(quantize="int8")
    assert 1e-6 < float((plain - rounded).square().mean()) < 0.05 * float(plain.var())


def test_what_cant_be_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="quantize is 'int4'; it must be one of"):
        darkroom.load(tmp_path / "none", quantize="int4")
    with pytest.raises(RequestError, match=r"takes a CPU, and no torch\.compile, and compile is asked for"):
        darkroom.load(tmp_path / "none", quantize="int8", compile=True)
