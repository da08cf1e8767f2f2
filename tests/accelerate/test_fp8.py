"""8-bit floating point, with torch's product on a CPU: what is rounded, and how far the answer is from exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import darkroom
from darkroom.accelerate.fp8 import Float8Linear, fp8_problem, rounded_rows, to_fp8
from darkroom.adapters import Merged, Scaled, attached, init_lora
from darkroom.errors import RequestError
from darkroom.models.config import UNetConfig
from darkroom.models.unet import UNet

CONFIG = UNetConfig(
    sample_size=8,
    block_out_channels=(16, 32),
    layers_per_block=(1, 1),
    attention_levels=(True, True),
    only_cross_attention=(False, False),
    transformer_layers=(1, 1),
    heads=(2, 2),
    cross_attention_dim=32,
    norm_num_groups=8,
)


@pytest.fixture
def twins() -> tuple[UNet, UNet]:
    """A network in bfloat16, and the same in 8 bits."""
    torch.manual_seed(0)
    plain, other = (UNet(CONFIG).to(torch.bfloat16).eval().requires_grad_(False) for _ in range(2))
    other.load_state_dict(plain.state_dict())
    to_fp8(other)
    return plain, other


def question() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=g), torch.tensor([20.0, 700.0]), torch.randn(2, 77, 32, generator=g)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def test_rows_have_their_own_scale() -> None:
    x = torch.randn(5, 64) * torch.tensor([1e-6, 1e-2, 1.0, 300.0, 0.0])[:, None]
    rounded, scale = rounded_rows(x)
    assert rounded.dtype == torch.float8_e4m3fn
    assert torch.equal(rounded.float().abs().amax(1), torch.tensor([448.0, 448, 448, 448, 0]))
    for number in range(4):
        assert (
            apart(rounded[number].float() * scale[number], x[number]) < 0.04
        )  # three bits after the first: 2^-4 at most
    assert not rounded[4].float().any()


@torch.no_grad()
def test_which_layers_are_rounded_and_how_far_the_answer_is(twins: tuple[UNet, UNet]) -> None:
    plain, other = twins
    names = {name for name, layer in other.named_modules() if isinstance(layer, Float8Linear)}
    blocks = [name for name, _ in other.named_modules() if name.endswith("blocks.0")]
    inside = ("attn1.q", "attn1.k", "attn1.v", "attn1.out", "attn2.q", "attn2.out", "ff.proj", "ff.out")
    assert names == {f"{block}.{name}" for block in blocks for name in inside}
    assert other.state_dict().keys() == plain.state_dict().keys()
    assert 1e-4 < apart(other(*question()), plain(*question())) < 0.05
    name = min(names)
    layer, before = other.get_submodule(name), plain.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    x = torch.randn(3, 5, layer.in_features, dtype=torch.bfloat16)
    assert 1e-3 < apart(layer(x), before(x)) < 0.06
    with torch.enable_grad():
        assert torch.equal(layer(x), before(x))


@torch.no_grad()
def test_loras_attached_and_merged(twins: tuple[UNet, UNet]) -> None:
    plain, other = twins
    lora = init_lora(plain, 3, 2.0, "attention")
    for up in lora.up:
        torch.nn.init.normal_(up, std=0.5)
    use, without = Scaled(lora.adapter("unet")), other(*question())
    with attached(plain, "unet", [[use]]):
        expected = plain(*question())
    with attached(other, "unet", [[use]]):
        assert apart(other(*question()), expected) < 0.06
    with Merged({"unet": other}, [use]):
        assert apart(other(*question()), expected) < 0.06
        assert apart(other(*question()), without) > 0.1
    assert torch.equal(other(*question()), without)


def test_a_cpu_is_told_why_not(tiny_folder: Path) -> None:
    assert "cpu" in str(fp8_problem(torch.device("cpu")))
    with pytest.raises(RequestError, match=r"'fp8'.*'cpu'"):
        darkroom.load(tiny_folder, device="cpu", quantize="fp8")


@pytest.mark.skipif(
    not torch.cuda.is_available() or fp8_problem(torch.device("cuda")) is not None, reason="needs a GPU with fp8"
)
@torch.no_grad()
def test_cuda(twins: tuple[UNet, UNet]) -> None:
    plain, other = (network.to("cuda") for network in twins)
    inputs = tuple(t.to("cuda") for t in question())
    assert 1e-4 < apart(other(*inputs), plain(*inputs)) < 0.05
