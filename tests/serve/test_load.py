"""Many clients at once: nothing is lost, nothing is wrong, nothing leaks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import Running


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def drive(server: Running, clients: int, each: int, fields: dict[str, Any], seconds: float) -> dict[int, set[str]]:
    """`clients` threads that each ask `each` times and wait for the picture; seed -> the hashes that came back."""
    found: dict[int, set[str]] = {}
    faults: list[str] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        try:
            with httpx.Client(base_url=server.url, timeout=seconds) as http:
                for i in range(each):
                    seed = (number * each + i) % 24
                    job = http.post("/api/jobs", json={"prompt": "a fox", "seed": seed, **fields}).json()["id"]
                    with http.stream("GET", f"/api/jobs/{job}/events") as events:
                        for _ in events.iter_lines():
                            pass
                    ended = http.get(f"/api/jobs/{job}").json()
                    with lock:
                        found.setdefault(seed, set()).update(image["sha256"] for image in ended["images"])
                        if ended["state"] != "finished":
                            faults.append(str(ended))
        except Exception as error:
            faults.append(repr(error))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[:3]
    return found


def count(server: Running) -> int:
    total, before = 0, None
    while True:
        page = server.client.get("/api/images", params={"limit": 200} | ({"before": before} if before else {})).json()
        total += len(page["images"])
        if (before := page["next"]) is None:
            return total


def test_many_clients_lose_nothing_and_leave_nothing_open(serve: Callable[..., Running]) -> None:
    server = serve()
    drive(server, 16, 2, {}, 120)
    open_before = descriptors(server.process.pid)
    found = drive(server, 32, 6, {}, 120)
    assert all(len(hashes) == 1 for hashes in found.values())
    assert len(found) == 24
    assert count(server) == 16 * 2 + 32 * 6
    server.until(lambda: descriptors(server.process.pid) <= open_before + 2, 30)
    assert server.client.get("/api/jobs").json()["jobs"] == []


@pytest.mark.soak
def test_the_real_engine_for_ten_minutes(serve: Callable[..., Running]) -> None:
    server = serve(real=True, cores=2, engines=None)
    fields = {"width": 64, "height": 64, "steps": 20}
    drive(server, 64, 8, fields, 3600)
    before = resident(server.process.pid), descriptors(server.process.pid)
    found = drive(server, 64, 24, fields, 3600)
    assert all(len(hashes) == 1 for hashes in found.values())
    assert resident(server.process.pid) < 1.05 * before[0]
    assert descriptors(server.process.pid) <= before[1] + 2
