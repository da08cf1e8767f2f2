"""Optimizers that need little memory: 2 bytes a weight, or next to none, where AdamW needs 8."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .optim import Guarded

_CPU = torch.device("cpu")
BLOCK = 256  # values that share a scale
SMALL = 4096  # a parameter of fewer values keeps its moments in float32


class AdamW8bit(Guarded):
    """AdamW whose moments are kept in 8 bits each (Dettmers et al. 2021, arXiv 2110.02861).

    Each block of 256 values has a scale, its largest magnitude, and codes of the "dynamic tree" (sec. 1.3): numbers
    between 1e-7 and 1 to about two digits where they are large. The update itself is computed in float32.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not supported and not called."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.numel() < SMALL:
                    self.adam(p, p.grad, self.state[p], group)
                elif p.grad is not None:
                    self._step(p, p.grad, self.state[p], group)

    def _step(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        signed, unsigned = table(True, p.device), table(False, p.device)
        if "step" not in state:
            blocks = -(-p.numel() // BLOCK)
            state["step"] = torch.zeros((), device=p.device)
            for name, values in (("first", signed), ("second", unsigned)):
                nothing = int((values == 0).nonzero())
                state[name] = torch.full((blocks, BLOCK), nothing, dtype=torch.uint8, device=p.device)
                state[f"{name}_scale"] = torch.zeros(blocks, 1, device=p.device)
        first = unpack(state["first"], state["first_scale"], signed, p)
        second = unpack(state["second"], state["second_scale"], unsigned, p)
        first, second = self.adam_update(p, g, first, second, self.count(state, p), group)
        for name, moment, values in (("first", first, signed), ("second", second, unsigned)):
            codes, scale = pack(moment, values)
            self.put(state[name], codes)
            self.put(state[f"{name}_scale"], scale)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state_dict)
        for state in self.state.values():  # torch has made the codes numbers of the parameter's type
            if "first_scale" in state:
                state["first"], state["second"] = state["first"].to(torch.uint8), state["second"].to(torch.uint8)


@cache
def table(signed: bool, device: torch.device = _CPU) -> Tensor:
    """The 256 numbers of 8 bits that follow a dynamic tree, rising, 0 and 1 among them (with a sign or without).

    The zeros before the first one of the code are a decimal exponent; the bits after it divide 0.1 to 1 evenly.
    """
    numbers = [0.0, 1.0]
    bits = 6 if signed else 7
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (bits - exponent) + 1, dtype=torch.float64)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0**-exponent
        numbers += [sign * float(m) for m in middles for sign in ((1, -1) if signed else (1,))]
    return torch.tensor(sorted(numbers), dtype=torch.float32, device=device)


def pack(x: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of any shape as codes [blocks, 256] uint8 of the nearest `values`, and the blocks' scales [blocks, 1]."""
    flat = F.pad(x.flatten(), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    scale = flat.abs().amax(dim=1, keepdim=True)
    # A block of zeros has a scale of zero. A second moment that is not zero stays so, or its update would be huge.
    codes = torch.bucketize(flat / scale.clamp(min=torch.finfo(flat.dtype).tiny), (values[1:] + values[:-1]) / 2)
    if values[0] == 0:
        codes = torch.where((flat > 0) & (codes == 0), 1, codes)
    return codes.to(torch.uint8), scale


def unpack(codes: Tensor, scale: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """The inverse of `pack`, up to rounding, in the shape of `like`."""
    return (values[codes.int()] * scale).flatten()[: like.numel()].view(like.shape)


class Adafactor(Guarded):
    """Adam without a first moment, whose second one is the product of a row's and a column's mean for every matrix.

    Shazeer & Stern 2018, arXiv 1804.04235, alg. 4 and 5, with learning rates as AdamW's (no relative step). A
    convolution counts as a matrix [out, in * kh * kw].
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not supported and not called."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, self.state[p], group)

    def _step(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        matrix = p.ndim >= 2
        g = g.flatten(1) if matrix else g
        if "step" not in state:
            state["step"] = torch.zeros((), device=p.device)
            if matrix:
                state["row"], state["column"] = g.new_zeros(len(g), 1), g.new_zeros(1, g.shape[1])
            else:
                state["second"] = torch.zeros_like(g)
        weight = (self.count(state, p) ** -0.8).to(g.dtype)
        square = g.square() + 1e-30
        if matrix:
            row = state["row"].lerp(square.mean(dim=1, keepdim=True), weight)
            column = state["column"].lerp(square.mean(dim=0, keepdim=True), weight)
            update = g * (row / row.mean()).rsqrt() * column.rsqrt()
            self.put(state["row"], row)
            self.put(state["column"], column)
        else:
            second = state["second"].lerp(square, weight)
            update = g * second.rsqrt()
            self.put(state["second"], second)
        size = torch.linalg.vector_norm(update) / math.sqrt(update.numel())
        update = update / size.clamp(min=1.0)  # no update is larger than one of equal signs
        self.put(p, p * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * update.view_as(p))
