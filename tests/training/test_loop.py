"""The loop: exact resume, whole checkpoints, refusals, bad steps."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom.errors import TrainingError
from darkroom.training import background, state
from darkroom.training.background import prefetch
from darkroom.training.loop import step_seed, train
from darkroom.training.parallel import Share

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyStage, toy_config

TOY = Path(__file__).parent / "toy.py"


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a checkpoint under its path."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{path}/{i}").items()}
    return {path: value}


def assert_same(one: Path, other: Path) -> None:
    """The last checkpoints of two runs are equal bit for bit: weights, averages, optimizer, counters."""
    a, b = (flat(state.load_last(folder)) for folder in (one, other))
    assert a.keys() == b.keys()
    for key, value in a.items():
        same = torch.equal(value, b[key]) if isinstance(value, Tensor) else value == b[key]
        assert same or key in ("/recipe/save_every", "/recipe/log_every"), key


@pytest.fixture(scope="module", params=["muon", "adamw"])
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An uninterrupted run of twelve steps."""
    folder = tmp_path_factory.mktemp(request.param)
    assert train(ToyStage(toy_config(optimizer=request.param)), folder) == 12
    return request.param, folder


@pytest.mark.parametrize("stop", [1, 7, 11])
def test_a_resumed_run_equals_an_uninterrupted_one(straight: tuple[str, Path], stop: int, tmp_path: Path) -> None:
    optimizer, folder = straight
    config = toy_config(optimizer=optimizer)
    assert train(ToyStage(config), tmp_path, until=stop) == stop
    torch.manual_seed(99)  # whatever happens in between
    assert train(ToyStage(config), tmp_path) == 12
    assert_same(folder, tmp_path)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_learns(optimizer: str, tmp_path: Path) -> None:
    train(ToyStage(toy_config(optimizer=optimizer, steps=100, batch_size=16, lr=0.03)), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 101))
    assert sum(row["loss"] for row in rows[-5:]) < 0.5 * sum(row["loss"] for row in rows[:5])
    assert all(row["figure"] == pytest.approx(row["loss"]) for row in rows)
    assert {"norm", "rate", "skipped", "samples_per_second", "seconds"} <= rows[0].keys()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(straight: tuple[str, Path], number: int, tmp_path: Path) -> None:
    optimizer, folder = straight
    config = toy_config(optimizer=optimizer)

    class Interrupted(ToyStage):
        def loss(self, batch: Tensor, step: int, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
            if step == 4:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)  # as the terminal and a parent process may both send it
            return super().loss(batch, step, share)

    before = signal.getsignal(number)
    assert train(Interrupted(config), tmp_path) == 5
    assert signal.getsignal(number) is before
    assert train(ToyStage(config), tmp_path) == 12
    assert_same(folder, tmp_path)


