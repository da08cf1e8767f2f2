"""Networks that learn against those that are trained: a discriminator.

They take part in the same step: the loss goes back to both sides at once, each side's part to its own parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

BETAS = (0.5, 0.9)  # of Esser et al.'s code: an opponent that changes quickly is no use to remember


class Opponents:
    """A stage's opponents, none or several, with an optimizer (AdamW) and a clipping of their own.

    They are saved, but never averaged: nobody needs them afterwards.
    """

    def __init__(self, modules: Mapping[str, nn.Module], lr: float) -> None:
        self.modules, self.lr = modules, lr
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self._optimizer: torch.optim.Optimizer | None = None
        if self.parameters:
            self._optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=BETAS, weight_decay=0.0, fused=True)

    def clear(self) -> None:
        """Forget the last step's gradients."""
        for p in self.parameters:
            p.grad = None

    def clip(self, largest: float) -> Tensor:
        """Shrink the gradients to a norm of at most `largest`; returns the norm that they had, 0 without opponents."""
        return torch.nn.utils.clip_grad_norm_(self.parameters, largest)

    def step(self, factor: float, good: Tensor) -> None:
        """Learn, at `factor` times the learning rate, unless the step is a bad one for either side."""
        if self._optimizer is not None:
            self._optimizer.param_groups[0]["lr"] = self.lr * factor
            self._optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]  # see optim.py
            self._optimizer.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of them."""
        if self._optimizer is None:
            return {}
        weights = {n: m.state_dict() for n, m in self.modules.items()}
        return {"modules": weights, "optimizer": self._optimizer.state_dict()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        if self._optimizer is not None:
            for name, module in self.modules.items():
                module.load_state_dict(saved["modules"][name])
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": saved["optimizer"]["state"], "param_groups": groups})
