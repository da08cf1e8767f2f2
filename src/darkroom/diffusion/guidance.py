"""Guidance: which conditions the network is asked, and how its denoised answers become one.

It acts on denoised predictions. Where it is linear, that equals acting on the network's outputs, because both are
the same affine map of each other for every branch.

The pieces are put around each other. Inside is one that says what to ask (`Unguided`, `ClassifierFree`,
`TwoConditions`); around it go pieces that ask more (`Perturbed`), that change the answer (`Projected`, `Rescaled`,
`Thresholded`), and `Within`, which says when all of it acts. The first branch is always what the prompt itself asks
for: all others lead away from something, and at noise levels without guidance it is asked alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..errors import RequestError
from .condition import Condition, Prompted
from .scalings import Scaling
from .schedule import Schedule

_PICTURE = (-3, -2, -1)  # the dimensions of one picture's latent


class Guidance(Protocol):
    """One picture's guidance. Picklable; may ask for other branches at another noise level."""

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        """The conditions to ask at this noise level, one row each; first what the prompt asks for."""
        ...

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        """The guided answer from one denoised answer a branch, each [C, H, W] float32, asked at x [C, H, W]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Unguided:
    """The condition alone."""

    condition: Prompted

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        return (self.condition.at(sigma),)

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        (answer,) = denoised
        return answer


@dataclass(frozen=True, slots=True, eq=False)
class ClassifierFree:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): negative + scale * (positive - negative).

    Args:
        positive, negative: the two conditions; branches in this order.
        scale: at 1 or below (diffusers' rule) there is no guidance, and one branch is asked.
    """

    positive: Prompted
    negative: Prompted
    scale: float

    def __post_init__(self) -> None:
        _finite("guidance scale", self.scale, 7.5)

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        asked = (self.positive, self.negative) if self.scale > 1.0 else (self.positive,)
        return tuple(prompted.at(sigma) for prompted in asked)

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        if len(denoised) == 1:
            return denoised[0]
        positive, negative = denoised
        return negative + self.scale * (positive - negative)


@dataclass(frozen=True, slots=True, eq=False)
class TwoConditions:
    """Guidance of an edit by its text and by its picture (Brooks et al. 2023, arXiv 2211.09800, eq. 3).

    neither + picture_scale * (picture - neither) + text_scale * (both - picture)

    Args:
        both: the instruction and the picture. picture: the negative prompt and the picture. neither: the negative
            prompt and no picture.
        text_scale, picture_scale: with a text scale of 1 or below, or a picture scale below 1, there is no guidance,
            and one branch is asked (diffusers' rule).
    """

    both: Prompted
    picture: Prompted
    neither: Prompted
    text_scale: float
    picture_scale: float

    def __post_init__(self) -> None:
        _finite("guidance scale", self.text_scale, 7.5)
        _finite("image guidance scale", self.picture_scale, 1.5)

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        guides = self.text_scale > 1.0 and self.picture_scale >= 1.0
        asked = (self.both, self.picture, self.neither) if guides else (self.both,)
        return tuple(prompted.at(sigma) for prompted in asked)

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        if len(denoised) == 1:
            return denoised[0]
        both, picture, neither = denoised
        return neither + self.text_scale * (both - picture) + self.picture_scale * (picture - neither)


@dataclass(frozen=True, slots=True, eq=False)
class Around:
    """A piece around another guidance: it asks what that asks and answers what that answers, unless it says otherwise.

    Args:
        inner: the guidance that it is put around.
    """

    inner: Guidance

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        return self.inner.branches(sigma)

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        return self.inner.combine(denoised, x, sigma)


