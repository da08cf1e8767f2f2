"""Optimizers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .parallel import share, sum_over_ranks


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
        new = old + 1
        self.put(old, new)
        return new if p.device.type == "mps" else new.double()


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
        betas: tuple[float, float] = (0.9, 0.98),
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
                    self._plain(p, g, self.state[p], group)

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

    def _plain(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if "first" not in state:
            state["step"] = torch.zeros((), device=p.device)
            state["first"], state["second"] = torch.zeros_like(p), torch.zeros_like(p)
        (b1, b2), n = group["betas"], self.count(state, p)
        first = state["first"].lerp(g, 1 - b1)
        second = state["second"].lerp(g * g, 1 - b2)
        denominator = (second / (1 - b2**n).float()).sqrt_().add_(1e-8)
        self.put(p, p + first * (-group["lr"] / (1 - b1**n)).float() / denominator)
        self.put(state["first"], first)
        self.put(state["second"], second)


def build(kind: str, modules: Iterable[nn.Module], lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """An optimizer over all parameters: "muon" or "adamw". Embeddings and biases never go through Muon."""
    plain: list[Tensor] = []
    matrices: list[Tensor] = []
    for module in modules:
        for owner in module.modules():
            for name, p in owner.named_parameters(recurse=False):
                if p.requires_grad:
                    is_matrix = p.ndim >= 2 and name == "weight" and not isinstance(owner, nn.Embedding)
                    (matrices if is_matrix else plain).append(p)
    if kind == "muon":
        return Muon(matrices, plain, lr, 0.4 * lr, weight_decay=weight_decay)
    if kind == "adamw":
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.98), fused=True)
    raise ValueError(f"optimizer {kind!r} is not 'muon' or 'adamw'")


def rate(step: int, steps: int, warmup: int, cooldown: float) -> float:
    """The learning rate's factor at `step` of `steps`: linear warm-up, constant, then linear to 0 over the last
    `cooldown` (a fraction). A run can be prolonged until its cool-down begins without changing what has been."""
    start = steps * (1 - cooldown)
    falling = (steps - step) / max(steps - start, 1) if step > start else 1.0
    return max(0.0, min(1.0, (step + 1) / max(warmup, 1), falling))
