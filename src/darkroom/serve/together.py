"""What processes that share a database tell each other: who lives, who looks at what, what changed, how far it is.

No process speaks to another. A worker (a process with engines) says every third of a lease that it lives, and twice a
second how far the pictures are that somebody looks at. A web process says once a second which jobs are looked at, and
reads what changed. Times are the database's clock's, so no machine's clock matters. Previews are files beside the
snapshots.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, delete, or_, select, true, update

from ..errors import RequestError
from . import queue
from .data import Data
from .events import PREVIEW, PROGRESS, Hub
from .store import Answer, Store, StoreDown
from .tables import LIVE, RUNNING, clock, jobs, models, pictures, upsert, wishes, workers

LOOKED = 3.0  # seconds that one word of a job's being looked at holds
AGAIN = 2.0  # seconds of changes that are read once more: what was committed late
WISH = 600.0  # seconds that a wish to know of a model holds


@dataclass(frozen=True, slots=True)
class News:
    """What a worker reads twice a second: its pictures by the rows (id -> (claim, owner)), jobs looked at, wishes."""

    held: Mapping[str, tuple[int, str]]
    watched: Collection[str]
    previewed: Collection[str]
    wishes: Mapping[str, str]  # fingerprint -> name of a model to load


@dataclass
class Together:
    """One process's part in it.

    Attributes:
        lease: seconds after which a worker that is not heard of is taken for dead.
        workers: what those that live tell of themselves, by their ids, as of the last look.
    """

    store: Store
    data: Data
    hub: Hub
    lease: float = queue.LEASE
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._changed: dict[str, float] = {}  # job -> when, of those that were told of
        self._previews: dict[str, int] = {}  # picture -> its preview's time
        self._said = self._down = float("-inf")

    # --- workers

    async def say(self, owners: Collection[str], told: Mapping[str, Any], now: bool = False) -> list[str]:
        """That this worker lives, and what it is, unless that was said lately; its leases hold on. Those that have run
        out elsewhere are ended: the jobs that changed.

        After a while without the database nobody is taken for dead for a lease: they could not say that they live.
        """
        if not now and time.monotonic() - self._said < self.lease / 3:
            return []
        text = json.dumps(told)

        def write(connection: Connection) -> list[str]:
            at = clock(connection)
            upsert(connection, workers, ("id",), {"id": self.id, "seen": at, "told": text})
            queue.renew(connection, list(owners), at, self.lease)
            if time.monotonic() - self._down < self.lease:
                return []
            connection.execute(delete(workers).where(workers.c.seen < at - 10 * self.lease))
            connection.execute(delete(wishes).where(wishes.c.asked < at - WISH))
            return queue.expired(connection, at)

        changed = await self._tried(self.store.write(write))
        self._said = time.monotonic()
        return changed

    async def leave(self) -> None:
        """This worker is no more."""
        await self.store.write(lambda c: c.execute(delete(workers).where(workers.c.id == self.id)))

    async def hear(self, owners: Collection[str], aboard: Collection[str]) -> News:
        """What this worker has to know; `aboard`: the jobs of its pictures."""

        def read(connection: Connection) -> News:
            at = clock(connection)
            seen = select(jobs.c.id, jobs.c.watched > at, jobs.c.previewed > at).where(jobs.c.id.in_(list(aboard)))
            rows = connection.execute(seen).all() if aboard else []
            asked = connection.execute(select(wishes.c.fingerprint, wishes.c.model).where(wishes.c.asked > at - WISH))
            return News(
                queue.held(connection, list(owners)) if owners else {},
                {row[0] for row in rows if row[1]},
                {row[0] for row in rows if row[2]},
                {row.fingerprint: row.model for row in asked},
            )

        return await self._tried(self.store.read(read))

    async def tell_steps(self, owners: Collection[str], steps: Mapping[str, int]) -> None:
        """How far pictures are that somebody looks at: id -> step."""
        if steps:
            await self._tried(
                self.store.write(lambda c: queue.progress(c, dict(steps), list(owners), clock(c))),
            )

    async def _tried(self, work: Awaitable[Answer]) -> Answer:
        try:
            return await work
        except StoreDown:
            self._down = time.monotonic()
            raise

    # --- web processes

    async def look(self, own: Collection[str]) -> None:
        """Say which jobs are looked at here, and bring what changed of any to those who look. `own`: jobs that this
        process draws itself, whose steps it knows better."""
        steps, previews = self.hub.looked_at(PROGRESS), self.hub.looked_at(PREVIEW)
        live = {row.id: json.loads(row.told) for row in await self.store.read(self._living)}
        self.workers = live
        if steps is None and previews is None:
            self._changed.clear()
            return

        def write(connection: Connection) -> list[Any]:
            at = clock(connection)
            for column, looked in ((jobs.c.watched, steps), (jobs.c.previewed, previews)):
                if looked is not None:
                    _say_looked_at(connection, column, looked, at)
            wanted = select(jobs.c.id, jobs.c.key, jobs.c.state, jobs.c.changed).where(jobs.c.changed > at - AGAIN)
            return list(connection.execute(wanted))

        rows = await self.store.write(write)
        news = [row for row in rows if self._changed.get(row.id) != row.changed]
        self._changed = {row.id: row.changed for row in rows}
        moving = [row for row in news if row.state in LIVE and row.id not in own]
        await self._bring_steps(moving)
        for row in news:
            self.hub.changed(row.id, row.key, ended=row.state not in LIVE)

    def _living(self, connection: Connection) -> list[Any]:
        since = clock(connection) - self.lease
        return list(connection.execute(select(workers).where(workers.c.seen > since)))

    async def _bring_steps(self, moving: list[Any]) -> None:
        keys = {row.id: row.key for row in moving}
        if not keys:
            return
        wanted = select(pictures.c.id, pictures.c.job, pictures.c.number, pictures.c.step, pictures.c.steps)
        wanted = wanted.where(pictures.c.job.in_(keys), pictures.c.state == RUNNING)
        rows = (await self.store.read(lambda c: c.execute(wanted).all())) if keys else []
        running = {(row.job, row.number) for row in rows}
        for job in keys:
            known = self.hub.live.get(job)
            for number in [n for n in (known.steps if known else ()) if (job, n) not in running]:
                self.hub.landed(job, number)
        loop = asyncio.get_running_loop()
        for row in rows:
            self.hub.progress(row.job, keys[row.job], row.number, row.step, row.steps)
            if self.hub.watched(row.job, keys[row.job]):
                found = await loop.run_in_executor(None, self.data.preview, row.id)
                if found is not None and self._previews.get(row.id) != found[0]:
                    self._previews[row.id] = found[0]
                    self.hub.preview(row.job, keys[row.job], row.number, found[1])
        if len(self._previews) > 1000:
            self._previews.clear()

    # --- models that no process here has

    async def wish(self, fingerprint: str, model: str) -> None:
        """Ask workers to load a model, and to tell what it is under this fingerprint."""
        row = {"fingerprint": fingerprint, "model": model}

        def write(connection: Connection) -> None:
            upsert(connection, wishes, ("fingerprint",), row | {"asked": clock(connection)})

        await self.store.write(write)

    def others(self) -> list[dict[str, Any]]:
        """What the other workers that live tell of themselves."""
        return [told for id, told in self.workers.items() if id != self.id]

    async def described(self, fingerprint: str, model: str, seconds: float) -> dict[str, Any]:
        """What a worker tells of a model, once one has loaded it. Raises RequestError."""
        wanted = select(models.c.description).where(models.c.fingerprint == fingerprint)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            text = await self.store.read(lambda c: c.execute(wanted).scalar_one_or_none())
            if text is not None:
                return dict(json.loads(text))
            if (reason := self.refused(model)) is not None:
                raise RequestError(f"the model {model!r} can't be used: {reason}")
            await self.wish(fingerprint, model)
            await asyncio.sleep(0.25)
        raise RequestError(f"the model {model!r} is not loaded by any worker yet; try again in a moment")

    @property
    def models(self) -> dict[str, set[str]]:
        """The models that workers hold: name -> hashes."""
        found: dict[str, set[str]] = {}
        for told in self.workers.values():
            for name, hash in told["held"].items():
                found.setdefault(name, set()).add(hash)
        return found

    @property
    def bit_exact(self) -> bool:
        """Whether all workers that live are of one bit class, and keep bits."""
        classes = {bits for told in self.workers.values() for bits in told["bits"]}
        return len(classes) == 1 and all(told["exact"] for told in self.workers.values() if told["held"])

    def refused(self, model: str) -> str | None:
        """Why no worker that lives can load a model; None where one may."""
        told = [worker for worker in self.workers.values() if model in (*worker["models"], *worker["failed"])]
        reasons = [worker["failed"][model] for worker in told if model in worker["failed"]]
        return reasons[0] if told and len(reasons) == len(told) else None


def _say_looked_at(connection: Connection, column: Any, looked: Any, at: float) -> None:
    ids, keys, all = looked
    which = true() if all else or_(jobs.c.id.in_(list(ids)), jobs.c.key.in_(list(keys)))
    due = select(jobs.c.id).where(jobs.c.state.in_(LIVE), and_(column < at + LOOKED / 2, which))
    due = due.order_by(jobs.c.id).with_for_update(skip_locked=True)  # who holds a job's row waits for nobody here
    connection.execute(update(jobs).where(jobs.c.id.in_(due)).values({column: at + LOOKED}))
