"""Linear layers that learn in float32 on a processor, by oneDNN's products.

torch gives float32's matrix products to a BLAS, which on some processors has half of oneDNN's speed or less. Three
products make a step of a layer, whose answers differ by rounding only:

    y = x w' + b        dx = g w        dw = g' x

Shapes: ... positions, M of them in all, I O a layer's inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .packed import PackedLinear, available, multiply, unpack

FEW = 64  # positions below which the calls cost more than the products


class _Product(torch.autograd.Function):
    """x [..., I], w [O, I], b [O] or None -> [..., O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        # oneDNN wants rows one behind the other; gradients may come as views.
        g = g.contiguous()
        rows = g.flatten(0, -2)  # [M, O]
        dw = None
        if for_weight:
            seen = x.flatten(0, -2).T  # [I, M]
            # The wider side is cut into blocks faster.
            dw = multiply(seen, rows.T).T if len(seen) < rows.shape[1] else multiply(rows.T, seen)
        return multiply(g, weight.T) if for_x else None, dw, rows.sum(0) if for_bias else None


class OneDNNLinear(nn.Linear):
    """`nn.Linear` by these products."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[:-1].numel() < FEW or x.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return super().forward(x)
        y: Tensor = _Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y


def linear_layers(networks: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers of some networks that `onednn_products` is for: none where oneDNN can't be had."""
    if not available(torch.float32):
        return []
    return [m for network in networks for m in network.modules() if type(m) in (nn.Linear, PackedLinear)]


@contextmanager
def onednn_products(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While this lasts, these layers multiply by oneDNN; on the CPU, without autocast and torch.compile."""
    for layer in layers:
        unpack(layer)  # whoever drew with the network meanwhile has packed what is frozen in it
        layer.__class__ = OneDNNLinear
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear
