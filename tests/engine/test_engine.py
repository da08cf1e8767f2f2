"""The engine with small random networks: mixed batches, events, isolation, resumption, bits."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom.engine import Engine, Failed, Finished, Job, Progress
from darkroom.engine.scheduler import Width
from darkroom.errors import RequestError
from darkroom.pipeline import Pipeline
from darkroom.request import Request


def request(**fields: Any) -> Request:
    return Request(**{"prompt": "a red fox", "steps": 4, "seed": 1, **fields})


MIXED = [
    request(),
    request(seed=2, sampler="euler_ancestral", steps=6),
    request(seed=3, sampler="heun", guidance_scale=3.0, prompt="a blue car"),
    request(seed=4, sampler="dpmpp_2m", schedule="karras", steps=5, guidance_scale=1.0),
    request(seed=5, sampler="lms", negative_prompt="fox " * 100),
    request(seed=6, width=72, height=40, sampler="dpmpp_sde"),
    request(seed=7, guidance_interval=(0.3, 4.0), sampler="uni_pc", steps=7),
    request(seed=8, sampler="plms", guidance_rescale=0.7, prompt="(rocket:1.3) BREAK car"),
]


def run(engine: Engine) -> dict[str, Tensor]:
    """Step until nothing is left; every job must finish."""
    results: dict[str, Tensor] = {}
    while engine.jobs:
        for event in engine.step():
            assert not isinstance(event, Failed), event.error
            if isinstance(event, Finished):
                assert isinstance(event.result, Tensor)
                results[event.id] = event.result
    return results


def solo(pipe: Pipeline, wanted: Request, deterministic: bool = False) -> Tensor:
    engine = Engine(pipe, deterministic=deterministic)
    id = engine.add(wanted, output="latent")
    return run(engine)[id]


@pytest.mark.parametrize("max_rows", [1, 5, 64])
def test_mixed_jobs_equal_their_solo_runs(tiny_pipe: Pipeline, max_rows: int) -> None:
    engine = Engine(tiny_pipe, max_rows=max_rows)
    ids = [engine.add(wanted, output="latent") for wanted in MIXED]
    together = run(engine)
    for id, wanted in zip(ids, MIXED, strict=True):
        torch.testing.assert_close(together[id], solo(tiny_pipe, wanted), rtol=1e-5, atol=1e-4)


def test_jobs_that_arrive_late_and_travel_as_pickles_end_the_same(tiny_pipe: Pipeline) -> None:
    """One new job a tick; every third tick all jobs are pickled and go on in a fresh engine."""
    waiting, results, ids = list(MIXED), {}, []
    engine = Engine(tiny_pipe)
    tick = 0
    while waiting or engine.jobs:
        if waiting:
            ids.append(engine.add(waiting.pop(0), output="latent"))
        for event in engine.step():
            assert not isinstance(event, Failed), event.error
            if isinstance(event, Finished):
                results[event.id] = event.result
        tick += 1
        if tick % 3 == 0:
            jobs: list[Job] = pickle.loads(pickle.dumps(list(engine.jobs.values())))
            engine = Engine(tiny_pipe)
            for job in jobs:
                engine.resume(job)
    for id, wanted in zip(ids, MIXED, strict=True):
        torch.testing.assert_close(results[id], solo(tiny_pipe, wanted), rtol=1e-5, atol=1e-4)


def test_deterministic_pictures_have_the_same_bits_in_any_company(tiny_pipe: Pipeline) -> None:
    engine = Engine(tiny_pipe, deterministic=True)
    ids = [engine.add(wanted, output="latent") for wanted in MIXED]
    together = run(engine)
    backwards = Engine(tiny_pipe, deterministic=True, max_rows=3)
    again = [backwards.add(wanted, output="latent") for wanted in reversed(MIXED)][::-1]
    apart = run(backwards)
    for id, other, wanted in zip(ids, again, MIXED, strict=True):
        assert torch.equal(together[id], apart[other])
        assert torch.equal(together[id], solo(tiny_pipe, wanted, deterministic=True))


def test_events_tell_every_step_once(tiny_pipe: Pipeline) -> None:
    engine = Engine(tiny_pipe)
    heun, euler = engine.add(request(sampler="heun")), engine.add(request(sampler="euler", steps=6))
    seen: dict[str, list[int]] = {heun: [], euler: []}
    finished: list[str] = []
    while engine.jobs:
        for event in engine.step():
            if isinstance(event, Progress):
                assert event.id not in finished
                assert event.steps == (4 if event.id == heun else 6)
                seen[event.id].append(event.step)
            elif isinstance(event, Finished):
                finished.append(event.id)
                assert event.request.sampler in ("heun", "euler")
                assert event.result.size == (64, 64)  # type: ignore[union-attr]
    assert seen == {heun: [1, 2, 3, 4], euler: [1, 2, 3, 4, 5, 6]}
    assert sorted(finished) == sorted([heun, euler])
    assert engine.step() == []


def test_a_caller_names_jobs_and_interleaves_ticks_with_decoding(tiny_pipe: Pipeline) -> None:
    engine = Engine(tiny_pipe, max_rows=2)
    assert engine.add(request(steps=2), id="job/7", output="latent") == "job/7"
    with pytest.raises(RequestError, match="'job/7' is already in progress"):
        engine.add(request(), id="job/7")
    engine.add(request(steps=2), id="later", output="latent")
    assert engine.decode_one() == []
    ticks = [[(event.id, type(event)) for event in engine.tick()] for _ in range(5)]
    assert ticks == [[("job/7", Progress)]] * 2 + [[("later", Progress)]] * 2 + [[]]
    assert list(engine.jobs) == ["job/7", "later"]
    assert [[(e.id, type(e)) for e in engine.decode_one()] for _ in range(3)] == [
        [("job/7", Finished)], [("later", Finished)], []
    ]  # fmt: skip


def test_few_of_many_are_prepared_and_nothing_is_kept_of_aborted_ones(tiny_pipe: Pipeline) -> None:
    engine = Engine(tiny_pipe, max_rows=2)  # one guided picture a tick, so two are prepared
    ids = [engine.add(request(seed=seed, steps=1), id=str(seed), output="latent") for seed in range(6)]
    with pytest.raises(RequestError, match="no sampler"):  # at once, though it would have to wait
        engine.add(request(sampler="none such"))
    assert [id for id in ids if isinstance(engine._queue.get(id), Job)] == ["0", "1"]
    assert list(engine.jobs) == ids
    assert engine.jobs["4"].request.seed == 4
    engine.abort("3")
    engine.add(request(seed=9, steps=1), id="first", output="latent", rank=-1.0)
    results = run(engine)
    assert list(results) == ["0", "first", "1", "2", "4", "5"]
    for id in ("2", "5"):
        torch.testing.assert_close(results[id], solo(tiny_pipe, request(seed=int(id), steps=1)), rtol=1e-5, atol=1e-4)
    for number in range(100):
        engine.add(request(), id=str(number))
        engine.abort(str(number))
    assert not engine._queue._places
    assert len(engine._queue._heap) < 70


def test_what_became_impossible_fails_when_its_turn_comes(tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from darkroom.engine import engine as module

    engine = Engine(tiny_pipe, max_rows=2)
    ids = [engine.add(request(steps=1), id=str(number)) for number in range(4)]

    def gone(*_: object) -> Job:
        raise RequestError("the file is gone")

    monkeypatch.setattr(module, "prepare", gone)
    events = list(engine.run())
    assert [event.id for event in events if isinstance(event, Finished)] == ids[:2]
    assert [str(event.error) for event in events if isinstance(event, Failed)] == ["the file is gone"] * 2


def test_a_tick_takes_as_many_as_its_time_allows(tiny_pipe: Pipeline) -> None:
    engine = Engine(tiny_pipe, tick_seconds=1.0)
    for seed in range(8):
        engine.add(request(seed=seed))
    assert len(engine.moving()) == 8
    engine._rate = 1 / (2.5 * 2 * 64)  # two and a half pictures of two rows of 8x8 a second
    assert len(engine.moving()) == 2
    engine._rate = 1e3
    assert len(engine.moving()) == 1


def test_large_pictures_are_fewer_at_once(tiny_pipe: Pipeline) -> None:
    engine = Engine(tiny_pipe)
    for seed in range(6):
        engine.add(request(seed=seed, width=256, height=256, steps=1))
    assert len(engine.moving()) == 4  # of two rows of 32x32: 8,192 units


def test_aborted_jobs_are_gone(tiny_pipe: Pipeline) -> None:
    engine = Engine(tiny_pipe)
    first, second = engine.add(request()), engine.add(request(seed=2), output="latent")
    engine.step()
    engine.abort(first)
    engine.abort(first)
    engine.abort("never was")
    results = run(engine)
    assert list(results) == [second]
    torch.testing.assert_close(results[second], solo(tiny_pipe, request(seed=2)), rtol=1e-5, atol=1e-4)


@contextmanager
def failing_denoiser(pipe: Pipeline, exception: BaseException | None, when: Any) -> Iterator[None]:
    """Let the model's denoiser raise, or answer NaN, for the calls in which `when(x, sigma)` holds."""
    own = pipe.denoiser

    class Failing:
        scaling = own.scaling

        def __call__(self, x: Tensor, sigma: Any, conditions: Any, t: Any = None) -> Tensor:
            answer = own(x, sigma, conditions, t=t)
            if when(x, sigma):
                if exception is not None:
                    raise exception
                answer[torch.tensor([when(x[i : i + 1], sigma[i : i + 1]) for i in range(len(x))])] = float("nan")
            return answer

    pipe.denoiser = Failing()  # type: ignore[assignment]
    try:
        yield
    finally:
        pipe.denoiser = own


