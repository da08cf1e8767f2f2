"""What is acknowledged ends exactly once, whatever dies: engines, the server, the disk. Against the fake engine."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Running


def states(server: Running) -> list[tuple[Any, ...]]:
    return server.rows("SELECT state, claim, deaths FROM pictures ORDER BY id")


def hashes(server: Running) -> list[str]:
    images = server.client.get("/api/images", params={"limit": 200}).json()["images"]
    return sorted(image["sha256"] for image in images)


@pytest.mark.postgres
def test_an_engine_that_dies_loses_nothing(serve: Callable[..., Running]) -> None:
    server = serve()
    alone = [server.ended(server.post(prompt="a fox", seed=i)["id"])["images"][0]["sha256"] for i in range(3)]
    jobs = [server.post(prompt="a fox, slow", seed=i, steps=30) for i in range(8)]
    server.until(lambda: any(server.job(job["id"])["state"] == "running" for job in jobs))
    os.kill(server.engines()[0], signal.SIGKILL)
    assert all(server.ended(job["id"])["state"] == "finished" for job in jobs)
    again = [server.ended(server.post(prompt="a fox", seed=i)["id"])["images"][0]["sha256"] for i in range(3)]
    assert again == alone
    assert len(hashes(server)) == 14


SLOW_SNAPSHOTS = """
import time
from darkroom.serve.data import Data
plain = Data.snapshot
Data.snapshot = lambda self, id: time.sleep(0.3) or plain(self, id)
"""


def test_pictures_claimed_for_an_engine_that_died_before_it_had_them_wait_again(serve: Callable[..., Running]) -> None:
    server = serve(before=SLOW_SNAPSHOTS)
    jobs = [server.post(prompt="a fox, slow", seed=i) for i in range(6)]
    server.until(lambda: any(state == "running" for state, _, _ in states(server)))
    os.kill(server.engines()[0], signal.SIGKILL)  # some were claimed, and are not there yet
    assert all(server.ended(job["id"])["state"] == "finished" for job in jobs)


def test_a_picture_cancelled_on_its_way_to_an_engine_never_reaches_it(serve: Callable[..., Running]) -> None:
    server = serve(before=SLOW_SNAPSHOTS)
    job = server.post(prompt="a fox, hang")
    server.until(lambda: states(server)[0][0] == "running")
    server.client.delete(f"/api/jobs/{job['id']}")
    assert server.ended(server.post(prompt="an owl")["id"], 20)["state"] == "finished"


def test_a_picture_that_kills_engines_is_given_up_and_the_others_are_drawn(serve: Callable[..., Running]) -> None:
    server = serve()
    poison = server.post(prompt="a fox, die")
    others = [server.post(prompt="an owl", seed=i, steps=20) for i in range(15)]
    assert all(server.ended(job["id"], 120)["state"] == "finished" for job in others)
    ended = server.ended(poison["id"], 120)
    assert ended["state"] == "failed"
    assert "SIGKILL" in ended["error"]
    assert [deaths for state, _, deaths in states(server) if state == "failed"] == [4]  # one in company, 3 alone


def test_an_engine_that_hangs_is_ended(serve: Callable[..., Running]) -> None:
    server = serve()
    job = server.post(prompt="a fox, hang")
    other = server.post(prompt="an owl")
    assert server.ended(job["id"], 90)["state"] == "failed"
    assert "hung" in server.job(job["id"])["error"]
    assert server.ended(other["id"])["state"] == "finished"


@pytest.mark.postgres
def test_a_killed_server_s_engine_goes_too_and_the_next_server_finishes(serve: Callable[..., Running]) -> None:
    server = serve()
    jobs = [server.post(prompt="a fox", seed=i, steps=100) for i in range(5)]
    server.until(lambda: any(state == "running" for state, _, _ in states(server)))
    engines = server.engines()
    server.kill()
    server.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in engines), 5)
    server = serve()
    ended = [server.ended(job["id"]) for job in jobs]
    assert [job["state"] for job in ended] == ["finished"] * 5
    assert len(hashes(server)) == 5


@pytest.mark.postgres
@pytest.mark.parametrize("rounds", [12, pytest.param(1000, marks=pytest.mark.soak)])
def test_kills_at_any_point_lose_nothing_and_finish_nothing_twice(serve: Callable[..., Running], rounds: int) -> None:
    """A server killed at random moments under load, engines too; then everything is there, once, and right."""
    chosen = random.Random(7)
    alone = serve("alone")
    right = {
        seed: alone.ended(alone.post(prompt="a fox", seed=seed, steps=6)["id"])["images"][0]["sha256"]
        for seed in range(3 * rounds)
    }
    acknowledged: dict[str, int] = {}
    for round in range(rounds):
        server = serve()
        for seed in range(round * 3, round * 3 + 3):
            acknowledged[server.post(prompt="a fox", seed=seed, steps=6)["id"]] = seed
        time.sleep(chosen.random() * 0.15)
        if chosen.random() < 0.3 and server.engines():
            os.kill(server.engines()[0], signal.SIGKILL)
        server.kill()
    server = serve()
    for id, seed in acknowledged.items():
        ended = server.ended(id, 120)
        assert ended["state"] == "finished", ended
        assert ended["images"][0]["sha256"] == right[seed]
    files = {path.relative_to(server.data).as_posix() for path in (server.data / "images").rglob("*.png")}
    known = {name for (name,) in server.rows("SELECT file FROM pictures")}
    assert len(known) == len(hashes(server)) == 3 * rounds
    assert known <= files
    if server.database is None:  # else what was written just before a kill has a name of its own, and an hour
        assert known == files
    assert not list(server.data.rglob("*.part"))


def test_a_worker_that_was_given_up_can_t_finish_what_another_took_over(tmp_path: Path) -> None:
    """The fencing token, by the statements themselves."""
    import asyncio

    from darkroom.serve import queue
    from darkroom.serve.store import Store

    async def run() -> None:
        store = Store(tmp_path)
        new = queue.NewJob(
            key="",
            dialect="own",
            version="0",
            request='{"request": {}}',
            model="m",
            cost=1,
            seconds=1,
            seeds=[1],
            steps=4,
            inputs={},
        )
        limits = queue.Limits(cost=100, jobs=10, queue=10)
        id = await store.write(lambda c: queue.admit(c, new, limits, 1.0))
        ids = [row.id for row in await store.read(lambda c: queue.waiting(c, None, 9))]
        assert ids == [f"{id}-0"]
        [first] = await store.write(lambda c: queue.claim(c, ids, "one", 2.0))
        assert await store.write(lambda c: queue.claim(c, ids, "two", 2.0)) == []
        await store.write(lambda c: queue.died(c, "one", 3.0, "stopped"))
        [second] = await store.write(lambda c: queue.claim(c, ids, "two", 4.0))
        assert not await store.write(lambda c: queue.finish(c, ids[0], first.claim, 5.0, file="old.png"))
        assert not await store.write(lambda c: queue.kept(c, ids[0], first.claim, 3))
        assert await store.write(lambda c: queue.finish(c, ids[0], second.claim, 6.0, file="new.png"))
        assert await store.write(lambda c: queue.finish(c, ids[0], second.claim, 7.0, file="new.png"))  # said again
        assert not await store.write(lambda c: queue.finish(c, ids[0], second.claim, 7.0, file="twice.png"))
        [row] = await store.read(lambda c: queue.pictures_of(c, id))
        assert (row.state, row.file) == ("finished", "new.png")
        store.close()

    asyncio.run(run())


@pytest.mark.sqlite
def test_a_second_server_on_the_same_folder_names_the_first(serve: Callable[..., Running]) -> None:
    server = serve()
    code = f"""
