"""Optimizers and the learning rate of a run: Muon, AdamW, and two that need little memory (2 bytes a weight, or next to
none, where AdamW needs 8); which parameters each updates, and how.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .parallel import sum_over_ranks, this_rank
from .recipe import OPTIMIZERS, LoopConfig


def rate(config: LoopConfig, step: int) -> float:
    """The learning rate's factor at `step`, between 0 and 1: a linear warm-up, then what the schedule says.

    A "stable" run (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395, sec. 4) falls linearly to 0 over its last
    `cooldown`, a fraction: until that begins, a longer run is the same run. "linear", "cosine" and "restarts"
    (Loshchilov & Hutter 2016, arXiv 1608.03983, with cycles of one length) fall to 0 from the end of the warm-up on.
    """
    c = config
    rising = (step + 1) / max(c.warmup, 1)
    done = min(max(0.0, (step - c.warmup) / max(c.steps - c.warmup, 1)), 1.0)  # of the way from warm-up to end
    if c.schedule == "stable":
        start = c.steps * (1 - c.cooldown)
        falling = (c.steps - step) / max(c.steps - start, 1) if step > start else 1.0
    elif c.schedule == "linear":
        falling = 1 - done
    elif c.schedule == "cosine":
        falling = 0.5 * (1 + math.cos(math.pi * done))
    elif c.schedule == "restarts":
        falling = 0.5 * (1 + math.cos(math.pi * (c.cycles * done % 1))) if done < 1 else 0.0
    else:
        falling = 1.0
    return max(0.0, min(1.0, rising, falling))


# --- muon and adamw


BETAS = (0.9, 0.98)  # AdamW's


@torch.no_grad()
def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix to g [R, C], roughly, by Newton-Schulz iterations in bfloat16.

    The quintic of Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": singular values
    end between 0.7 and 1.2, which serves as well as 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    answer: Tensor = (x.mT if tall else x).to(g.dtype)
    return answer


class Guarded(torch.optim.Optimizer):
    """An optimizer whose step changes nothing, not its state either, where `found_inf` is not zero.

    `found_inf` is a number on the parameters' device, which nobody waits for: the convention of torch's own fused
    optimizers, which the loop sets before every step. Without it every step counts.
    """

    found_inf: Tensor | None = None

    def put(self, old: Tensor, new: Tensor) -> None:
        """old = new, unless the step is a bad one."""
        old.copy_(new if self.found_inf is None else torch.where(self.found_inf == 0, new, old))

    def count(self, state: dict[str, Any], p: Tensor) -> Tensor:
        """Count this step in state["step"], unless it is a bad one; the new count, in float64 where there is that."""
        old = state["step"] = state["step"].to(p.device)
        new: Tensor = old + 1
        self.put(old, new)
        return new if p.device.type == "mps" else new.double()

    def adam(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """AdamW's step for one parameter, its moments kept in float32 in `state`."""
        if "first" not in state:
            state["step"] = torch.zeros((), device=p.device)
            state["first"], state["second"] = torch.zeros_like(p), torch.zeros_like(p)
        first, second = self.adam_update(p, g, state["first"], state["second"], self.count(state, p), group)
        self.put(state["first"], first)
        self.put(state["second"], second)

    def adam_update(
        self, p: Tensor, g: Tensor, first: Tensor, second: Tensor, n: Tensor, group: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Update `p` in its step number `n`; returns the new moments (Loshchilov & Hutter 2017, arXiv 1711.05101)."""
        b1, b2 = group["betas"]
        first, second = first.lerp(g, 1 - b1), second.lerp(g * g, 1 - b2)
        denominator = (second / (1 - b2**n).float()).sqrt_().add_(1e-8)
        step = first * (-group["lr"] / (1 - b1**n)).float() / denominator
        self.put(p, p * (1 - group["lr"] * group["weight_decay"]) + step)
        return first, second


class Muon(Guarded):
    """Momentum whose every update of a matrix is made orthogonal (convolutions count as matrices [out, in * kh * kw]).

    Parameters of fewer than two dimensions and those given as `plain` are updated by AdamW with `plain_lr`.
    An update has the root-mean-square of AdamW's (0.2, Liu et al. 2025, arXiv 2502.16982, eq. 4), so that one
    learning rate serves both. torch's own Muon gives the same updates, but takes matrices alone, has no `found_inf`,
    and makes every update on every rank.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        plain: Iterable[Tensor],
        lr: float,
        plain_lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = BETAS,
        weight_decay: float = 0.0,
    ) -> None:
        groups = [
            {"params": list(matrices), "lr": lr, "muon": True, "weight_decay": weight_decay},
            {"params": list(plain), "lr": plain_lr, "muon": False, "weight_decay": 0.0},
        ]
        super().__init__([g for g in groups if g["params"]], {"momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not supported and not called."""
        for group in self.param_groups:
            trained = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if group["muon"]:
                self._matrices(trained, group)
            else:
                for p, g in trained:
                    self.adam(p, g, self.state[p], group)

    def _matrices(self, matrices: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        part, updates = this_rank(), []
        for i, (p, g) in enumerate(matrices):
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            m = state["momentum"] * group["momentum"] + g
            # Each rank makes every world_size-th update; all others are nothing until they are summed.
            mine = i % part.world_size == part.index
            update = (
                orthogonalize(g.add(m, alpha=group["momentum"]).flatten(1)) if mine else torch.zeros_like(p.flatten(1))
            )
            updates.append(update)
            self.put(state["momentum"], m)
        sum_over_ranks(updates)
        for (p, _), update in zip(matrices, updates, strict=True):
            shrunk = p * (1 - group["lr"] * group["weight_decay"])
            step = update.view_as(p)
            self.put(p, shrunk.add_(step, alpha=-group["lr"] * 0.2 * math.sqrt(max(update.shape))))


def build_for(
    kind: str, modules: Mapping[str, nn.Module], lr: float, weight_decay: float, rates: Mapping[str, float]
) -> torch.optim.Optimizer:
    """`build` over modules of which some, by name, have a learning rate of their own."""
    by_rate: dict[float, list[nn.Module]] = {}
    for name, module in modules.items():
        by_rate.setdefault(rates.get(name, lr), []).append(module)
    first, *others = (build(kind, alike, rate, weight_decay) for rate, alike in by_rate.items())
    for other in others:
        for group in other.param_groups:
            first.add_param_group(group)
    return first


def build(kind: str, modules: Iterable[nn.Module], lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """An optimizer of `config.OPTIMIZERS` over all parameters that are trained.

    Only matrices (convolutions, an adapter's factors) decay and go through Muon: norms, biases and embeddings never do.
    """

    plain: list[Tensor] = []
    matrices: list[Tensor] = []
    for module in modules:
        for owner in module.modules():
            factors = isinstance(owner, nn.ParameterDict)
            for name, p in owner.named_parameters(recurse=False):
                if p.requires_grad:
                    wide = sum(n > 1 for n in p.shape) >= 2
                    is_matrix = wide and (factors or name == "weight") and not isinstance(owner, nn.Embedding)
                    (matrices if is_matrix else plain).append(p)
    if kind == "muon":
        return Muon(matrices, plain, lr, 0.4 * lr, weight_decay=weight_decay)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)
    if kind == "adamw8bit":
        return AdamW8bit(groups, {"lr": lr, "betas": BETAS})
    if kind == "adafactor":
        return Adafactor(groups, {"lr": lr})
    raise ValueError(f"optimizer {kind!r} is none of {', '.join(OPTIMIZERS)}")


class LossScale:
    """What a float16 loss is multiplied by, so that small gradients don't vanish (Micikevicius et al. 2017,
    arXiv 1710.03740, sec. 3.2): halved after a step that was not finite, doubled after 2000 that were."""

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.full((), 65536.0, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, found_inf: Tensor) -> None:
        """Learn from a step; nobody waits for it."""
        torch._amp_update_scale_(self.factor, self.good_steps, found_inf, 2.0, 0.5, 2000)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {"factor": self.factor, "good_steps": self.good_steps}

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.factor.copy_(saved["factor"])
        self.good_steps.copy_(saved["good_steps"])


# --- with little memory


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
    convolution counts as a matrix [out, in * kh * kw]. torch's own gives the same updates, but refuses `found_inf` and
    takes a convolution for many small matrices.
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
