"""What is let go of: the oldest pictures beyond a limit, deleted ones after a while, inputs and files nobody knows.

Rows keep a picture's recipe when its file goes.
"""

from __future__ import annotations

import asyncio
import time

from sqlalchemy import Connection, and_, func, or_, select, update

from .data import Data
from .options import ServeOptions
from .store import Store
from .tables import FINISHED, LIVE, inputs, job_inputs, jobs, pictures

UNDO = 30.0  # seconds in which a deleted picture comes back
HOUR = 3600.0


class Retention:
    """Keeps a server's folder within its limits."""

    def __init__(self, store: Store, data: Data, options: ServeOptions) -> None:
        self.store, self.data, self.options = store, data, options

    async def apply(self) -> None:
        """Let files go by `--keep-days` and `--keep-gb`, oldest first, never pinned ones; and what was deleted."""
        now = time.time()
        names = await self.store.write(lambda c: self._let_go(c, now))
        hashes = await self.store.write(lambda c: _unneeded_inputs(c, now))
        await asyncio.get_running_loop().run_in_executor(None, self._drop, names, hashes)

    def _drop(self, names: list[str], hashes: list[str]) -> None:
        for name in names:
            self.data.drop(name)
        for sha in hashes:
            self.data.drop_input(sha)

    def _let_go(self, connection: Connection, now: float) -> list[str]:
        has_file = pictures.c.file.is_not(None)
        old = [and_(pictures.c.deleted.is_not(None), pictures.c.deleted < now - UNDO)]
        if self.options.keep_days is not None:
            old.append(and_(pictures.c.pinned.is_(False), pictures.c.created < now - 86400 * self.options.keep_days))
        ids = list(connection.execute(select(pictures.c.id).where(has_file, or_(*old))).scalars())
        if self.options.keep_gb is not None:
            kept = select(pictures.c.id, pictures.c.bytes).where(has_file, pictures.c.id.not_in(ids))
            total = connection.execute(
                select(func.coalesce(func.sum(pictures.c.bytes), 0)).where(has_file, pictures.c.id.not_in(ids))
            ).scalar_one()
            for row in connection.execute(kept.where(pictures.c.pinned.is_(False)).order_by(pictures.c.created)):
                if total <= self.options.keep_gb * 1e9:
                    break
                ids.append(row.id)
                total -= row.bytes or 0
        names = list(connection.execute(select(pictures.c.file).where(pictures.c.id.in_(ids), has_file)).scalars())
        connection.execute(update(pictures).where(pictures.c.id.in_(ids)).values(file=None))
        return [name for name in names if name is not None]

    async def sweep(self) -> None:
        """Delete files that no row knows."""

        def read(connection: Connection) -> tuple[set[str], set[str], set[str]]:
            files = connection.execute(select(pictures.c.file).where(pictures.c.file.is_not(None))).scalars()
            known = connection.execute(select(inputs.c.sha256)).scalars()
            live = connection.execute(select(pictures.c.id).where(pictures.c.state.in_(LIVE))).scalars()
            return {name for name in files if name}, set(known), set(live)

        found = await self.store.read(read)
        await asyncio.get_running_loop().run_in_executor(None, self.data.sweep, *found)

    async def disk(self) -> int:
        """Bytes of all finished pictures."""
        wanted = select(func.coalesce(func.sum(pictures.c.bytes), 0))
        wanted = wanted.where(pictures.c.state == FINISHED, pictures.c.file.is_not(None))
        return int(await self.store.read(lambda c: c.execute(wanted).scalar_one()))


def _unneeded_inputs(connection: Connection, now: float) -> list[str]:
    """Inputs older than an hour that no unfinished job needs, and none whose pictures can be drawn again from them:
    their rows go, and files that have no row left."""
    there = select(pictures.c.job).where(pictures.c.file.is_not(None))
    needed = select(job_inputs.c.sha256).join(jobs, jobs.c.id == job_inputs.c.job)
    needed = needed.where(or_(jobs.c.state.in_(LIVE), jobs.c.id.in_(there)))
    gone = list(
        connection.execute(
            inputs.delete()
            .where(inputs.c.created < now - HOUR, inputs.c.sha256.not_in(needed))
            .returning(inputs.c.sha256)
        ).scalars()
    )
    left = set(connection.execute(select(inputs.c.sha256).where(inputs.c.sha256.in_(gone))).scalars())
    return [sha for sha in gone if sha not in left]
