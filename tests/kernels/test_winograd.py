"""Convolutions with fewer products give the answers of the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkroom.kernels import winograd
from darkroom.kernels.packed import PackedConv2d, available, pack, unpadded

needs_packing = pytest.mark.skipif(not available(torch.float32), reason="this build of torch has no oneDNN")


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("size", [(2, 2), (5, 4), (7, 9), (24, 31), (60, 44)])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution(size: tuple[int, int], padding: int, bias: bool) -> None:
    """In float64, with plain products: nothing but the mathematics. Pictures of odd sizes, and in many pieces."""
    if padding == 0 and min(size) < 3:
        return
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, dtype=torch.float64)
    weight, b = torch.randn(7, 5, 3, 3, dtype=torch.float64), torch.randn(7, dtype=torch.float64) if bias else None
    products = [[nn.Linear(5, 7, bias=False) for _ in range(4)] for _ in range(4)]
    for column, matrices in zip(products, winograd.transformed(weight), strict=True):
        for product, matrix in zip(column, matrices, strict=True):
            product.weight = nn.Parameter(matrix)
    with torch.no_grad():
        ours = winograd.convolve(x.contiguous(memory_format=torch.channels_last), products, 7, b, padding)
    assert apart(ours, F.conv2d(x, weight, b, padding=padding)) < 1e-14


@needs_packing
@pytest.mark.parametrize("size", [(16, 16), (17, 15)])
def test_wide_layers_in_float32_are_done_so(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(272, 256, 3, padding=1)).eval().requires_grad_(False)
    plain, x = copy.deepcopy(layer).double(), torch.randn(2, 272, *size)
    with torch.no_grad():
        assert pack(layer)
        y = layer(x)
        assert isinstance(layer[0], PackedConv2d)
        assert layer[0]._form.squares is not None
        assert y.shape == (2, 256, *size)
        assert apart(y, plain(x.double())) < 6e-7  # the plain one: 7e-7
        assert apart(unpadded(layer[0], x), plain(x.double())[:, :, 1:-1, 1:-1]) < 6e-7
        layer[0].weight.mul_(2)  # an ordinary layer again: nothing of before may be left
        pack(layer)
        bias = plain[0].bias[:, None, None]
        assert apart(layer(x) - bias, 2 * (plain(x.double()) - bias)) < 6e-7


@needs_packing
def test_small_ones_are_not() -> None:
    layer = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1)).eval().requires_grad_(False)
    with torch.no_grad():
        pack(layer)
        layer(torch.randn(1, 256, 8, 8))
        assert layer[0]._form.squares is None  # type: ignore[union-attr]


@needs_packing
def test_the_same_bits_with_any_threads() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(256, 320, 3, padding=1)).eval().requires_grad_(False)
    threads, answers = torch.get_num_threads(), []
    x = torch.randn(2, 256, 24, 20)
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            with torch.no_grad():
                pack(layer)
                answers.append(layer(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
