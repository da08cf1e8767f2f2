"""The database behind the server: one writer thread that commits what has queued up together, and readers beside it.

SQLite lets one connection write. With a transaction each, sixteen threads wait for its back-off (a second at the 99th
percentile); one writer that commits whatever has come meanwhile has them wait ten milliseconds (docs/serve.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from ..errors import Error
from .tables import StoreError, migrate

Answer = TypeVar("Answer")
Statement = Callable[[Connection], Answer]

MOST = 256  # statements of one commit
READERS = 4


class StoreFull(Error):
    """The disk is full: nothing was written."""


class StoreDown(Error):
    """The database can't be reached now: nothing was written, or nobody knows whether; asked again it may."""


class Store:
    """Open a database below `folder`, which must exist, and bring it to the newest version. Raises StoreError.

    Attributes:
        shared: other processes may use the database, too.
    """

    shared = False

    def __init__(self, folder: Path) -> None:
        self._engine = _sqlite(folder / "darkroom.sqlite")
        self._waiting: queue.SimpleQueue[tuple[Statement[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        try:
            with self._engine.begin() as connection:
                migrate(connection)
        except OperationalError as error:
            raise _told(error) from error
        self._writer = threading.Thread(target=self._write_all, name="store-writer", daemon=True)
        self._writer.start()

    async def write(self, statement: Statement[Answer]) -> Answer:
        """What `statement` answers, once what it wrote is on disk.

        It runs in the writer's thread, in a transaction that others may share; where it raises, what it did is undone
        and theirs isn't. Raises StoreFull.
        """
        done: Future[Answer] = Future()
        self._waiting.put((statement, done))
        return await asyncio.wrap_future(done)

    async def read(self, statement: Statement[Answer]) -> Answer:
        """What `statement` answers, from a snapshot of the database as it was when it began."""

        def run() -> Answer:
            with self._engine.connect().execution_options(read=True) as connection:
                return statement(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    def close(self) -> None:
        """Write what waits, and close."""
        self._waiting.put(None)
        self._writer.join()
        self._readers.shutdown()
        self._engine.dispose()

    def _write_all(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, last = [first], False
            with contextlib.suppress(queue.Empty):
                while len(batch) < MOST:
                    if (more := self._waiting.get_nowait()) is None:
                        last = True
                        break
                    batch.append(more)
            self._write(batch)
            if last:
                return

    def _write(self, batch: list[tuple[Statement[Any], Future[Any]]]) -> None:
        """Run statements in one transaction and answer when it is on disk."""
        batch = [item for item in batch if item[1].set_running_or_notify_cancel()]
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self._engine.begin() as connection:
                for statement, done in batch:
                    outcomes.append((done, *_tried(connection, statement)))
        except BaseException as error:
            for _, done in batch:
                done.set_exception(_told(error))
            return
        for done, answer, fault in outcomes:
            done.set_exception(_told(fault)) if fault is not None else done.set_result(answer)


def _tried(connection: Connection, statement: Statement[Any]) -> tuple[Any, BaseException | None]:
    savepoint = connection.begin_nested()
    try:
        answer = statement(connection)
        savepoint.commit()
        return answer, None
    except BaseException as error:
        if savepoint.is_active:  # a full disk has undone all of it already
            savepoint.rollback()
        if isinstance(_told(error), StoreFull):
            raise
        return None, error


def _told(error: BaseException) -> BaseException:
    """A fault of the database in our words."""
    if not isinstance(error, OperationalError):
        return error
    text = told_of_text(error)
    if "disk is full" in text or "disk I/O error" in text:
        return StoreFull("the disk is full; nothing was written")
    return StoreError(f"the database can't be used: {text}")


def told_of_text(error: BaseException) -> str:
    """What a database's driver says, in one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300]


def _sqlite(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", pool_size=READERS + 1)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so
        for setting in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and writes then could not get the lock that another took meanwhile.
        reading = connection.get_execution_options().get("read", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine
