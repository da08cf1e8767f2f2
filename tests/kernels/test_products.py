"""Linear layers that learn by oneDNN's products: the answers and gradients of ordinary ones."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from darkroom.kernels.packed import PackedLinear, available, pack
from darkroom.kernels.products import FEW, OneDNNLinear, linear_layers, onednn_products

pytestmark = pytest.mark.skipif(not available(torch.float32), reason="no oneDNN here")


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The answer, and the gradients of its weights and of x, for a fixed pull."""
    network.zero_grad()
    x = x.clone().requires_grad_()
    y = network(x)
    pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    y.backward(pull.to(y.dtype))
    given = [p.grad for p in network.parameters() if p.grad is not None]
    assert x.grad is not None
    return [y.detach(), x.grad, *given]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(FEW, 48), (3, 40, 48), (2, 3, 20, 48), (FEW - 1, 48), (48,)])
@pytest.mark.parametrize("outputs", [16, 200])
def test_equals_the_ordinary_layer(shape: tuple[int, ...], outputs: int, bias: bool) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(48, outputs, bias=bias), nn.SiLU(), nn.Linear(outputs, 32))
    x = torch.randn(shape)
    expected = gradients(deepcopy(network).double(), x.double())
    with onednn_products(linear_layers([network])):
        assert type(network[0]) is OneDNNLinear
        answers = gradients(network, x)
    assert type(network[0]) is nn.Linear
    for answer, exact in zip(answers, expected, strict=True):
        assert answer.dtype == torch.float32
        assert (answer.double() - exact).norm() < 2e-6 * exact.norm()


def test_what_needs_no_gradient_gets_none() -> None:
    layer = nn.Linear(48, 32)
    layer.weight.requires_grad_(False)
    with onednn_products(linear_layers([layer])):
        layer(torch.randn(FEW, 48)).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((32,), float(FEW)))


def test_other_numbers_and_a_slice_go_the_ordinary_way_or_come_out_right() -> None:
    layer = nn.Linear(48, 32)
    x = torch.randn(FEW, 2, 96)[:, 1, ::2]
    expected = layer(x)
    double = deepcopy(layer).double()
    with onednn_products([layer, double]):
        assert torch.allclose(layer(x), expected, atol=1e-5)
        assert double(x.double()).dtype == torch.float64
        with torch.no_grad():
            assert torch.allclose(layer(x), expected, atol=1e-5)


def test_layers_are_ordinary_again_whatever_happens_and_other_classes_are_left_alone() -> None:
    class Own(nn.Linear):
        pass

    network = nn.Sequential(nn.Linear(16, 16), Own(16, 16))
    layers = linear_layers([network])
    assert layers == [network[0]]
    with pytest.raises(ZeroDivisionError), onednn_products(layers):
        _ = 1 / 0
    assert type(network[0]) is nn.Linear


def test_hooks_are_heard() -> None:
    layer = nn.Linear(48, 32)
    heard: list[str] = []
    layer.register_forward_hook(lambda *_: heard.append("hook"))
    with onednn_products(linear_layers([layer])):
        layer(torch.randn(FEW, 48))
    assert heard == ["hook"]


def test_a_frozen_network_may_draw_between_steps_and_within_one() -> None:
    """Drawing packs its layers; a step must find their weights, and drawing must find the layers again."""
    network = nn.Sequential(nn.Linear(48, 32), nn.SiLU(), nn.Linear(32, 32)).requires_grad_(False)
    x = torch.randn(FEW, 48)
    expected = gradients(network, x)
    layers = linear_layers([network])
    for _ in range(2):
        with onednn_products(layers):
            answers = gradients(network, x)
            with torch.no_grad():
                pack(network)
                assert torch.allclose(network(x), expected[0], atol=1e-6)
        for answer, exact in zip(answers, expected, strict=True):
            assert torch.allclose(answer, exact, atol=1e-6)
        with torch.no_grad():
            assert pack(network)
        assert type(network[0]) is PackedLinear
        assert linear_layers([network]) == layers
