"""The loop: exact resume, whole checkpoints, refusals, bad steps."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom.errors import TrainingError
from darkroom.training import background, loop, state
from darkroom.training.background import prefetch
from darkroom.training.loop import step_seed, train
from darkroom.training.parallel import Rank
from darkroom.training.stage import Stage

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyStage, toy_config, toy_network

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_step_and_saves(straight: tuple[str, Path], number: int, tmp_path: Path) -> None:
    optimizer, folder = straight
    config = toy_config(optimizer=optimizer)

    class Interrupted(ToyStage):
        def loss(self, batch: Tensor, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
            if step == 4:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)  # as the terminal and a parent process may both send it
            return super().loss(batch, step, rank)

    before = signal.getsignal(number)
    assert train(Interrupted(config), tmp_path) == 5
    assert signal.getsignal(number) is before
    assert train(ToyStage(config), tmp_path) == 12
    assert_same(folder, tmp_path)


def tampered(saved: dict[str, Any], what: str) -> None:
    states, averages = saved["optimizer"]["state"], saved["ema"]["toy"]
    match what:
        case "a moment is missing":
            states[0] = {"x": torch.ones(2)}
        case "moments of another shape":
            states[0] = dict.fromkeys(states[0], torch.ones(3, 5))
        case "no moments":
            states.clear()
        case "more parameters":
            states[99] = states[0]
        case "an average of another network":
            saved["ema"]["toy"] = {"w": torch.ones(2)}
        case "an average of another shape":
            averages["0.weight"] = torch.ones(1)
        case "no weights":
            saved["modules"] = {}
        case "no such length":
            saved["powers"] = {}


TAMPERED = (
    "a moment is missing", "moments of another shape", "no moments", "more parameters", "an average of another network",
    "an average of another shape", "no weights", "no such length",
)  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adamw8bit", "adafactor"])
def test_a_checkpoint_of_no_such_run_is_one_sentence(what: str, optimizer: str, tmp_path: Path) -> None:
    config = toy_config(optimizer=optimizer, ema_lengths=(0.05, 0.1))
    train(ToyStage(config), tmp_path, until=3)
    path = tmp_path / "step-000000003.pt"
    saved = state.read(path)
    tampered(saved, what)
    state.write(path, saved)
    with pytest.raises(TrainingError, match=r"step-000000003\.pt is (none of this run|of another architecture)"):
        train(ToyStage(config), tmp_path)


def test_a_step_beyond_the_end_is_the_end(tmp_path: Path) -> None:
    """Of a longer run; and where the file's name and its content disagree, that is said."""
    train(ToyStage(toy_config(steps=12)), tmp_path)
    assert train(ToyStage(toy_config(steps=10)), tmp_path) == 12
    loop.check_done(tmp_path, toy_config(steps=10))
    (tmp_path / "step-000000012.pt").rename(tmp_path / "step-000000007.pt")
    with pytest.raises(TrainingError, match=r"step-000000007\.pt is none of ours: it is of step 12"):
        train(ToyStage(toy_config(steps=10)), tmp_path)