@dataclass(frozen=True, slots=True, eq=False)
class Perturbed(Around):
    """Perturbed-attention guidance (Ahn et al. 2024, arXiv 2403.17377, eq. 15): away from a picture without structure.

    guided + scale * (prompted - perturbed), where `perturbed` is asked what the prompt asks, but in some levels of the
    U-Net every pixel attends to itself alone.

    Args:
        scale: 0: no such branch is asked, and the answer is `inner`'s to the bit.
        levels: of the U-Net, whose self-attention becomes the identity: "mid", "down.0", "up.1", ...
        adaptive: by how much the scale falls for each training timestep below the schedule's last, down to 0
            (diffusers' `pag_adaptive_scale`); needs the schedule.
    """

    scale: float
    levels: tuple[str, ...] = ("mid",)
    adaptive: float = 0.0
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        _finite("scale of perturbed-attention guidance", self.scale, 3.0)
        if self.adaptive and self.schedule is None:
            raise ValueError("an adaptive scale changes with the timestep: pass the denoiser's schedule")

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        asked = self.inner.branches(sigma)
        return (*asked, replace(asked[0], identity=self.levels)) if self._scale(sigma) else asked

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        scale = self._scale(sigma)
        if not scale:
            return self.inner.combine(denoised, x, sigma)
        return self.inner.combine(denoised[:-1], x, sigma) + scale * (denoised[0] - denoised[-1])

    def _scale(self, sigma: float) -> float:
        if not self.adaptive or self.schedule is None:
            return self.scale
        passed = len(self.schedule.training_sigmas) - self.schedule.sigma_to_t(sigma)
        return max(0.0, self.scale - self.adaptive * passed)


@dataclass(frozen=True, slots=True, eq=False)
class Projected(Around):
    """Guidance without the part of it that only brightens (Sadat et al. 2024, arXiv 2410.02416, sec. 4, eq. 6 to 8).

    What guidance adds to the prompt's own answer is split into a part along that answer, which oversaturates, and one
    at right angles to it. Of the first, only `parallel` (the paper's eta, 0 to 1) is kept. The paper's other two
    measures, a largest norm and a reverse momentum, are not here.
    """

    parallel: float = 0.0

    def __post_init__(self) -> None:
        _fraction("part of guidance that is kept along the picture", self.parallel)

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        guided = self.inner.combine(denoised, x, sigma)
        if len(denoised) == 1 or self.parallel == 1.0:
            return guided
        prompted = denoised[0]
        added = guided - prompted
        # The projection of what was added on the prompt's answer; the smallest float keeps 0 / 0 out.
        length = prompted.square().sum(dim=_PICTURE, keepdim=True).clamp_min(torch.finfo(prompted.dtype).tiny)
        along = (added * prompted).sum(dim=_PICTURE, keepdim=True) / length * prompted
        return guided - (1.0 - self.parallel) * along


@dataclass(frozen=True, slots=True, eq=False)
class Rescaled(Around):
    """Against overexposure at high scales (Lin et al. 2023, arXiv 2305.08891, sec. 3.4, eq. 15 and 16).

    The guided network output's standard deviation is brought back to that of the prompt's own, by the part `rescale`
    (the paper's phi, 0 to 1; diffusers' `guidance_rescale`). `scaling` is the denoiser's: this is about the network's
    own output.
    """

    rescale: float
    scaling: Scaling

    def __post_init__(self) -> None:
        _fraction("guidance rescale", self.rescale)

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        guided = self.inner.combine(denoised, x, sigma)
        if len(denoised) == 1 or not self.rescale:
            return guided
        # The network's output is F = (D - c_skip x) / c_out; c_out falls out of the ratio of the deviations.
        skip = self.scaling.c_skip(sigma) * x
        output = guided - skip
        wanted, present = (f.std(dim=_PICTURE, keepdim=True) for f in (denoised[0] - skip, output))
        ratio = torch.where(present > 0, wanted / present, torch.ones_like(present))
        return skip + output * (self.rescale * ratio + (1.0 - self.rescale))


