"""Optimizers: Muon, AdamW, and which parameters they update how."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .config import OPTIMIZERS
from .parallel import share, sum_over_ranks

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
    learning rate serves both.
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
        part, updates = share(), []
        for i, (p, g) in enumerate(matrices):
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            m = state["momentum"] * group["momentum"] + g
            # Each rank makes every so-maniest update; all others are nothing until they are summed.
            mine = i % part.world == part.rank
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
    from .lean import Adafactor, AdamW8bit

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
