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


class Muon(torch.optim.Optimizer):
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
            m = state["momentum"].mul_(group["momentum"]).add_(g)
            # Each rank makes every so-maniest update; all others are nothing until they are summed.
            mine = i % part.world == part.rank
            update = (
                orthogonalize(g.add(m, alpha=group["momentum"]).flatten(1)) if mine else torch.zeros_like(p.flatten(1))
            )
            updates.append(update)
        sum_over_ranks(updates)
        for (p, _), update in zip(matrices, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.view_as(p), alpha=-group["lr"] * 0.2 * math.sqrt(max(update.shape)))

    def _plain(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if "step" not in state:
            state["step"] = torch.zeros(())
            state["first"], state["second"] = torch.zeros_like(p), torch.zeros_like(p)
        (b1, b2), state["step"] = group["betas"], state["step"] + 1
        n = float(state["step"])
        state["first"].lerp_(g, 1 - b1)
        state["second"].lerp_(g * g, 1 - b2)
        denominator = (state["second"] / (1 - b2**n)).sqrt_().add_(1e-8)
        p.addcdiv_(state["first"], denominator, value=-group["lr"] / (1 - b1**n))


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
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.98), foreach=True)
    raise ValueError(f"optimizer {kind!r} is not 'muon' or 'adamw'")


def rate(step: int, steps: int, warmup: int, cooldown: float) -> float:
    """The learning rate's factor at `step` of `steps`: linear warm-up, constant, then linear to 0 over the last
    `cooldown` (a fraction). A run can be prolonged until its cool-down begins without changing what has been."""
    start = steps * (1 - cooldown)
    falling = (steps - step) / max(steps - start, 1) if step > start else 1.0
    return max(0.0, min(1.0, (step + 1) / max(warmup, 1), falling))