@dataclass(frozen=True, slots=True, eq=False)
class Thresholded(Around):
    """Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, sec. 2.3), for latents.

    Imagen clips a pixel x0 to the percentile s of its absolute values and divides by s, so that it is in -1..1 again.
    A latent has no such range; here the range is the one it would have with less guidance. In each channel, around its
    mean: s is the percentile of the absolute values of the guided answer, r that of the milder one; where s > r the
    values are clipped to -s..s and multiplied by r / s.

    Args:
        percentile: 0 to 1 (0.995 in the paper's pictures); 1: the largest value.
        mimic: how much of the guidance the milder answer has, 0 to 1; 0 is the prompt's own answer. Under
            classifier-free guidance of scale w it stands for the scale 1 + mimic (w - 1).
    """

    percentile: float
    mimic: float = 0.0

    def __post_init__(self) -> None:
        _fraction("threshold", self.percentile)
        _fraction("mimicked part of guidance", self.mimic)

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        guided = self.inner.combine(denoised, x, sigma)
        if len(denoised) == 1:
            return guided
        _, r = self._range(denoised[0].lerp(guided, self.mimic))
        mean, s = self._range(guided)
        clipped = mean + torch.maximum(torch.minimum(guided - mean, s), -s) * (r / s)
        return torch.where(s > r, clipped, guided)

    def _range(self, answer: Tensor) -> tuple[Tensor, Tensor]:
        """Each channel's mean, and the percentile of its distances from there: [C, 1, 1]."""
        mean = answer.mean(dim=(-2, -1), keepdim=True)
        far = (answer - mean).abs().flatten(-2).quantile(self.percentile, dim=-1)
        return mean, far[..., None, None]


@dataclass(frozen=True, slots=True, eq=False)
class Within(Around):
    """Guidance for low < sigma <= high only (Kynkaanniemi et al. 2024, arXiv 2404.07724, eq. 6).

    At other noise levels the prompt alone is asked.
    """

    interval: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0.0 <= low <= high:
            raise RequestError(f"the guidance interval is {self.interval!r}; it must be (low, high), 0 <= low <= high")

    def _acts(self, sigma: float) -> bool:
        return self.interval[0] < sigma <= self.interval[1]

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        asked = self.inner.branches(sigma)
        return asked if self._acts(sigma) else asked[:1]

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        return self.inner.combine(denoised, x, sigma) if self._acts(sigma) else denoised[0]


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """Several prompts in one picture (Liu et al. 2022, arXiv 2206.01714, eq. 11): what "a AND b :1.2" asks for.

    With u the answer to the negative prompt and p_i those to the parts, u + sum of weight_i * (p_i - u) stands for the
    prompt's own answer, and guidance acts on it; for classifier-free guidance that is
    u + scale * sum of weight_i * (p_i - u). Without guidance it is the sum at scale 1, in which the negative prompt
    has no part if the weights add up to 1, and is not asked then.

    Args:
        parts: each part's guidance, alike but for the prompt. Rows that several of them ask are asked once.
        weights: one a part; may be negative.
        negative: what all of them lead away from.
    """

    parts: tuple[Guidance, ...]
    weights: tuple[float, ...]
    negative: Prompted

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        return self._rows(sigma)[0]

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        rows, asked = self._rows(sigma)
        answer_of = {id(row): answer for row, answer in zip(rows, denoised, strict=True)}
        u = answer_of.get(id(self.negative.at(sigma)))
        composed = []
        for branch in range(len(asked[0])):
            answers = [answer_of[id(part[branch])] for part in asked]
            composed.append(answers[0] if all(a is answers[0] for a in answers) else self._sum(answers, u))
        return self.parts[0].combine(composed, x, sigma)

    def _rows(self, sigma: float) -> tuple[tuple[Condition, ...], list[tuple[Condition, ...]]]:
        """All rows, each once, and which of them each part asks."""
        asked = [part.branches(sigma) for part in self.parts]
        rows = [row for branch in zip(*asked, strict=True) for row in branch]
        if not self._balanced:
            rows.append(self.negative.at(sigma))
        return tuple({id(row): row for row in rows}.values()), asked

    @property
    def _balanced(self) -> bool:
        return math.isclose(sum(self.weights), 1.0, abs_tol=1e-9)

    def _sum(self, answers: Sequence[Tensor], u: Tensor | None) -> Tensor:
        total = sum(weight * answer for weight, answer in zip(self.weights, answers, strict=True))
        assert isinstance(total, Tensor)
        return total if u is None else total + (1.0 - sum(self.weights)) * u


def _finite(name: str, value: float, usual: float) -> None:
    if not math.isfinite(value):
        raise RequestError(f"the {name} is {value!r}; it must be a finite number, such as {usual}")


def _fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise RequestError(f"the {name} is {value!r}; it must be between 0 and 1")
