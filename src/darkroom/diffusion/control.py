"""Controls: ControlNets with their hints, and what they add to the rows of one U-Net call.

N rows, of which a control steers n; C H W of latents and residuals as in `models.unet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.controlnet import ControlNet

if TYPE_CHECKING:
    from .condition import Batch, Condition


@dataclass(frozen=True, slots=True, eq=False)
class ControlInput:
    """One ControlNet at work on a row."""

    net: ControlNet
    hint: Tensor  # [3, s H, s W] in 0..1
    scale: float = 1.0  # of all its residuals
    guess: bool = False  # it does without a prompt: weaker where finer, from a tenth to all (sec. 3.4 of the paper)


@dataclass(frozen=True, slots=True)
class Controls:
    """The controls of one picture, each with the evaluations of the network in which it acts. Picklable."""

    windows: tuple[tuple[ControlInput, range], ...]

    def steer(self, branches: Sequence[Condition], evaluation: int) -> tuple[Condition, ...]:
        """The branches of a guidance, with what steers them in this evaluation.

        As in diffusers, a control steers all branches; with `guess`, those of the prompt only, be it composed of parts.
        """
        active = tuple(control for control, window in self.windows if evaluation in window)
        everywhere = tuple(control for control in active if not control.guess)
        return tuple(replace(b, controls=everywhere if b.negative else active) for b in branches)


def window(start: float, stop: float, evaluations: int) -> range:
    """In which of so many evaluations a control acts from `start` to `stop`, fractions of them: diffusers' rule."""
    on = [i for i in range(evaluations) if i / evaluations >= start and (i + 1) / evaluations <= stop]
    return range(on[0], on[-1] + 1) if on else range(0)


@dataclass(frozen=True, slots=True, eq=False)
class ControlBatch:
    """One ControlNet's rows of a batch; a row with two hints for one net is in two of these."""

    net: ControlNet
    rows: tuple[int, ...]  # which of the batch's rows
    hints: Tensor  # [n, 3, s H, s W]
    scales: tuple[float, ...]
    guesses: tuple[bool, ...]


def collate_controls(rows: Sequence[tuple[ControlInput, ...]]) -> tuple[ControlBatch, ...]:
    """The controls of each row of a batch, as few calls of their networks as can be."""
    calls: dict[tuple[int, int], list[tuple[int, ControlInput]]] = {}
    for row, controls in enumerate(rows):
        seen: dict[int, int] = {}
        for control in controls:
            nth = seen[id(control.net)] = seen.get(id(control.net), -1) + 1
            calls.setdefault((id(control.net), nth), []).append((row, control))
    return tuple(
        ControlBatch(
            net=members[0][1].net,
            rows=tuple(row for row, _ in members),
            hints=torch.stack([control.hint for _, control in members]),
            scales=tuple(control.scale for _, control in members),
            guesses=tuple(control.guess for _, control in members),
        )
        for members in calls.values()
    )


def residuals(batch: Batch, latent: Tensor, timesteps: Tensor) -> tuple[list[Tensor], Tensor] | None:
    """What all controls of a batch add to the U-Net's skips, and to its middle; None where it has none.

    `latent` [N, C, H, W] is what the U-Net sees; a network of fewer channels sees the first of them. Rows that a
    control does not steer get zeros from it.
    """
    total: list[Tensor] = []
    for call in batch.controls:
        weight = call.net.conv_in.weight
        rows = torch.tensor(call.rows, device=weight.device)
        seen, at, text = (values.to(weight.device)[rows] for values in (latent, timesteps, batch.text))
        told = [
            None if values is None else values.to(weight.device)[rows]
            for values in (batch.class_labels, batch.pooled, batch.sizes)
        ]
        down, middle = call.net(seen[:, : weight.shape[1]], at, text, call.hints.to(weight.device), *told)
        answers = [*down, middle]
        factors = _factors(call, len(answers)).to(weight)
        total = total or [answer.new_zeros(len(latent), *answer.shape[1:]) for answer in answers]
        for whole, answer, factor in zip(total, answers, factors, strict=True):
            whole.index_add_(0, rows.to(whole.device), (answer * factor[:, None, None, None]).to(whole))
    return (total[:-1], total[-1]) if total else None


def _factors(call: ControlBatch, answers: int) -> Tensor:
    """What each row's residuals are multiplied by: [answers, n] float32."""
    rising = torch.logspace(-1, 0, answers)
    columns = [
        scale * (rising if guess and not call.net.config.global_pool else torch.ones(answers))
        for scale, guess in zip(call.scales, call.guesses, strict=True)
    ]
    return torch.stack(columns, dim=1)
