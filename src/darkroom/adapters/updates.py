"""What an adapter changes in one layer: the factors of a weight's difference, and how they act.

Shapes: O and I the layer's output and input width, k its kernel (nothing for a linear layer), r the rank, N rows.

    plain       dW = up @ down                                  LoRA: Hu et al. 2021, arXiv 2106.09685, eq. 3
    hadamard    dW = (w1_a @ w1_b) * (w2_a @ w2_b)              LoHa: Hyeon-Woo et al. 2021, arXiv 2108.06098, eq. 2
    kronecker   dW = w1 (x) w2, each perhaps a product          LoKr: Edalati et al. 2022, arXiv 2212.10650, eq. 5
    full        dW itself
    ia3         dW = W * w, by outputs or by inputs             IA3: Liu et al. 2022, arXiv 2205.05638, sec. 3.3
    glora       dW = b1 @ b2 + W @ a1 @ a2                      GLoRA: Chavan et al. 2023, arXiv 2306.07967, eq. 8
    oft         dW = s R W - W, R block-diagonal rotations      OFT: Qiu et al. 2023, arXiv 2306.07280, eq. 5

The last three as LyCORIS defines their files. A rotation is Cayley's (I + Q) (I - Q)^-1 of Q = B - B^T, transposed.

A convolution's factors may have a core t [r, r, k, k] between them (CP decomposition; arXiv 2108.06098, proposition 3).
All of them are multiplied by alpha / r, here `factor`. With a magnitude m, the weight becomes m (W + dW) / ||W + dW||
(DoRA: Liu et al. 2024, arXiv 2402.09353, eq. 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.exact import exact, normalised
from ..kernels.packed import product, weight_of

LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)  # what can be changed


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One layer's change. `factors` by name, of one kind: down, up(, mid) | hada_* | lokr_* | diff |
    ia3 ([O, 1, ...] or [1, I, ...]) | a1, a2, b1, b2(, bm) | oft_blocks(, rescale)(, constraint) | nothing."""

    factors: Mapping[str, Tensor] = field(default_factory=dict)
    factor: float = 1.0  # alpha / r
    magnitude: Tensor | None = None  # DoRA's m: [O, 1, ...], or [1, I, ...] where columns have the norm
    bias: Tensor | None = None  # [O], added to the layer's own

    @property
    def kind(self) -> str:
        """ "lora", "loha", "lokr", "full", "ia3", "glora", "oft", or "bias" where there are no factors."""
        names = self.factors.keys()
        if "down" in names:
            return "lora"
        if "hada_w1_a" in names:
            return "loha"
        if names & {"lokr_w1", "lokr_w1_a"}:
            return "lokr"
        for name, kind in (("diff", "full"), ("ia3", "ia3"), ("a1", "glora"), ("oft_blocks", "oft")):
            if name in names:
                return kind
        return "bias"

    @property
    def rank(self) -> int | None:
        """r; None where nothing is decomposed."""
        for name in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "a2"):
            if name in self.factors:
                return self.factors[name].shape[0]
        return None

    def to(self, device: torch.device | str) -> Update:
        """The same on a device, in the types the numbers have."""
        return replace(
            self,
            factors={name: tensor.to(device) for name, tensor in self.factors.items()},
            magnitude=None if self.magnitude is None else self.magnitude.to(device),
            bias=None if self.bias is None else self.bias.to(device),
        )

    def difference(self, weight: Tensor, scale: float = 1.0) -> Tensor | None:
        """What is added to a weight [O, I, *k] at a scale, in float32; None where the weight stays as it is."""
        if not self.factors and self.magnitude is None:
            return None
        weight = weight.float()
        delta = (
            scale * self.factor * self.product(weight).reshape(weight.shape)
            if self.factors
            else torch.zeros_like(weight)
        )
        if self.magnitude is None:
            return delta
        changed = weight + delta
        difference: Tensor = changed * self._ratio(changed) - weight
        return difference

    def _ratio(self, changed: Tensor) -> Tensor:
        """m / ||W + dW||, float32. No gradient goes through the norm (arXiv 2402.09353, sec. 4.3)."""
        assert self.magnitude is not None
        axes = tuple(axis for axis in range(changed.ndim) if self.magnitude.shape[axis] == 1)
        norm = torch.linalg.vector_norm(changed.detach(), dim=axes, keepdim=True)
        ratio: Tensor = self.magnitude.float() / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return ratio

    def __call__(self, layer: nn.Module, x: Tensor, scale: float = 1.0, answer: Tensor | None = None) -> Tensor:
        """What is added to a layer's answer to x [N, ...] at a scale, in x's type.

        Plain LoRA and DoRA go through the factors. The other kinds make the whole difference anew in each call, which
        costs about r positions more in the call, and no memory between calls. `answer` is the layer's own to x, where
        that is known: DoRA is quicker with it.
        """
        # A packed layer is slow to say its weight: don't ask in vain.
        weight: Any = None if self.kind == "lora" and self.magnitude is None else weight_of(layer)
        by_output = self.magnitude is None or self.magnitude.shape[0] == weight.shape[0]
        if self.kind == "lora" and by_output:
            y = (scale * self.factor) * self._through_factors(layer, x)
            if self.magnitude is not None:
                y = self._with_magnitude(layer, x, y, scale, answer)
            if self.bias is not None:
                y = y + _on_channels(scale * self.bias.to(x.dtype), layer)
            return y
        delta = self.difference(weight, scale)
        return run(
            layer,
            x,
            torch.zeros_like(weight) if delta is None else delta.to(x.dtype),
            None if self.bias is None else scale * self.bias.to(x.dtype),
        )

    def _with_magnitude(self, layer: nn.Module, x: Tensor, y: Tensor, scale: float, answer: Tensor | None) -> Tensor:
        """m / ||W + dW|| (W x + dW x) - W x, for y = dW x."""
        weight = weight_of(layer)
        bias: Tensor | None = layer.bias  # type: ignore[assignment]
        with torch.no_grad():
            changed = weight.float() + scale * self.factor * self.product(weight).reshape(weight.shape)
        ratio = _on_channels(self._ratio(changed).flatten().to(y.dtype), layer)
        if answer is None:
            plain = run(layer, x, weight.to(x.dtype))
        else:
            plain = answer if bias is None else answer - _on_channels(bias.to(answer.dtype), layer)
        return (ratio - 1) * plain + ratio * y

    def _through_factors(self, layer: nn.Module, x: Tensor) -> Tensor:
        down, up = self.factors["down"].to(x.dtype), self.factors["up"].to(x.dtype)
        if isinstance(layer, nn.Linear):
            return product(product(x, down), up)
        mid = self.factors.get("mid")
        if mid is None:
            return pointwise(run(layer, x, down), up)
        return pointwise(run(layer, pointwise(x, down), mid.to(x.dtype)), up)

    def product(self, weight: Tensor) -> Tensor:
        """dW of a weight [O, I, *k], float32, before any scale; perhaps with the last dimensions still joined."""
        f = {name: tensor.float() for name, tensor in self.factors.items()}
        if self.kind == "lora":
            if "mid" in f:
                return torch.einsum("or, rskl, si -> oikl", f["up"][:, :, 0, 0], f["mid"], f["down"][:, :, 0, 0])
            return f["up"].flatten(1) @ f["down"].flatten(1)
        if self.kind == "loha":
            first = _decomposed(f["hada_w1_a"], f["hada_w1_b"], f.get("hada_t1"))
            return first * _decomposed(f["hada_w2_a"], f["hada_w2_b"], f.get("hada_t2"))
        if self.kind == "lokr":
            w1 = f["lokr_w1"] if "lokr_w1" in f else f["lokr_w1_a"] @ f["lokr_w1_b"]
            whole = f.get("lokr_w2")
            w2 = _decomposed(f["lokr_w2_a"], f["lokr_w2_b"], f.get("lokr_t2")) if whole is None else whole
            return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - w1.ndim)), w2)
        if self.kind == "ia3":
            return weight.float() * f["ia3"]
        if self.kind == "glora":
            a1, a2, b1 = f["a1"].flatten(1), f["a2"].flatten(1), f["b1"].flatten(1)
            core = f.get("bm")
            b = b1 @ f["b2"].flatten(1) if core is None else _decomposed(b1.T, f["b2"].flatten(1), core)
            return b.reshape(weight.shape) + torch.einsum("oi..., ir, rj -> oj...", weight.float(), a1, a2)
        return _rotated(weight.float(), f) - weight.float() if self.kind == "oft" else f["diff"]


