"""How far a picture is, as bytes: it goes on to the same bits, or starts over."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from darkroom.engine import Engine, Finished
from darkroom.engine.snapshot import DIGEST, FORM, bit_class, dump, restore
from darkroom.errors import RequestError
from darkroom.pipeline import Pipeline
from darkroom.request import Request
from darkroom.samplers import names

HIRES = ("latent", "lanczos")


def engine_of(pipe: Pipeline) -> Engine:
    return Engine(pipe, deterministic=True)


def end(engine: Engine) -> Tensor:
    (result,) = [event.result for event in engine.run() if isinstance(event, Finished)]
    assert isinstance(result, Tensor)
    return result


def along(pipe: Pipeline, wanted: Request) -> tuple[list[bytes], Tensor]:
    """Snapshots after every step of the engine, and what becomes of the picture."""
    engine, found = engine_of(pipe), list[bytes]()
    engine.add(wanted, id="a", output="latent")
    while True:
        events = engine.step()
        if done := [event.result for event in events if isinstance(event, Finished)]:
            return found, done[0]  # type: ignore[return-value]
        data = engine.snapshot("a")
        assert data is not None
        found.append(data)


@pytest.mark.parametrize("sampler", names())
def test_every_sampler_goes_on_from_every_step(tiny_pipe: Pipeline, sampler: str) -> None:
    wanted = Request(prompt="a red fox", seed=3, steps=4, sampler=sampler, guidance_scale=1.0)
    snapshots, expected = along(tiny_pipe, wanted)
    assert len(snapshots) >= 3
    for data in snapshots:
        engine = engine_of(tiny_pipe)
        id = engine.add(wanted, output="latent", snapshot=data)
        assert engine.jobs[id].state.evaluations > 0
        assert torch.equal(end(engine), expected)


@pytest.mark.parametrize("upscaler", HIRES)
def test_second_passes_go_on(tiny_pipe: Pipeline, upscaler: str) -> None:
    hires = {"scale": 1.25, "strength": 0.7, "upscaler": upscaler}
    wanted = Request(prompt="a red fox", seed=3, steps=3, sampler="dpmpp_2m", hires=hires)
    snapshots, expected = along(tiny_pipe, wanted)
    seen = set()
    for data in snapshots:
        engine = engine_of(tiny_pipe)
        id = engine.add(wanted, output="latent", snapshot=data)
        job = engine.jobs[id]
        seen.add(job.before)
        assert torch.equal(end(engine), expected)
    assert seen == {0, 3}


GO_ON = """
import sys, hashlib, pathlib, torch, darkroom
from darkroom.engine import Finished
torch.set_num_threads(2)
pipe = darkroom.load(sys.argv[1], dtype="float32")
engine = darkroom.Engine(pipe, deterministic=True)
wanted = darkroom.Request(prompt="a red fox", seed=3, steps=5, sampler="dpmpp_sde")
id = engine.add(wanted, output="latent", snapshot=pathlib.Path(sys.argv[2]).read_bytes())
assert engine.jobs[id].state.evaluations > 0
(result,) = [event.result for event in engine.run() if isinstance(event, Finished)]
print(hashlib.sha256(result.numpy().tobytes()).hexdigest())
"""


def test_another_process_goes_on(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    import darkroom

    folder = tiny_pipe.save(tmp_path / "model")
    pipe = darkroom.load(folder, dtype="float32")
    wanted = Request(prompt="a red fox", seed=3, steps=5, sampler="dpmpp_sde")
    snapshots, expected = along(pipe, wanted)
    (tmp_path / "snapshot").write_bytes(snapshots[4])
    command = [sys.executable, "-c", GO_ON, str(folder), str(tmp_path / "snapshot")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert told == hashlib.sha256(expected.numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def one(tiny_pipe: Pipeline) -> tuple[Request, bytes]:
    wanted = Request(prompt="a red fox", seed=3, steps=4, sampler="uni_pc")
    return wanted, along(tiny_pipe, wanted)[0][1]


def starts_over(pipe: Pipeline, wanted: Request, data: bytes) -> bool:
    engine = engine_of(pipe)
    id = engine.add(wanted, output="latent", snapshot=data)
    return engine.jobs[id].state.evaluations == 0


def test_whatever_does_not_fit_starts_over(tiny_pipe: Pipeline, one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, data = one
    assert not starts_over(tiny_pipe, wanted, data)
    others = ({"seed": 4}, {"prompt": "a car"}, {"sampler": "euler"}, {"steps": 5}, {"width": 72})
    for change in others:
        assert starts_over(tiny_pipe, replace(wanted, **change), data)
    assert restore(tiny_pipe, engine_job(tiny_pipe, wanted), data, "another processor") is None
    plain = Engine(tiny_pipe)
    plain.add(wanted, id="a", snapshot=data)
    assert plain.jobs["a"].state.evaluations == 0
    monkeypatch.setattr("darkroom.engine.snapshot.__version__", "9")
    assert starts_over(tiny_pipe, wanted, data)


def engine_job(pipe: Pipeline, wanted: Request) -> Any:
    engine = engine_of(pipe)
    return engine.jobs[engine.add(wanted, output="latent")]


def test_cached_features_start_over(tiny_pipe: Pipeline) -> None:
    engine = engine_of(tiny_pipe)
    engine.add(Request(prompt="a fox", seed=1, steps=4, cache_interval=2), id="a")
    engine.tick()
    assert engine.snapshot("a") is None
    assert engine.snapshot("never was") is None


def test_threads_that_give_the_same_bits_are_one_class() -> None:
    cpu, before, told = torch.device("cpu"), torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            told[threads] = bit_class(cpu, True), bit_class(cpu, False)
    finally:
        torch.set_num_threads(before)
    assert told[1][0] == told[2][0] == told[4][0] != told[3][0]
    assert len({plain for _, plain in told.values()}) == 4


def test_what_a_sampler_may_not_remember(tiny_pipe: Pipeline, one: Any) -> None:
    job = engine_job(tiny_pipe, one[0])
    job.state = replace(job.state, memory=(object(),))
    with pytest.raises(TypeError, match="remembers a object"):
        dump(job, "here")


def sealed(data: bytes) -> bytes:
    """With a digest that is right."""
    return data + hashlib.sha256(data).digest()


changes = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 10**6), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 10**6), st.just(0)),
    st.tuples(st.just("add"), st.integers(0, 10**6), st.integers(0, 255)),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=changes)
def test_corrupted_ones_start_over(tiny_pipe: Pipeline, one: Any, change: tuple[str, int, int]) -> None:
    wanted, data = one
    what, place, value = change
    place %= len(data)
    broken = {
        "flip": lambda: data[:place] + bytes([data[place] ^ value]) + data[place + 1 :],
        "cut": lambda: data[:place],
        "add": lambda: data[:place] + bytes([value]) + data[place:],
    }[what]()
    assert restore(tiny_pipe, engine_job_once(tiny_pipe, wanted), broken, bit_class(tiny_pipe.device, True)) is None


ONCE: dict[Request, Any] = {}


def engine_job_once(pipe: Pipeline, wanted: Request) -> Any:
    if wanted not in ONCE:
        ONCE[wanted] = engine_job(pipe, wanted)
    return replace(ONCE[wanted])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**9) | st.floats() | st.text(max_size=5) | st.just({"tensor": 0}),
    lambda inner: st.lists(inner, max_size=5),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["state", "second", "tensors", "version", "request"]), value=JSON)
def test_forged_headers_raise_nothing(tiny_pipe: Pipeline, one: Any, name: str, value: Any) -> None:
    wanted, data = one
    size = int.from_bytes(data[len(FORM) : len(FORM) + 4], "little")
    begin = len(FORM) + 4
    header = json.dumps(json.loads(data[begin : begin + size]) | {name: value}).encode()
    forged = sealed(FORM + len(header).to_bytes(4, "little") + header + data[begin + size : -DIGEST])
    job = restore(tiny_pipe, engine_job_once(tiny_pipe, wanted), forged, bit_class(tiny_pipe.device, True))
    assert job is None or job.state.x.shape == (4, 8, 8)


def test_an_id_in_progress_is_refused(tiny_pipe: Pipeline, one: Any) -> None:
    engine = engine_of(tiny_pipe)
    engine.add(one[0], id="a")
    with pytest.raises(RequestError, match="in progress"):
        engine.add(one[0], id="a", snapshot=one[1])
