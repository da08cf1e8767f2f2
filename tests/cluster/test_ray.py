"""Batches through a real Ray cluster, and a node of it lost in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from darkroom.cluster.batch import FAILED, MARKER

from . import nodes as ray_nodes

pytest.importorskip("ray", reason="ray is not installed (the extra ray)")
pytestmark = pytest.mark.ray

COMMAND = [sys.executable, "-m", "darkroom", "batch"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ray_nodes.Nodes]:
    with ray_nodes.running() as found:
        yield found


def listed(folder: Path, count: int) -> str:
    path = folder / "list.jsonl"
    small: dict[str, Any] = {"width": 64, "height": 64}
    lines = [{"prompt": "a fox", "steps": 4 + i % 3, "id": f"fox-{i}", **small} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("??/*.png")}


def begun(cluster: ray_nodes.Nodes, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments, "--ray", cluster.address, "--json"], env=cluster.environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(true: Any, driver: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_node_and_then_the_driver_are_lost_and_all_lines_are_drawn_once(
    cluster: ray_nodes.Nodes, tmp_path: Path
) -> None:
    count = 30
    file, out, alone = listed(tmp_path, count), tmp_path / "out", tmp_path / "alone"
    second = cluster.add()
    driver = begun(cluster, file, "-o", str(out))
    until(lambda: len(pictures(out)) >= 8, driver)
    cluster.kill(second)
    until(lambda: len(pictures(out)) >= 16, driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    time.sleep(1)
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("??/*.png")}
    told = json.loads(begun(cluster, file, "-o", str(out)).communicate(timeout=300)[0])
    assert told["failed"] == 0
    assert told["drawn"] + told["found"] == count
    assert told["found"] >= len(written)
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("??/*.png") if p.name in written} == written
    done = subprocess.run([*COMMAND, file, "-o", str(alone), "--workers", "1"], env=cluster.environment, timeout=300)
    assert done.returncode == 0
    assert pictures(out) == pictures(alone)
    assert not list(out.rglob("*.part"))
    assert {path.name for path in out.iterdir() if path.is_file()} == {MARKER}
    assert not (out / FAILED).exists()


def test_without_the_token_or_a_cluster_there_is_one_sentence(cluster: ray_nodes.Nodes, tmp_path: Path) -> None:
    file = listed(tmp_path, 1)
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    for changed, address, said in (
        ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, cluster.address, "is our token the cluster's"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, cluster.address, "there is no token"),
        ({}, "127.0.0.2:1", "there is no Ray at"),
        ({}, "nonsense", "give HOST:PORT"),
    ):
        done = subprocess.run(
            [*COMMAND, file, "-o", str(tmp_path / "out"), "--ray", address],
            env=cluster.environment | changed, timeout=120, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert [line[:10] for line in done.stderr.splitlines() if not line.startswith("[")] == ["darkroom: "]


def test_the_doctor_finds_nothing_wrong_and_says_what_is(cluster: ray_nodes.Nodes, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "darkroom", "cluster", "doctor", "--ray", cluster.address]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], env=cluster.environment, timeout=200, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ray_nodes.HEAD in done.stdout
    assert not list(tmp_path.iterdir())
    cluster.token.chmod(0o644)
    try:
        done = subprocess.run(command, env=cluster.environment, timeout=200, capture_output=True, text=True)
    finally:
        cluster.token.chmod(0o600)
    assert done.returncode == 1
    assert "may read the token" in done.stdout


def test_only_the_cluster_s_room_names_ray() -> None:
    source = ray_nodes.ROOT / "src" / "darkroom"
    naming = {
        path.relative_to(source).parts[0]
        for path in source.rglob("*.py")
        if any(line.strip().startswith(("import ray", "from ray")) for line in path.read_text().splitlines())
    }
    assert naming == {"cluster"}
    assert os.environ.get(ray_nodes.MARK) is None