def _decomposed(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """a [O, r] @ b [r, I k k], or with a core [r, r, k, k]: a [r, O], b [r, I] -> [O, I, k, k]."""
    return a @ b if core is None else torch.einsum("rskl, si, ro -> oikl", core, b, a)


def _rotated(weight: Tensor, f: Mapping[str, Tensor]) -> Tensor:
    """s R W: of oft_blocks [k, n, n], k n = O; `constraint` times O is the largest norm that Q may have, 0 none."""
    blocks = f["oft_blocks"]
    q = blocks - blocks.transpose(1, 2)
    if "constraint" in f and blocks.device.type != "meta":
        norm, most = torch.linalg.vector_norm(q) + 1e-8, f["constraint"].item() * weight.shape[0]
        q = q * (most / norm) if 0 < most < norm else q
    one = torch.eye(q.shape[1], device=q.device)
    rotation = (one + q) @ torch.linalg.inv(one - q)
    turned = torch.einsum("knm, kn... -> km...", rotation, weight.reshape(*blocks.shape[:2], *weight.shape[1:]))
    turned = turned.reshape(weight.shape)
    return f["rescale"].reshape(-1, *[1] * (weight.ndim - 1)) * turned if "rescale" in f else turned


def _on_channels(values: Tensor, layer: nn.Module) -> Tensor:
    """One value an output [O], against a layer's answer."""
    return values if isinstance(layer, nn.Linear) else values[:, None, None]


def run(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a layer does, with another weight and bias."""
    if isinstance(layer, nn.Conv2d):
        if (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1):
            return pointwise(x, weight, bias)
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return normalised(x, layer.num_groups, weight, bias, layer.eps)
    return product(x, weight, bias)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution, by a linear layer where its bits are to be constant."""
    if not exact():
        return F.conv2d(x, weight, bias)
    return product(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