from pathlib import Path
from darkroom.serve.data import Data
try:
    Data(Path({str(server.data)!r}))
except Exception as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": "src"}
    )
    assert str(server.process.pid) in told.stdout


@pytest.mark.postgres
def test_an_end_in_order_keeps_what_is_in_progress(serve: Callable[..., Running]) -> None:
    server = serve()
    job = server.post(prompt="a fox", steps=200)
    server.until(lambda: server.job(job["id"])["step"] > 20)
    began = time.monotonic()
    assert server.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began < 10
    assert states(server) == [("queued", 1, 0)]
    server = serve()
    begun = server.until(lambda: server.job(job["id"])["step"] or None)
    assert begun >= 20 or server.job(job["id"])["state"] == "finished"
    assert server.ended(job["id"])["state"] == "finished"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_closes_admission_and_opens_again_by_itself(serve: Callable[..., Running], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a tmpfs can't be mounted here")
    server: Any = None
    try:
        server = serve("disk/data")
        first = server.ended(server.post(prompt="a fox")["id"])
        with open(disk / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        answer = server.until(
            lambda: (a := server.client.post("/api/jobs", json={"prompt": "an owl"})).status_code == 507 and a
        )
        assert "full" in answer.json()["detail"]
        assert server.client.get("/readyz").status_code == 503
        assert server.client.get(f"/api/jobs/{first['id']}").json()["state"] == "finished"
        (disk / "ballast").unlink()
        server.until(lambda: server.client.get("/readyz").status_code == 200, 20)
        assert server.ended(server.post(prompt="a fox")["id"])["state"] == "finished"
    finally:
        if server is not None:
            server.stop()
        subprocess.run(["umount", str(disk)], check=False)


@pytest.mark.sqlite
def test_a_folder_of_another_database_is_refused(serve: Callable[..., Running]) -> None:
    server = serve()
    server.ended(server.post(prompt="a fox")["id"])
    server.stop()
    (server.data / "darkroom.json").unlink()
    with pytest.raises(RuntimeError, match="mounted"):
        serve()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_end_it_in_order_too(serve: Callable[..., Running], number: int) -> None:
    server = serve()
    server.post(prompt="a fox", steps=200)
    with server.client.stream("GET", "/api/events"):  # an open stream holds nothing up
        server.process.send_signal(number)
        assert server.process.wait(15) == 0
    assert states(server)[0][0] in ("queued", "finished")


def test_a_second_signal_ends_it_at_once(serve: Callable[..., Running]) -> None:
    server = serve()
    server.post(prompt="a fox, hang")
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(3) == 128 + signal.SIGTERM
