"""Requests: everything a user can get wrong is one sentence, everything right survives a round trip through JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.errors import RequestError, nearest
from darkroom.request import Request, draw_seed
from darkroom.settings import settings

REFUSED = [
    ({"width": 0}, "width is 0"),
    ({"width": 7}, "from 8 to 8192"),
    ({"height": 8193}, "height is 8193"),
    ({"width": 512.0}, "whole number"),
    ({"width": "512"}, "width is '512'"),
    ({"width": True}, "width is True"),
    ({"width": 8192, "height": 8192}, "67,108,864 pixels"),
    ({"steps": 0}, "steps is 0"),
    ({"steps": -5}, "steps is -5"),
    ({"steps": 1001}, "from 1 to 1000"),
    ({"steps": 10**400}, "steps is 1000"),
    ({"steps": math.nan}, "steps is nan"),
    ({"guidance_scale": math.nan}, "guidance_scale is nan"),
    ({"guidance_scale": math.inf}, "guidance_scale is inf"),
    ({"guidance_scale": -1}, "guidance_scale is -1"),
    ({"guidance_scale": 101}, "from 0 to 100"),
    ({"guidance_scale": 10**400}, "guidance_scale is 1000"),
    ({"guidance_scale": "7.5"}, "guidance_scale is '7.5'"),
    ({"guidance_scale": False}, "guidance_scale is False"),
    ({"guidance_rescale": 1.1}, "guidance_rescale is 1.1"),
    ({"cache_interval": 0}, "cache_interval is 0; it must be from 1 to 100"),
    ({"cache_interval": 2.0}, "cache_interval is 2.0; it must be a whole number"),
    ({"token_merging": 0.8}, "token_merging is 0.8; it must be from 0 to 0.75"),
    ({"token_merging": math.nan}, "token_merging is nan"),
    ({"guidance_interval": (1.0,)}, "two noise levels"),
    ({"guidance_interval": "01"}, "two noise levels"),
    ({"guidance_interval": (2.0, 1.0)}, "below its second"),
    ({"guidance_interval": (-1.0, 1.0)}, "lower end"),
    ({"guidance_interval": (0.0, math.nan)}, "upper end"),
    ({"seed": -2}, "seed is -2"),
    ({"seed": 2**64}, "-1 draws one"),
    ({"seed": 1.5}, "seed is 1.5"),
    ({"seed": "1"}, "seed is '1'"),
    ({"clip_skip": 13}, "clip_skip is 13"),
    ({"prompt_style": "a111"}, "did you mean 'a1111'"),
    ({"prompt_style": None}, "prompt_style is None"),
    ({"negative_prompt": None}, "negative_prompt is None"),
    ({"negative_prompt": "x" * 32_001}, "32,001 characters"),
    ({"sampler": 3}, "sampler is 3"),
]


@pytest.mark.parametrize(("wrong", "told"), REFUSED, ids=[str(next(iter(w.items())))[:40] for w, _ in REFUSED])
def test_what_is_wrong_is_told_in_one_sentence(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(RequestError) as caught:
        Request(prompt="a fox", **wrong)  # type: ignore[arg-type]
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("prompt", [None, 5, b"a fox", ["a fox"], "x" * 32_001])
def test_a_prompt_is_a_text_of_bounded_length(prompt: object) -> None:
    with pytest.raises(RequestError, match="prompt"):
        Request(prompt=prompt)  # type: ignore[arg-type]


def test_hostile_prompts_are_only_texts() -> None:
    for prompt in ("", " ", "x" * 32_000, "\0", "\u202e", "\ud800", "<|endoftext|>", "(" * 10_000):
        assert Request(prompt=prompt).prompt == prompt


def test_numbers_become_plain() -> None:
    request = Request(prompt="", width=np.int64(512), guidance_scale=np.float32(2.5), seed=np.uint64(2**64 - 1))
    assert type(request.width) is int
    assert type(request.guidance_scale) is float
    assert request.seed == 2**64 - 1
    json.dumps(request.to_dict())


def test_seed_minus_one_means_draw_one() -> None:
    assert Request(prompt="", seed=-1).seed is None
    assert len({draw_seed() for _ in range(50)}) > 45
    assert all(0 <= draw_seed() < 2**32 for _ in range(50))


def test_a_request_is_frozen_and_comparable() -> None:
    request = Request(prompt="a fox", seed=1)
    with pytest.raises(AttributeError):
        request.seed = 2  # type: ignore[misc]
    assert request == Request(prompt="a fox", seed=1)
    assert hash(request) == hash(Request(prompt="a fox", seed=1))


@given(
    prompt=st.text(max_size=50),
    negative_prompt=st.text(max_size=20),
    width=st.none() | st.integers(8, 4096),
    height=st.none() | st.integers(8, 4096),
    steps=st.none() | st.integers(1, 1000),
    guidance_scale=st.none() | st.floats(0, 100),
    guidance_rescale=st.floats(0, 1),
    guidance_interval=st.none() | st.tuples(st.floats(0, 1), st.floats(2, 1e6) | st.just(math.inf)),
    seed=st.none() | st.integers(0, 2**64 - 1),
    clip_skip=st.integers(0, 12),
    prompt_style=st.sampled_from(["a1111", "comfy", "plain"]),
    sampler=st.none() | st.just("euler"),
    model=st.none() | st.text(max_size=10),
)
def test_round_trip_through_json(**values: object) -> None:
    request = Request(**values)  # type: ignore[arg-type]
    back = json.loads(json.dumps(request.to_dict(), allow_nan=False))
    assert Request.from_dict(back) == request


def test_a_field_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="no field 'widht'; did you mean 'width'"):
        Request.from_dict({"prompt": "", "widht": 512})
    with pytest.raises(RequestError, match="needs a prompt"):
        Request.from_dict({"steps": 5})
    with pytest.raises(RequestError, match="must be an object"):
        Request.from_dict([1])  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="width is '512'"):
        Request.from_dict({"prompt": "", "width": "512"})
    assert Request.from_dict({"schema": 1, "prompt": "a"}) == Request(prompt="a")


def test_nearest() -> None:
    assert nearest("Eulr", ["euler", "heun"]) == "; did you mean 'euler'?"
    assert nearest("zzz", ["euler", "heun"]) == ""


def test_a_request_shows_what_was_set_and_its_help_lists_its_fields() -> None:
    assert repr(Request(prompt="a fox", steps=3, noise="nv")) == "Request(prompt='a fox', steps=3, noise='nv')"
    assert repr(Request(prompt="")) == "Request(prompt='')"
    told = Request.__doc__ or ""
    assert all(f"    {name}: " in told for name in settings(Request))
    assert "    steps: a whole number from 1 to 1000. [default: the sampler's]\n" in told
    assert "    noise: one of cpu, nv. " in told
    assert "[default: 'cpu']" in told
    assert "--" not in told
