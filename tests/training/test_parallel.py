"""Several processes: the same training as one, the same end on a signal, one sentence on an error."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from darkroom.errors import TrainingError
from darkroom.training import state
from darkroom.training.loop import train
from darkroom.training.parallel import Rank, buckets, launch, launched, sum_over_ranks, this_rank
from darkroom.training.recipe import check_loop

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyStage, toy_config

TOY = Path(__file__).parent / "toy.py"


def start(folder: Path, steps: int, optimizer: str, seconds: float = 0.0, fail_at: int = -1) -> subprocess.Popen[str]:
    arguments = [str(v) for v in (TOY, folder, steps, 2, optimizer, seconds, fail_at)]
    return subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True)


def as_torchrun(folder: Path, *arguments: object) -> list[subprocess.Popen[str]]:
    """Two ranks of the toy, started as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, *(str(v) for v in (TOY, folder, *arguments))]
    return [
        subprocess.Popen(
            command, env={**os.environ, **told, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]


def assert_close(folder: Path, steps: int, optimizer: str, other: Path) -> None:
    """The two-process run in `folder` equals one process with the whole batch, but for the rounding of sums."""
    train(ToyStage(toy_config(steps=steps, optimizer=optimizer)), other)
    ours, alone = (state.load_last(place) for place in (folder, other))
    assert ours is not None
    assert alone is not None
    assert ours["step"] == alone["step"] == steps
    for part in ("modules", "ema"):
        for key, value in alone[part]["toy"].items():
            # Muon's bfloat16 can amplify a last bit; a wrong share would be off by hundreds of times this.
            torch.testing.assert_close(ours[part]["toy"][key], value, rtol=1e-3, atol=1e-4)
    told = [[json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()] for place in (folder, other)]
    assert [row["step"] for row in told[0]] == [row["step"] for row in told[1]]
    for name in ("loss", "norm", "figure"):  # of all ranks' rows
        assert [row[name] for row in told[0]] == pytest.approx([row[name] for row in told[1]], rel=1e-2, abs=1e-4)


def test_shares_make_up_the_whole() -> None:
    rows = torch.arange(11)
    parts = [Rank(rank, 3).of(rows) for rank in range(3)]
    assert torch.equal(torch.cat(parts).sort().values, rows)
    assert list(Rank(1, 2).of(range(5))) == [1, 3]
    assert this_rank() == Rank(0, 1)
    alone = [torch.ones(2)]
    sum_over_ranks(alone)
    assert alone[0].tolist() == [1, 1]


def test_one_worker_is_this_process() -> None:
    seen: list[int] = []
    launch(seen.append, 1, 5)
    assert seen == [5]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_two_ranks_equal_one_with_the_whole_batch(optimizer: str, tmp_path: Path) -> None:
    process = start(tmp_path / "two", 12, optimizer)
    assert process.communicate() == (None, "")
    assert process.returncode == 0
    assert_close(tmp_path / "two", 12, optimizer, tmp_path / "one")


def test_a_signal_to_the_parent_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    process = start(folder, 5000, "muon", seconds=0.005)
    while not state.checkpoints(folder):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.communicate()[1] == ""
    saved = state.load_last(folder)
    assert saved is not None
    assert 0 < saved["step"] < 5000
    # The last logged step is the saved one: both ranks stopped together, after saving.
    assert f'"step": {saved["step"]},' in (folder / "log.jsonl").read_text().splitlines()[-1]
    steps = saved["step"] + 5
    process = start(folder, steps, "muon")
    assert process.communicate()[1] == ""
    assert_close(folder, steps, "muon", tmp_path / "one")


def test_an_error_in_a_worker_is_one_sentence(tmp_path: Path) -> None:
    process = start(tmp_path, 12, "adamw", fail_at=4)
    assert process.communicate()[1] == "said: the data is gone\n"
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="asks Linux for a process's children")
def test_a_worker_that_is_killed_is_no_fault_of_ours(tmp_path: Path) -> None:
    process = start(tmp_path, 5000, "adamw", seconds=0.005)
    while not state.checkpoints(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(ranks[-1], signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == 1
    assert said == (
        "said: one of the processes that shared the work was ended by SIGKILL (as a system does that runs out of "
        "memory); the same command goes on\n"
    )


def test_ranks_of_torchrun_shard_the_network_and_any_number_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "changing"
    for until, processes in ((5, 2), (8, 1), (12, 2)):
        if processes == 1:
            train(ToyStage(toy_config(steps=12, optimizer="adamw")), folder, until=until)
        else:
            ranks = as_torchrun(folder, 12, 2, "adamw", 0, -1, "fsdp", until)
            assert [rank.communicate()[1] for rank in ranks] == ["", ""]
            assert [rank.returncode for rank in ranks] == [0, 0]
        assert state.steps_done(folder) == until
    assert_close(folder, 12, "adamw", tmp_path / "one")
    ours, alone = (state.load_last(place) for place in (folder, tmp_path / "one"))
    assert ours is not None
    assert alone is not None
    assert ours["optimizer"]["param_groups"] == alone["optimizer"]["param_groups"]
    for i, values in alone["optimizer"]["state"].items():
        for key, value in values.items():
            torch.testing.assert_close(ours["optimizer"]["state"][i][key], value, rtol=1e-3, atol=1e-5)


def test_an_error_in_a_rank_of_torchrun_is_told_once(tmp_path: Path) -> None:
    ranks = as_torchrun(tmp_path, 12, 2, "adamw", 0, 4)
    told = [rank.communicate()[1] for rank in ranks]
    assert sorted(told) == ["", "said: the data is gone\n"]
    assert [rank.returncode for rank in ranks] == [1, 1]


def test_buckets_hold_every_parameter_once_last_first() -> None:
    parameters = [torch.zeros(n) for n in (5, 5, 100, 1)] + [torch.zeros(3, dtype=torch.bfloat16)]
    sizes = [[b.numel() for b in bucket] for bucket in buckets(parameters, size=48)]
    assert sizes == [[3], [1], [100], [5, 5]]
    assert [p.numel() for p in next(iter(buckets(parameters[:4], size=10**6)))] == [1, 100, 5, 5]


def test_what_torchrun_says_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() is None
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == 4
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(TrainingError, match="WORLD_SIZE is 'many'"):
        launched()


def test_what_needs_whole_matrices_is_not_sharded() -> None:
    with pytest.raises(TrainingError, match="muon needs whole matrices"):
        check_loop(toy_config(sharding="fsdp", optimizer="muon"))
    with pytest.raises(TrainingError, match="sharding is 'half'"):
        check_loop(toy_config(sharding="half"))