def test_a_run_outlives_its_terminal_where_it_was_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup says it."""
    assert signal.SIGHUP in background.endings()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in background.endings()
        with background.interruptible() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    """Another process is told who it is before it reads anything; and a run leaves no trace of its owner."""
    code = f"import sys; sys.path.insert(0, {str(TOY.parent)!r})\nfrom pathlib import Path\nfrom toy import *\n"
    code += f"train(ToyStage(toy_config()), Path({str(tmp_path)!r}))\n"

    class Meanwhile(ToyStage):
        def loss(self, batch: Tensor, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
            if step == 4:
                other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
                said.append(other.stderr.splitlines()[-1])
            return super().loss(batch, step, rank)

    said: list[str] = []
    assert train(Meanwhile(toy_config()), tmp_path) == 12
    assert f"run {tmp_path} is being written by process {os.getpid()}; " in said[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "recipe.json", "step-000000012.pt"]


def test_a_second_interruption_after_a_while_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PATIENCE", 0.0)

    class Stubborn(ToyStage):
        def loss(self, batch: Tensor, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            raise AssertionError("still here")

    with pytest.raises(KeyboardInterrupt):
        train(Stubborn(toy_config()), tmp_path)
    assert state.checkpoints(tmp_path) == []


ALL = {
    "steps": 60, "accumulate": 2, "ema_lengths": (0.05, 0.1), "snapshot_every": 7, "validate_every": 9, "keep": 1,
    "precision": "bfloat16", "schedule": "cosine", "weight_decay": 0.01,
}  # fmt: skip


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """kill -9 at random moments, while checkpoints are being written all the time, with all that a loop can do."""
    killed, folder = 0, tmp_path / "killed"
    code = (
        f"import sys; sys.path.insert(0, {str(TOY.parent)!r})\n"
        "import torch\nfrom pathlib import Path\nfrom toy import ToyStage, toy_config, toy_network, train\n"
        "torch.set_num_threads(1)\n"
        f"config = toy_config(save_every=0.01, **{ALL!r})\n"
        f"train(ToyStage(config, seconds=0.02), Path({str(folder)!r}))\n"
    )
    for _ in range(3):
        begun = state.steps_done(folder)
        process = subprocess.Popen([sys.executable, "-c", code])
        try:
            while process.poll() is None and begun >= state.steps_done(folder):
                time.sleep(0.02)
            time.sleep(random.uniform(0, 0.3))
        finally:
            process.kill()
            killed += process.wait() == -signal.SIGKILL
    assert killed
    whole = state.load_last(folder)
    assert whole is not None
    assert 0 < whole["step"] <= 60
    for place in (folder, tmp_path / "straight"):
        assert train(ToyStage(toy_config(**ALL)), place) == 60
    assert_same(tmp_path / "straight", folder)
    # What was seen on the way is the same, step by step: the order of the data, the noise, the held-out losses.
    keys = ("step", "loss", "norm", "lr", "validation")
    logs = [
        [[json.loads(line).get(key) for key in keys] for line in (place / "log.jsonl").read_text().splitlines()]
        for place in (tmp_path / "straight", folder)
    ]
    assert logs[0] == logs[1]
    for name in ("best.pt", *(f"snapshots/step-{step:09d}.pt" for step in (*range(7, 60, 7), 60))):
        a, b = (flat(state.read(place / name)) for place in (tmp_path / "straight", folder))
        for key, value in a.items():
            same = torch.equal(value, b[key]) if isinstance(value, Tensor) else value == b[key]
            assert same or key == "/recipe/save_every", (name, key)


@pytest.mark.parametrize("room", [10**12, 0])
def test_checkpoints_are_written_while_steps_go_on(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one is not done before the next step is, and holds nothing of it; unless memory is short."""
    went_on, threads = threading.Event(), set[str]()
    save, write = loop.Trainer.save, state.write

    def next_save(trainer: loop.Trainer, aside: Any = None) -> None:
        if trainer.step > 1:
            went_on.set()
        save(trainer, aside)

    def slow(path: Path, value: dict[str, Any]) -> Path:
        threads.add(threading.current_thread().name)
        if room and value["step"] == 1:
            assert went_on.wait(60)
        return write(path, value)

    config = toy_config(optimizer="adamw", save_every=1e-9, keep=20, validate_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "free", lambda: room)
        patch.setattr(loop.Trainer, "save", next_save)
        patch.setattr(state, "write", slow)
        train(ToyStage(config), tmp_path / "aside")
    assert [state.step_of(p) for p in state.checkpoints(tmp_path / "aside")] == list(range(1, 13))
    assert threads == {"darkroom-save_0" if room else "MainThread"}
    train(ToyStage(config), tmp_path / "one", until=1)  # undisturbed
    one, aside = (flat(state.read(tmp_path / name / "step-000000001.pt")) for name in ("one", "aside"))
    assert one.keys() == aside.keys()
    assert all(torch.equal(v, aside[k]) if isinstance(v, Tensor) else v == aside[k] for k, v in one.items())


