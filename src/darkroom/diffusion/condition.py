"""What one row of a U-Net batch is conditioned on, how rows become a batch, and what ControlNets add to one.

N rows, of which a control steers n; C H W of latents and residuals as in `models.unet`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters import Scaled
from ..kernels.exact import paired
from ..models.controlnet import ControlNet
from ..models.unet import CachedFeatures


@dataclass(frozen=True, slots=True, eq=False)
class ControlInput:
    """One ControlNet at work on a row."""

    net: ControlNet
    hint: Tensor  # [3, s H, s W] in 0..1
    scale: float = 1.0  # of all its residuals
    guess: bool = False  # it does without a prompt: weaker where finer, from a tenth to all (sec. 3.4 of the paper)


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """One row: text, perhaps extra input channels, perhaps a class. Compared by identity (tensors have no ==)."""

    text: Tensor  # [T, D]: the prompt's embeddings
    channels: Tensor | None = None  # [C', H, W]: appended to the latent, not scaled (inpainting, upscaling, depth)
    class_label: int | None = None  # the noise level of an upscaler's picture
    guidance_scale: float | None = None  # of networks distilled to take it as an input (LCM), else None
    pooled: Tensor | None = None  # size conditioning (SDXL): [P], the whole text as one vector, and
    sizes: tuple[float, ...] | None = None  # 6 or 5 numbers (`engine.prepare.common`)
    identity: tuple[str, ...] = ()  # U-Net levels ("mid", "up.1") in which each pixel attends to itself alone
    loras: tuple[Scaled, ...] = ()  # attached to the U-Net for this row
    controls: tuple[ControlInput, ...] = ()  # ControlNets that steer this row
    negative: bool = False  # a negative prompt's: what guidance leads away from
    merging: float = 0.0  # the fraction of the finest self-attention's tokens that are merged
    cached: CachedFeatures | None = None  # features [C, h, w] to reuse, or where to leave this call's

    def at(self, sigma: float) -> Condition:
        """Itself: this condition holds at every noise level."""
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """A condition that changes as the noise falls: a scheduled prompt.

    `pieces` are (bound, condition) with falling bounds: a piece holds for noise levels above its bound that no piece
    before it has; the last holds to the end, whatever its bound.
    """

    pieces: tuple[tuple[float, Condition], ...]

    def at(self, sigma: float) -> Condition:
        """The condition at a noise level."""
        return next((c for bound, c in self.pieces if sigma > bound), self.pieces[-1][1])


Prompted = Condition | Timeline  # what guidance holds of each branch


def with_channels(prompted: Prompted, channels: Tensor) -> Prompted:
    """The same with extra input channels [C', H, W]."""
    if isinstance(prompted, Condition):
        return replace(prompted, channels=channels)
    return Timeline(tuple((bound, replace(condition, channels=channels)) for bound, condition in prompted.pieces))


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


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """N rows, collated."""

    text: Tensor  # [N, T, D]
    channels: Tensor | None = None  # [N, C', H, W]
    class_labels: Tensor | None = None  # [N] int64
    guidance_scales: Tensor | None = None  # [N] float32
    pooled: Tensor | None = None  # [N, P]
    sizes: Tensor | None = None  # [N, S] float32
    identity: Mapping[str, Tensor] | None = None  # level -> [N] bool: for which rows its self-attention is the identity
    loras: tuple[tuple[Scaled, ...], ...] | None = None  # N times a row's own; None where no row has any
    controls: tuple[ControlBatch, ...] = ()  # by network, each with its rows
    merging: float = 0.0  # of all rows
    cached: tuple[CachedFeatures | None, ...] | None = None  # each row's; None where no row has any


def group_key(condition: Condition) -> Hashable:
    """Rows whose keys are equal (and whose latents have one shape) can share a U-Net call."""
    channels = condition.channels
    return (
        tuple(condition.text.shape),
        None if channels is None else tuple(channels.shape),
        condition.class_label is None,
        condition.guidance_scale is None,
        None if condition.pooled is None else tuple(condition.pooled.shape),
        None if condition.sizes is None else len(condition.sizes),
        condition.merging,
        condition.cached is not None and condition.cached.features is not None,
    )


def collate(
    conditions: Sequence[Condition], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Batch:
    """Stack rows of equal `group_key` on a device, floats in a dtype (defaults: the first text's own).

    Raises ValueError when there is no row, or when the rows can't share a call.
    """
    if not conditions:
        raise ValueError("no condition to collate")
    keys = {group_key(c) for c in conditions}
    if len(keys) > 1:
        raise ValueError(f"conditions of different shapes can't share a U-Net call: {sorted(map(str, keys))}")
    first = conditions[0]
    device = torch.device(device) if device is not None else first.text.device
    dtype = dtype if dtype is not None else first.text.dtype

    channels: Tensor | None = None
    if first.channels is not None:
        channels = _stack([c.channels for c in conditions if c.channels is not None], device, dtype)
    labels: Tensor | None = None
    if first.class_label is not None:
        labels = to_device(torch.tensor([c.class_label for c in conditions], dtype=torch.int64), device)
    scales: Tensor | None = None
    if first.guidance_scale is not None:
        scales = to_device(torch.tensor([c.guidance_scale for c in conditions], dtype=torch.float32), device)
    pooled: Tensor | None = None
    if first.pooled is not None:
        pooled = _stack([c.pooled for c in conditions if c.pooled is not None], device, dtype)
    sizes: Tensor | None = None
    if first.sizes is not None:
        sizes = to_device(torch.tensor([c.sizes for c in conditions], dtype=torch.float32), device)
    levels = sorted({level for c in conditions for level in c.identity})
    identity = {level: to_device(torch.tensor([level in c.identity for c in conditions]), device) for level in levels}
    loras = tuple(c.loras for c in conditions) if any(c.loras for c in conditions) else None
    text = _stack([c.text for c in conditions], device, dtype)
    controls = collate_controls([c.controls for c in conditions])
    cached = tuple(c.cached for c in conditions) if any(c.cached for c in conditions) else None
    return Batch(
        text, channels, labels, scales, pooled, sizes, identity or None, loras, controls, first.merging, cached
    )


def collate_controls(rows: Sequence[tuple[ControlInput, ...]]) -> tuple[ControlBatch, ...]:
    """The controls of each row of a batch, as few calls of their networks as can be."""
    calls: dict[tuple[int, int], list[tuple[int, ControlInput]]] = {}
    for row, controls in enumerate(rows):
        for place, control in enumerate(controls):  # a row's are added in its own order
            calls.setdefault((place, id(control.net)), []).append((row, control))
    return tuple(
        ControlBatch(
            net=members[0][1].net,
            rows=tuple(row for row, _ in members),
            hints=torch.stack([control.hint for _, control in members]),
            scales=tuple(control.scale for _, control in members),
            guesses=tuple(control.guess for _, control in members),
        )
        for _, members in sorted(calls.items(), key=lambda call: call[0][0])
    )


def _stack(rows: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.stack([row.to(device=device, dtype=dtype) for row in rows])


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor on a device, without waiting for the work that is queued there."""
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)


def alike(texts: Sequence[Tensor]) -> list[Tensor]:
    """Texts [..., T, D] of several T at one length, so that they can share a U-Net call: the least that all T divide.

    Each is repeated as a whole. Attention has no places and its weights add up to 1, so a text that is there r times is
    answered as it is alone: every weight is an r-th, and comes r times. Nothing empty has to be filled in.
    """
    length = math.lcm(*(text.shape[-2] for text in texts))
    return [torch.cat([text] * (length // text.shape[-2]), dim=-2) for text in texts]


def residuals(batch: Batch, latent: Tensor, timesteps: Tensor) -> tuple[list[Tensor], Tensor] | None:
    """What all controls of a batch add to the U-Net's skips, and to its middle; None where it has none.

    `latent` [N, C, H, W] is what the U-Net sees; a network of fewer channels sees the first of them. Rows that a
    control does not steer get zeros from it.
    """
    total: list[Tensor] = []
    for call in batch.controls:
        weight = call.net.conv_in.weight
        rows = torch.tensor(call.rows, device=weight.device)
        count, rows = len(rows), paired(rows)
        # A control sees its own rows only; its answers are put back among all rows, zeros elsewhere.
        seen, at, text = (values.to(weight.device)[rows] for values in (latent, timesteps, batch.text))
        others = [
            None if values is None else values.to(weight.device)[rows]
            for values in (batch.class_labels, batch.pooled, batch.sizes)
        ]
        hints = call.hints.to(weight.device).expand(len(rows), -1, -1, -1)
        down, middle = call.net(seen[:, : weight.shape[1]], at, text, hints, *others)
        answers = [answer[:count] for answer in (*down, middle)]
        rows = rows[:count]
        factors = _factors(call, len(answers)).to(weight)
        total = total or [answer.new_zeros(len(latent), *answer.shape[1:]) for answer in answers]
        for whole, answer, factor in zip(total, answers, factors, strict=True):
            whole.index_add_(0, rows.to(whole.device), (answer * factor[:, None, None, None]).to(whole))
    return (total[:-1], total[-1]) if total else None


def _factors(call: ControlBatch, answers: int) -> Tensor:
    """What each row's residuals are multiplied by: [answers, n] float32."""
    # With `guess`, from a tenth at the finest skip to the whole at the middle.
    rising = torch.logspace(-1, 0, answers)
    columns = [
        scale * (rising if guess and not call.net.config.global_pool else torch.ones(answers))
        for scale, guess in zip(call.scales, call.guesses, strict=True)
    ]
    return torch.stack(columns, dim=1)
