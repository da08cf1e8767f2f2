"""Batches by processes on this machine: whole, once, resumable, byte for byte what each line gives alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from darkroom.cluster.batch import FAILED, Batch, DiskFull, Drawing, Summary, draw_here
from darkroom.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]
FAKE = Drawing(engine_command=(sys.executable, str(ROOT / "tests/serve/fake_engine.py")))


def listed(folder: Path, *lines: dict[str, Any]) -> str:
    path = folder / "list.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def draw(file: str, folder: Path, workers: int = 1) -> Summary:
    batch = Batch(file, folder)
    try:
        asyncio.run(asyncio.wait_for(draw_here(batch, FAKE, workers), 60))
    finally:
        batch.close()
    return batch.summary


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("??/*.png")}


def failed(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FAILED).read_text().splitlines()]


START = """
import asyncio, sys
from pathlib import Path
from darkroom.cluster.batch import Batch, Drawing, draw_here
batch = Batch(sys.argv[1], Path(sys.argv[2]))
asyncio.run(draw_here(batch, Drawing(engine_command=(sys.executable, sys.argv[3])), 2))
"""


def test_a_killed_batch_goes_on_and_draws_nothing_again(tmp_path: Path) -> None:
    lines = [{"prompt": "a fox", "steps": 4 + i % 7} for i in range(60)]
    file, folder = listed(tmp_path, *lines), tmp_path / "out"
    whole = tmp_path / "whole"
    assert draw(file, whole).drawn == 60
    driver = subprocess.Popen(
        [sys.executable, "-c", START, file, str(folder), FAKE.engine_command[1]],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "FAKE_TICK": "0.02"},
    )
    end = time.monotonic() + 60
    while len(pictures(folder)) < 20:
        assert time.monotonic() < end
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    written = {name: path.stat().st_mtime_ns for path in folder.glob("??/*.png") if (name := path.name)}
    assert 20 <= len(written) < 60
    summary = draw(file, folder)
    assert (summary.drawn, summary.found, summary.failed) == (60 - len(written), len(written), 0)
    assert pictures(folder) == pictures(whole)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("??/*.png") if path.name in written} == written
    steps = {line.id: line.request["steps"] for line in Batch(file, tmp_path / "third").left}
    assert summary.steps == sum(steps[id] for id in steps if f"{id}.png" not in written)  # no step of a finished one
    assert not list(folder.rglob("*.part"))


def test_a_line_that_ends_engines_is_given_up_and_the_others_are_drawn(tmp_path: Path) -> None:
    lines = [{"prompt": "an owl", "steps": 9, "seed": i} for i in range(12)]
    file = listed(tmp_path, *lines[:4], {"prompt": "a fox, die"}, {"prompt": "a fox, fail"}, *lines[4:])
    summary = draw(file, tmp_path / "out", workers=2)
    assert (summary.drawn, summary.failed) == (12, 2)
    told = {one["line"]: one["error"] for one in failed(tmp_path / "out")}
    assert "SIGKILL" in told[5]
    assert told[6] == "it came out as NaN"


def test_a_folder_is_one_model_s_and_one_process_s(tmp_path: Path) -> None:
    file, folder = listed(tmp_path, {"prompt": "a fox"}), tmp_path / "out"
    draw(file, folder)
    marker = json.loads((folder / "batch.json").read_text())
    (folder / "batch.json").write_text(json.dumps(marker | {"model": "another"}))
    more = listed(tmp_path, {"prompt": "a fox"}, {"prompt": "an owl"})
    with pytest.raises(RequestError, match="choose another folder"):
        draw(more, folder)
    assert len(pictures(folder)) == 1
    (folder / "batch.json").write_text(json.dumps(marker))
    held = subprocess.Popen(
        [sys.executable, "-c", START, more, str(folder), FAKE.engine_command[1]],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "FAKE_TICK": "100"},
    )
    try:
        end = time.monotonic() + 30
        while not (folder / ".owner").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        with pytest.raises(RequestError, match=f"process {held.pid}"):
            Batch(more, folder)
    finally:
        held.send_signal(signal.SIGKILL)
        held.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_batch_and_it_goes_on_with_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a tmpfs can't be mounted here")
    try:
        (disk / "ballast").write_bytes(b"x" * 900_000)
        file = listed(tmp_path, *({"prompt": "a fox", "seed": i} for i in range(40)))
        with pytest.raises(DiskFull, match="make room"):
            draw(file, disk / "out")
        there = pictures(disk / "out")
        assert len(there) < 40
        assert not list(disk.rglob("*.part"))
        (disk / "ballast").unlink()
        assert draw(file, disk / "out").found == len(there)
        assert len(pictures(disk / "out")) == 40
    finally:
        subprocess.run(["umount", str(disk)], check=False)
