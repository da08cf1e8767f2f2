"""The names that are types are those that the registries have, no more and no fewer."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from darkroom import devices, diffusion, hints, loading, pipeline, samplers
from darkroom.arguments import Inpaint
from darkroom.errors import RequestError
from darkroom.evaluate.measure import METRICS
from darkroom.keywords import Keywords
from darkroom.names import (
    DType,
    Fill,
    Hint,
    Metric,
    Quantization,
    SamplerId,
    SamplerName,
    ScheduleName,
    Training,
)
from darkroom.request import Request, settings
from darkroom.training.kinds import KINDS


def test_samplers() -> None:
    assert list(get_args(SamplerId)) == samplers.names()
    theirs = {name for row in samplers.entries() for name in (row.id, row.label, row.diffusers) if name}
    assert theirs <= set(get_args(SamplerName))
    for name in get_args(SamplerName):
        samplers.canonical(name)
    implied = {samplers.canonical(name)[1] for name in set(get_args(SamplerName)) - theirs}
    assert implied == {"karras", "exponential"}


def test_schedules() -> None:
    ours = {name for row in diffusion.TABLE for name in (row.id, row.label) if name}
    assert set(get_args(ScheduleName)) == ours | {"automatic", "Automatic"}
    for name in ours:
        diffusion.spacing_name(name)


def test_the_others() -> None:
    assert set(get_args(Hint)) == set(hints.HINTS)
    assert set(get_args(Metric)) == set(METRICS)
    assert set(get_args(Training)) == set(KINDS)
    assert set(get_args(DType)) == {"auto", *devices.DTYPES}
    assert set(get_args(Quantization)) == set(loading.QUANTIZED)
    assert settings(Request)["fill"].kind.choices == get_args(Fill)
    with pytest.raises(RequestError, match="fill is 'nose'; it must be one of original, fill, noise"):
        Request(prompt="", fill=Inpaint(fill="nose").fill)  # type: ignore[arg-type]


def test_the_keywords_are_arguments_of_a_request_and_what_pictures_are_made_from() -> None:
    """They are declared in `Keywords`, for type checkers, and nowhere else."""
    asked = {name for name, declared in settings(Request).items() if declared.axis and declared.group is None}
    of_inputs = {"latents", "image", "mask", "depth", "controls", "loras", "embeddings"}
    groups = {"guidance", "inpaint", "noise", "tiling", "speed", "sizes"}
    own = {"prompt", "negative_prompt"}
    assert set(Keywords.__annotations__) == (asked - own) | of_inputs | groups | {
        "size", "num_images", "on_progress", "deterministic"
    }  # fmt: skip
    for call in ("generate", "__call__", "sweep"):
        shape = inspect.signature(getattr(pipeline.Pipeline, call))
        assert set(Keywords.__annotations__) <= set(shape.parameters)
        assert not any(p.kind is p.VAR_KEYWORD for p in shape.parameters.values())