def test_a_second_interruption_after_a_while_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PATIENCE", 0.0)

    class Stubborn(ToyStage):
        def loss(self, batch: Tensor, step: int, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            raise AssertionError("still here")

    with pytest.raises(KeyboardInterrupt):
        train(Stubborn(toy_config()), tmp_path)
    assert state.checkpoints(tmp_path) == []


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """kill -9 at random moments, while checkpoints are being written all the time."""
    steps, killed, folder = 80, 0, tmp_path / "killed"
    command = [sys.executable, str(TOY), str(folder), str(steps), "1", "muon", "0.02"]
    for _ in range(2):
        begun = max([state.step_of(p) for p in state.checkpoints(folder)], default=0)
        process = subprocess.Popen(command)
        try:
            while process.poll() is None and begun >= max(
                [state.step_of(p) for p in state.checkpoints(folder)], default=0
            ):
                time.sleep(0.02)
            time.sleep(random.uniform(0, 0.4))
        finally:
            process.kill()
            killed += process.wait() == -signal.SIGKILL
    assert killed == 2
    whole = state.load_last(folder)
    assert whole is not None
    assert 0 < whole["step"] < steps
    assert train(ToyStage(toy_config(steps=steps)), folder) == steps
    assert train(ToyStage(toy_config(steps=steps)), tmp_path / "straight") == steps
    assert_same(tmp_path / "straight", folder)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    config = toy_config(log_every=4)
    train(ToyStage(config, poison=(2, 3)), tmp_path / "a", until=2)
    train(ToyStage(config, poison=(2, 3)), tmp_path / "b", until=4)
    before, after = (state.load_last(tmp_path / name) for name in "ab")
    assert before is not None
    assert after is not None
    for part in ("modules", "ema", "optimizer"):
        a, b = flat(before[part]), flat(after[part])
        assert all(torch.equal(v, b[k]) for k, v in a.items() if isinstance(v, Tensor)), part
    assert (before["skipped"], after["skipped"], after["step"]) == (0, 2, 4)
    row = json.loads((tmp_path / "b" / "log.jsonl").read_text().splitlines()[-1])
    assert row["skipped"] == 2
    assert row["loss"] == row["loss"]
    train(ToyStage(config, poison=(2, 3)), tmp_path / "b")
    final = state.load_last(tmp_path / "b")
    assert final is not None
    assert final["skipped"] == 2
    assert all(v.isfinite().all() for v in final["ema"]["toy"].values())


def test_logged_means_leave_bad_steps_out(tmp_path: Path) -> None:
    for name, poison in (("good", ()), ("bad", (3,))):
        config = toy_config(steps=4, log_every=4, lr=1e-9, cooldown=0.0)
        train(ToyStage(config, poison=poison), tmp_path / name)
    good, bad = (json.loads((tmp_path / n / "log.jsonl").read_text())["loss"] for n in ("good", "bad"))
    assert bad == pytest.approx(good, rel=0.3)  # three of four steps, not three quarters of the sum


def test_another_recipe_is_refused_and_a_longer_run_is_not(tmp_path: Path) -> None:
    train(ToyStage(toy_config()), tmp_path, until=3)
    with pytest.raises(TrainingError, match=r"lr=0\.01, not 0\.02"):
        train(ToyStage(toy_config(lr=0.02)), tmp_path)
    with pytest.raises(TrainingError, match="optimizer='muon', not 'adamw'"):
        train(ToyStage(toy_config(optimizer="adamw")), tmp_path)
    with pytest.raises(TrainingError, match="holds a run at step 3"):
        train(ToyStage(toy_config()), tmp_path, resume=False)
    assert train(ToyStage(toy_config(steps=14, save_every=1.0, keep=3)), tmp_path) == 14
    assert json.loads((tmp_path / "recipe.json").read_text())["steps"] == 14


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    train(ToyStage(toy_config(steps=2)), tmp_path)
    before = [(p.name, p.stat().st_mtime_ns) for p in state.checkpoints(tmp_path)]
    assert train(ToyStage(toy_config(steps=2)), tmp_path) == 2
    assert [(p.name, p.stat().st_mtime_ns) for p in state.checkpoints(tmp_path)] == before


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    train(ToyStage(toy_config(steps=1, ema=0.9)), tmp_path)
    saved = state.load_last(tmp_path)
    assert saved is not None
    fresh = ToyStage(toy_config()).network.state_dict()
    for key, value in saved["ema"]["toy"].items():  # the first decay is 1 / 10
        torch.testing.assert_close(value, 0.1 * fresh[key] + 0.9 * saved["modules"]["toy"][key])


def test_errors_of_the_data_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the data is gone"):
        train(ToyStage(toy_config(), fail_at=5), tmp_path)


def test_prefetching_keeps_the_order_and_passes_errors_on() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        if step == 8:
            raise ValueError("no step 8")
        return step * step

    with prefetch(make, 3, 7) as batches:
        assert list(batches) == [9, 16, 25, 36]
    with prefetch(make, 6, 20) as batches:
        assert [next(batches), next(batches)] == [36, 49]
        with pytest.raises(ValueError, match="no step 8"):
            next(batches)
    made.clear()
    with prefetch(make, 100, 10_000, depth=2) as batches:
        next(batches)
    assert len(made) <= 5  # it stopped with its reader
    with prefetch(make, 5, 5) as batches:
        assert list(batches) == []


def test_the_seeds_of_steps_are_all_different() -> None:
    seeds = [step_seed(seed, step) for seed in range(30) for step in range(-1, 300)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in [*seeds, step_seed(2**63 - 1, 10**9)])