def test_a_checkpoint_that_can_t_be_written_aside_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, steps = torch.save, list[int]()

    def full(value: dict[str, Any], file: Any) -> None:
        if value["step"] == 3:
            file.write(b"PK half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(value, file)

    class Watched(ToyStage):
        def loss(self, batch: Tensor, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
            steps.append(step)
            return super().loss(batch, step, rank)

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(loop, "free", lambda: 10**12)
    with pytest.raises(TrainingError, match=r"step-000000003\.pt could not be written: .*No space left"):
        train(Watched(toy_config(save_every=1e-9)), tmp_path)
    assert steps[-1] in (2, 3)  # the next checkpoint tells, if no step did before
    assert [state.step_of(p) for p in state.checkpoints(tmp_path)] == [1, 2]
    assert not list(tmp_path.glob(".*.part"))
    monkeypatch.undo()
    assert train(ToyStage(toy_config()), tmp_path) == 12


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_step_in_parts_is_the_step(optimizer: str, tmp_path: Path) -> None:
    saved = []
    for parts in (1, 4):
        config = toy_config(optimizer=optimizer, accumulate=parts)
        train(ToyStage(config), tmp_path / str(parts))
        saved.append(state.load_last(tmp_path / str(parts)))
    one, four = saved
    assert one is not None
    assert four is not None
    for key, value in one["modules"]["toy"].items():
        # Muon's bfloat16 can amplify a last bit; a lost part would be off by hundreds of times this.
        torch.testing.assert_close(four["modules"]["toy"][key], value, rtol=1e-3, atol=1e-4)
    logs = [[json.loads(line)["loss"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in "14"]
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def test_float16_learns_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MEASURED", 1000)  # a CPU takes a second for a product in float16
    config = toy_config(precision="float16", optimizer="adamw", steps=40, lr=0.03)
    train(ToyStage(config, poison=(9,)), tmp_path / "a")
    train(ToyStage(config, poison=(9,)), tmp_path / "b", until=15)
    train(ToyStage(config, poison=(9,)), tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["skipped"] >= 1
    assert sum(row["loss"] for row in rows[-5:]) < 0.7 * sum(row["loss"] for row in rows[:5])
    saved = state.load_last(tmp_path / "a")
    assert saved is not None
    assert saved["scale"]["factor"] < 65536
    assert all(v.dtype == torch.float32 for v in saved["modules"]["toy"].values())


def test_held_out_losses_samples_and_the_best(tmp_path: Path) -> None:
    changes = {"steps": 8, "validate_every": 2, "sample_every": 3, "keep": 1, "schedule": "constant", "lr": 0.05}
    train(ToyStage(toy_config(**changes)), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = {row["step"]: row["validation"] for row in rows if "validation" in row}
    assert list(found) == [2, 4, 6, 8]
    best = state.load_best(tmp_path)
    assert (best["step"], best["best"]["step"]) == (min(found, key=lambda step: found[step]),) * 2
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [f"step-00000000{i}.png" for i in (3, 6, 8)]
    # It is the loss of the averaged weights, the noise always the same.
    stage = ToyStage(toy_config(**changes))
    stage.network.load_state_dict(best["ema"]["toy"])
    losses = []
    for i, batch in enumerate(stage.validation()):
        torch.manual_seed(step_seed(0, -2 - i))
        losses.append(float(stage.loss(batch, best["step"], Rank())[0].detach()))
    assert best["best"]["validation"] == pytest.approx(sum(losses) / 2)
    # Looking changes nothing.
    train(ToyStage(toy_config(steps=8, schedule="constant", lr=0.05)), tmp_path / "blind")
    a, b = (state.load_last(place) for place in (tmp_path, tmp_path / "blind"))
    assert a is not None
    assert b is not None
    for part in ("modules", "ema", "optimizer"):
        theirs = flat(b[part])
        assert all(torch.equal(v, theirs[k]) for k, v in flat(a[part]).items() if isinstance(v, Tensor)), part


def test_what_a_stage_can_t_do_is_told(tmp_path: Path) -> None:
    class Bare(ToyStage):
        validation, sheet = Stage.validation, Stage.sheet

    for name in ("validate_every", "sample_every"):
        with pytest.raises(TrainingError, match=f"{name} is 2; this training can't do that"):
            train(Bare(toy_config(**{name: 2})), tmp_path)


def test_another_architecture_is_told_by_its_first_tensor(tmp_path: Path) -> None:
    train(ToyStage(toy_config()), tmp_path, until=1)
    other = torch.nn.Sequential(torch.nn.Embedding(16, 6), torch.nn.Linear(6, 4))
    with pytest.raises(TrainingError, match=r"toy\.1\.weight is missing there and \[4, 6\] here"):
        train(ToyStage(toy_config(), other), tmp_path)
    wide = torch.nn.Sequential(torch.nn.Embedding(17, 6), *toy_network()[1:])
    with pytest.raises(TrainingError, match=r"architecture: toy\.0\.weight is \[16, 6\] there and \[17, 6\] here"):
        train(ToyStage(toy_config(), wide), tmp_path)


@pytest.mark.parametrize("lr", [0.0, float("nan"), -1.0, 2.0])
def test_learning_rates_that_are_none(lr: float, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lr is .*; it must be a number above 0, at most 1"):
        train(ToyStage(toy_config(lr=lr)), tmp_path)


def test_a_falling_schedule_can_t_be_prolonged(tmp_path: Path) -> None:
    train(ToyStage(toy_config(schedule="cosine")), tmp_path, until=3)
    with pytest.raises(TrainingError, match="laid out for 12 steps"):
        train(ToyStage(toy_config(schedule="cosine", steps=20)), tmp_path)
    assert train(ToyStage(toy_config(schedule="cosine")), tmp_path) == 12


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Its checkpoint lacks the settings that came later, and what they need."""
    train(ToyStage(toy_config(optimizer="adamw")), tmp_path, until=3)
    saved = state.load_last(tmp_path)
    assert saved is not None
    for name in ("powers", "scale", "best", "opponents"):
        del saved[name]
    old = {"steps", "batch_size", "lr", "optimizer", "weight_decay", "warmup", "cooldown", "clip", "ema", "precision"}
    saved["recipe"] = {k: v for k, v in saved["recipe"].items() if k in old}
    state.save(tmp_path, 3, saved)
    assert train(ToyStage(toy_config(optimizer="adamw")), tmp_path) == 12


def test_compiled_networks_learn_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = torch.compile, []

    def compile_quickly(call: Any, **options: Any) -> Any:
        seen.append(call)
        return real(call, **{**options, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", compile_quickly)
    train(ToyStage(toy_config(steps=4)), tmp_path / "plain")
    train(ToyStage(toy_config(steps=4, compile=True)), tmp_path / "compiled")
    assert seen
    a, b = (state.load_last(tmp_path / name) for name in ("plain", "compiled"))
    assert a is not None
    assert b is not None
    for key, value in a["modules"]["toy"].items():
        torch.testing.assert_close(b["modules"]["toy"][key], value)


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


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (4, 1), (2, 2)])
def test_a_process_counts_the_work_of_its_own_rows(world: int, accumulate: int, tmp_path: Path) -> None:
    """Two layers of 6 x 11 and 11 x 4: a product is 2 operations, a step makes 3 of each weight a row, of 8 rows."""
    trainer = loop.Trainer(ToyStage(toy_config(accumulate=accumulate)), tmp_path)
    trainer.rank = Rank(0, world)
    assert trainer._measure()[0] == 3 * 2 * (6 * 11 + 11 * 4) * 8 / world
