"""Servers without engines, and workers without HTTP, on one PostgreSQL: what dies, what is cut off, what is seen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from darkroom.errors import RequestError
from darkroom.serve import queue
from darkroom.serve.options import ServeOptions
from darkroom.serve.tables import StoreError, clock

from .conftest import FAKE, LEASE, ROOT, Running

WORK = """
import json, sys, time
from pathlib import Path
from darkroom.serve.options import ServeOptions
from darkroom.serve.worker import run
values = json.loads(sys.argv[1])
for name in ("data", "models"):
    if values.get(name) is not None:
        values[name] = Path(values[name])
ahead = float(sys.argv[2])
if ahead:
    real = time.time
    time.time = lambda: real() + ahead
sys.exit(run(ServeOptions(**values), lambda worker: print(worker.dispatcher.together.id, flush=True)))
"""


class Working:
    """A worker's process."""

    def __init__(self, folder: Path, options: dict[str, Any], environment: dict[str, str], ahead: float) -> None:
        self.log = folder / f"worker-{time.monotonic_ns()}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORK, json.dumps(options), str(ahead)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"} | environment,
            )
        assert self.process.stdout is not None
        self.id = self.process.stdout.readline().strip()
        assert self.id, self.log.read_text()[-3000:]

    def engines(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children]

    def send(self, number: int) -> None:
        """A signal to the worker and its engines, as if the machine did it."""
        for pid in (*self.engines(), self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Pool:
    """One database and folder, and the processes on it."""

    def __init__(self, folder: Path, postgres: Any) -> None:
        self.folder, self.postgres, self.url = folder, postgres, postgres.new()
        self.servers: list[Running] = []
        self.workers: list[Working] = []
        self._usual = {"database": self.url, "lease": LEASE, "engine_command": [sys.executable, str(FAKE)]}

    def web(self, **options: Any) -> Running:
        """A server without engines."""
        server = Running(self.folder / "data", self._usual | {"engines": 0} | options, {})
        self.servers.append(server)
        return server

    def work(self, environment: dict[str, str] | None = None, ahead: float = 0.0, **options: Any) -> Working:
        """A worker with one engine; `ahead`: seconds that its machine's clock is wrong by."""
        usual = {"data": str(self.folder / "data"), "engines": 1, "cores": 1}
        worker = Working(self.folder, usual | self._usual | options, environment or {}, ahead)
        self.workers.append(worker)
        return worker

    def end(self) -> None:
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.send(signal.SIGCONT)
            worker.process.terminate()
        for server in self.servers:
            if server.process.poll() is None:
                server.stop()
        for worker in self.workers:
            try:
                worker.process.wait(15)
            except subprocess.TimeoutExpired:
                worker.process.kill()


@pytest.fixture
def pool(tmp_path: Path, postgres_server: Any) -> Iterator[Pool]:
    found = Pool(tmp_path, postgres_server)
    yield found
    found.end()


def drawn(server: Running, ids: list[str]) -> list[str]:
    """The bytes' digests of jobs of one picture, once all have ended."""
    ended = [server.ended(id, 120) for id in ids]
    assert [job["state"] for job in ended] == ["finished"] * len(ids), ended
    return [job["images"][0]["sha256"] for job in ended]


def whole(server: Running) -> None:
    """Every finished picture's file is there, once for each row."""
    names = [name for (name,) in server.rows("SELECT file FROM pictures WHERE state = 'finished'")]
    assert len(set(names)) == len(names)
    assert all((server.data / name).is_file() for name in names)


def test_two_workers_draw_what_two_servers_take_in_and_a_kill_loses_nothing(pool: Pool) -> None:
    """A worker and a server die in the middle; the rest goes on, from snapshots, to the same bytes."""
    one, other = pool.web(), pool.web()
    slow = {"FAKE_TICK": "0.01"}
    victim = pool.work(slow)
    one.ready()
    pool.work(slow)
    fields: list[dict[str, Any]] = [{"prompt": "a fox", "seed": i, "steps": 20 + 40 * (i % 3)} for i in range(16)]
    ids = [(one, other)[i % 2].post(**each)["id"] for i, each in enumerate(fields)]

    def aboard() -> Any:
        return one.rows(f"SELECT id FROM pictures WHERE lease_owner LIKE '{victim.id}%' AND step >= 5")

    one.until(aboard)
    victim.send(signal.SIGKILL)
    one.kill()
    digests = drawn(other, ids)
    assert len(other.client.get("/api/images", params={"limit": 100}).json()["images"]) == 16
    again = other.rows("SELECT count(*) FROM pictures WHERE claim > 1")[0][0]
    assert 0 < again < 16
    whole(other)
    assert drawn(other, [other.post(**each)["id"] for each in fields[:3]]) == digests[:3]


def test_a_worker_that_is_cut_off_and_comes_back_finishes_nothing(pool: Pool) -> None:
    server = pool.web()
    stopped = pool.work({"FAKE_TICK": "0.02"})
    server.ready()
    id = server.post(prompt="a fox", steps=150)["id"]
    server.until(lambda: server.rows("SELECT 1 FROM pictures WHERE step >= 10"))
    stopped.send(signal.SIGSTOP)
    pool.work()
    server.until(lambda: server.rows("SELECT 1 FROM pictures WHERE claim = 2"))
    [first] = drawn(server, [id])
    stopped.send(signal.SIGCONT)
    time.sleep(1.5)  # it has time to try
    assert server.rows("SELECT state, claim FROM pictures") == [("finished", 2)]
    assert server.job(id)["images"][0]["sha256"] == first
    assert len(list((server.data / "images").rglob("*.png"))) == 1
    assert drawn(server, [server.post(prompt="an owl")["id"]])  # and both go on


def test_without_the_database_nothing_is_taken_in_and_what_was_in_hand_is_written_later(pool: Pool) -> None:
    server = pool.web()
    pool.work({"FAKE_TICK": "0.01"})
    server.ready()
    id = server.post(prompt="a fox", steps=200)["id"]
    server.until(lambda: server.rows("SELECT 1 FROM pictures WHERE step >= 5"))
    pool.postgres.stop()
    try:
        answer = server.client.post("/api/jobs", json={"prompt": "an owl"})
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert server.client.get("/readyz").status_code == 503
        assert server.client.get("/healthz").status_code == 200
        time.sleep(LEASE + 1)  # longer than the lease, and than the picture takes
    finally:
        pool.postgres.start()
    drawn(server, [id])
    assert server.rows("SELECT state, claim FROM pictures") == [("finished", 1)]  # it was not drawn again
    server.until(lambda: server.client.get("/readyz").status_code == 200)
    drawn(server, [server.post(prompt="an owl")["id"]])


def test_a_worker_s_wrong_clock_changes_nothing(pool: Pool) -> None:
    server = pool.web()
    pool.work({"FAKE_TICK": "0.01"}, ahead=86400)
    server.ready()
    pool.work({"FAKE_TICK": "0.01"}, ahead=-86400)
    ids = [server.post(prompt="a fox", seed=i, steps=30)["id"] for i in range(6)]
    long = server.post(prompt="an owl", steps=400)["id"]  # longer than a lease
    drawn(server, [*ids, long])
    assert server.rows("SELECT max(claim), max(deaths) FROM pictures") == [(1, 0)]
    now = time.time()
    assert all(abs(created - now) < 600 for (created,) in server.rows("SELECT created FROM pictures"))


def test_steps_previews_and_ends_are_seen_by_a_server_that_draws_nothing(pool: Pool) -> None:
    server = pool.web()
    pool.work({"FAKE_TICK": "0.02"})
    server.ready()
    id = server.post(prompt="a fox", steps=200)["id"]
    seen: list[str] = []
    steps: list[int] = []
    with server.client.stream("GET", f"/api/jobs/{id}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                seen.append(line.removeprefix("event: "))
            elif line.startswith("data: ") and seen[-1] == "progress":
                steps.append(json.loads(line.removeprefix("data: "))["step"])
    assert seen[-1] == "finished"
    assert "preview" in seen
    assert len(set(steps)) >= 2
    assert steps == sorted(steps)
    other = server.post(prompt="an owl", steps=1000)["id"]
    server.until(lambda: server.job(other)["step"])
    assert server.client.delete(f"/api/jobs/{other}").json()["state"] == "cancelled"
    server.until(lambda: [engine["aboard"] for engine in server.client.get("/api/server").json()["engines"]] == [0])
    assert not list((server.data / "snapshots").glob(f"{id}*"))


def test_models_are_those_that_each_worker_has(pool: Pool, tmp_path: Path) -> None:
    folders = {}
    for name, files in {"all": ("one", "two", "broken"), "less": ("one",)}.items():
        folders[name] = tmp_path / name / "Stable-diffusion"
        folders[name].mkdir(parents=True)
        for file in files:
            (folders[name] / f"{file}.safetensors").write_bytes(b"x" * 1000)
    server = pool.web(models=str(tmp_path / "all"))
    pool.work(models=str(tmp_path / "less"))
    server.ready()
    assert drawn(server, [server.post(prompt="a fox", model="one")["id"]])  # another path: another fingerprint
    with_two = pool.work(models=str(tmp_path / "all"))
    ids = [server.post(prompt="a fox", model="two", seed=i, steps=20)["id"] for i in range(4)]
    assert drawn(server, ids)
    answer = server.client.post("/api/jobs", json={"prompt": "a fox", "model": "broken"})
    assert answer.status_code == 422
    assert "the file is broken" in answer.json()["detail"]
    told = server.client.get("/api/server").json()
    assert sorted(map(tuple, (engine["models"] for engine in told["engines"])), key=len)[-1] == ("one", "two") or any(
        "two" in engine["models"] for engine in told["engines"]
    )
    assert told["bit_exact"]
    with_two.process.terminate()
    assert with_two.process.wait(15) == 0
    waits = server.post(prompt="a fox", model="two")["id"]  # nobody can draw it now, and it waits
    assert drawn(server, [server.post(prompt="a fox", model="one", seed=9)["id"]])
    assert server.job(waits)["state"] == "queued"


def test_what_is_a_worker_s_by_the_rows_and_aboard_no_engine_waits_again(pool: Pool) -> None:
    """As where the database goes away while a claim is committed."""
    server = pool.web()
    pool.work()
    server.ready()
    slow = server.post(prompt="a fox, slow", steps=100)["id"]
    server.until(lambda: server.job(slow)["state"] == "running")
    [(owner,)] = server.rows("SELECT lease_owner FROM pictures")
    lost = server.ended(server.post(prompt="an owl")["id"])["id"]
    server.rows(
        f"UPDATE pictures SET state = 'running', claim = 7, lease_owner = '{owner}', lease_until = 2e9"
        f" WHERE job = '{lost}' RETURNING id"
    )
    server.until(
        lambda: server.rows(f"SELECT state, claim, deaths FROM pictures WHERE job = '{lost}'") == [("finished", 8, 0)]
    )
    assert server.ended(slow)["state"] == "finished"
    assert [row[0] for row in server.rows(f"SELECT deaths FROM pictures WHERE job = '{slow}'")] == [0]


# --- the statements


def new(key: str = "", n: int = 1) -> queue.NewJob:
    return queue.NewJob(
        key=key, dialect="own", version="0", request='{"request": {}}', model="m", cost=n, seconds=1,
        seeds=list(range(n)), steps=4, inputs={},
    )  # fmt: skip


LIMITS = queue.Limits(cost=1e9, jobs=10**6, queue=10**6)


@pytest.fixture
def store(postgres_server: Any) -> Iterator[Any]:
    from darkroom.serve.postgres import PostgresStore

    found = PostgresStore(postgres_server.new())
    yield found
    found.close()


def test_many_workers_claim_at_once_and_each_picture_is_one_s(store: Any) -> None:
    async def run() -> None:
        for _ in range(4):
            await asyncio.gather(*(store.write(lambda c: queue.admit(c, new(n=5), LIMITS, clock(c))) for _ in range(8)))
        claimed: list[queue.Claimed] = []

        async def worker(name: str) -> None:
            while rows := await store.read(lambda c: queue.waiting(c, None, 7)):
                ids = [row.id for row in rows]
                mine = await store.write(lambda c, those=ids: queue.claim(c, those, name, clock(c)))
                claimed.extend(mine)
                for one in mine:
                    assert await store.write(lambda c, p=one: queue.finish(c, p.id, p.claim, clock(c), file=p.id))

        await asyncio.gather(*(worker(str(i)) for i in range(6)))
        assert len(claimed) == len({one.id for one in claimed}) == 160
        # Two that finish a job's last pictures at one moment see each other.
        assert await store.read(queue.counts) == {"finished": 32}

    asyncio.run(run())


def test_what_a_dead_engine_had_goes_back_though_its_rows_are_being_written(store: Any) -> None:
    writing, dead = threading.Event(), threading.Event()

    def keep(connection: Any, picture: queue.Claimed) -> bool:
        kept = queue.kept(connection, picture.id, picture.claim, 2)
        writing.set()
        dead.wait(0.5)  # the row is locked until then
        return kept

    async def run() -> None:
        await store.write(lambda c: queue.admit(c, new(n=3), LIMITS, clock(c)))
        ids = [row.id for row in await store.read(lambda c: queue.waiting(c, None, 9))]
        [first, *_] = await store.write(lambda c: queue.claim(c, ids, "one", clock(c)))
        kept = asyncio.create_task(store.write(lambda c: keep(c, first)))
        await asyncio.to_thread(writing.wait)
        await store.write(lambda c: queue.died(c, "one", clock(c), "stopped"))
        dead.set()
        assert await kept
        assert await store.read(lambda c: queue.held(c, ["one"])) == {}
        assert len(await store.read(lambda c: queue.waiting(c, None, 9))) == 3

    asyncio.run(run())


def test_a_text_that_the_database_can_t_hold_is_refused(store: Any) -> None:
    for alias in ("a\0b", "\ud800", "x" * 400):
        job = new()
        object.__setattr__(job, "alias", alias)
        with pytest.raises(RequestError, match="a text"):
            asyncio.run(store.write(lambda c, j=job: queue.admit(c, j, LIMITS, 1.0)))
    assert asyncio.run(store.read(queue.counts)) == {}


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "postgresql://u:secret@h:notaport/d"])
def test_what_is_no_address_is_refused_without_its_password(url: str) -> None:
    from darkroom.serve.postgres import PostgresStore

    with pytest.raises(StoreError) as told:
        PostgresStore(url)
    assert "secret" not in str(told.value)


def test_a_folder_of_another_machine_is_refused(pool: Pool, tmp_path: Path) -> None:
    pool.web()
    with pytest.raises(RuntimeError, match="another machine's folder"):
        Running(tmp_path / "elsewhere", {"database": pool.url, "engines": 0}, {})


def test_a_database_that_refuses_us_ends_the_start(postgres_server: Any, tmp_path: Path) -> None:
    from darkroom.serve.server import open_store

    url = postgres_server.new().rsplit("/", 1)[0] + "/nothing"
    with pytest.raises(StoreError, match="nothing"):
        open_store(ServeOptions(data=tmp_path, database=url))