@pytest.mark.parametrize("exception", [ValueError("of its own"), None])
def test_a_failing_job_fails_alone(tiny_pipe: Pipeline, exception: Exception | None) -> None:
    engine = Engine(tiny_pipe)
    ids = [engine.add(request(seed=seed), output="latent") for seed in (1, 2, 3)]
    engine.step()
    culprit = engine.jobs[ids[1]].state.x
    events: list[Any] = []
    with failing_denoiser(tiny_pipe, exception, lambda x, sigma: bool((x == culprit).flatten(1).all(1).any())):
        events += engine.step()
    while engine.jobs:
        events += engine.step()
    failed = [event for event in events if isinstance(event, Failed)]
    assert [event.id for event in failed] == [ids[1]]
    assert ("of its own" if exception else "not finite in step 2 of 4") in str(failed[0].error)
    results = {event.id: event.result for event in events if isinstance(event, Finished)}
    assert set(results) == {ids[0], ids[2]}
    torch.testing.assert_close(results[ids[2]], solo(tiny_pipe, request(seed=3)), rtol=1e-5, atol=1e-4)


def test_memory_running_out_narrows_the_batch_for_a_while(tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(Width, "PATIENCE", 5)
    engine = Engine(tiny_pipe, max_rows=8)
    ids = [engine.add(request(seed=seed, steps=8), output="latent") for seed in (1, 2, 3, 4)]
    widest: list[int] = []
    watch = tiny_pipe.unet.register_forward_pre_hook(lambda _, inputs: widest.append(len(inputs[0])))
    with failing_denoiser(tiny_pipe, error, lambda x, sigma: len(x) > 3):
        results = {event.id: event.result for _ in range(8) for event in engine.step() if isinstance(event, Finished)}
    assert widest[-1] == 2
    assert len(engine.moving()) == 1
    widest.clear()
    results |= run(engine)
    watch.remove()
    assert max(widest) == 4
    for id, seed in zip(ids, (1, 2, 3, 4), strict=True):
        torch.testing.assert_close(results[id], solo(tiny_pipe, request(seed=seed, steps=8)), rtol=1e-5, atol=1e-4)


def test_an_interrupt_leaves_the_engine_whole(tiny_pipe: Pipeline) -> None:
    engine = Engine(tiny_pipe)
    id = engine.add(request(), output="latent")
    engine.step()
    with failing_denoiser(tiny_pipe, KeyboardInterrupt(), lambda x, sigma: True), pytest.raises(KeyboardInterrupt):
        engine.step()
    torch.testing.assert_close(run(engine)[id], solo(tiny_pipe, request()), rtol=1e-5, atol=1e-4)


def test_decoding_that_fails_is_an_event(tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_pipe)
    engine.add(request(steps=1))
    monkeypatch.setattr(tiny_pipe.autoencoder, "decode", lambda z: torch.full((1, 3, 64, 64), float("inf")))
    (event,) = [event for event in engine.step() if isinstance(event, Failed)]
    assert "not finite" in str(event.error)
    assert not engine.jobs


def test_what_can_not_be_drawn_is_refused_at_once(tiny_pipe: Pipeline) -> None:
    engine = Engine(tiny_pipe)
    with pytest.raises(RequestError, match="no sampler"):
        engine.add(request(sampler="none such"))
    with pytest.raises(RequestError, match="max_rows is 0"):
        Engine(tiny_pipe, max_rows=0)
    id = engine.add(request())
    with pytest.raises(RequestError, match="already in progress"):
        engine.resume(engine.jobs[id])
    assert list(engine.jobs) == [id]


def test_a_distilled_network_is_told_its_scale_and_asked_once(tiny_pipe: Pipeline) -> None:
    from dataclasses import replace

    from darkroom.engine.prepare import text_to_image
    from darkroom.models.unet import UNet

    pipe = Pipeline(
        unet=UNet(replace(tiny_pipe.unet.config, time_cond_proj_dim=8)),
        autoencoder=tiny_pipe.autoencoder,
        text_encoder=tiny_pipe.text_encoder,
        tokenizer=tiny_pipe.tokenizer,
        scheduler_config={**tiny_pipe.scheduler_config, "_class_name": "LCMScheduler"},
    )
    job = text_to_image(pipe, Request(prompt="a fox", guidance_scale=8.0, seed=1), "id")
    assert [c.guidance_scale for c in job.guidance.branches(14.0)] == [8.0]
    assert job.request.steps == job.steps == 4
    low, high = (solo(pipe, request(guidance_scale=scale, sampler=None)) for scale in (1.0, 8.0))
    assert not torch.allclose(low, high)


DRAW = """
import hashlib, sys, torch, darkroom
pipe = darkroom.load(sys.argv[1])
for threads in (1, 2, 4):
    torch.set_num_threads(threads)
    images = pipe.generate("a red fox", seed=3, steps=2, width=128, height=128, output="pt").images
    print(hashlib.sha256(images.numpy().tobytes()).hexdigest())
"""


def test_the_same_bytes_in_every_process_with_1_2_or_4_threads(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    folder = str(tiny_pipe.save(tmp_path / "model"))
    polite = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", DRAW, folder]
    hashes = subprocess.run(command, capture_output=True, text=True, check=True, env=polite).stdout.split()
    assert len(hashes) == 3
    here = tiny_pipe.generate("a red fox", seed=3, steps=2, width=128, height=128, output="pt").images
    assert isinstance(here, Tensor)
    assert set(hashes) == {hashlib.sha256(here.numpy().tobytes()).hexdigest()}


def test_jobs_are_added_and_aborted_while_a_step_is_made(tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another thread would: an aborted job has no event any more, and does not come back for a second pass."""
    from darkroom.engine import engine as module

    engine = Engine(tiny_pipe)
    first, second = engine.add(request(steps=1)), engine.add(request(steps=1, hires={"strength": 1.0}))
    late: list[str] = []
    advance, prepare_next = module.advance, module.prepare_next

    def aborting(*given: Any, **options: Any) -> Any:
        tick = advance(*given, **options)
        if first in engine.jobs:
            engine.abort(first)
            late.append(engine.add(request(steps=1)))
        return tick

    monkeypatch.setattr(module, "advance", aborting)
    monkeypatch.setattr(module, "prepare_next", lambda *given: (engine.abort(second), prepare_next(*given))[1])
    events = list(engine.run())
    assert {event.id for event in events if isinstance(event, Finished)} == set(late)
    assert first not in {event.id for event in events}
    assert not engine.jobs


def test_threads_add_and_abort_beside_the_drawing_one(tiny_pipe: Pipeline) -> None:
    engine, stop, failures = Engine(tiny_pipe), threading.Event(), list[BaseException]()
    kept = [engine.add(request(steps=2)) for _ in range(2)]

    def busy() -> None:
        try:
            while not stop.is_set():
                id = engine.add(request(steps=2))
                assert id in engine.jobs
                engine.abort(id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    done: set[str] = set()
    while not done >= set(kept):
        done |= {event.id for event in engine.step() if isinstance(event, Finished)}
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(isinstance(event, Finished | Progress) for event in engine.run())
