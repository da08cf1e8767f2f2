"""The server's database where several processes share it: PostgreSQL, behind the statements of `queue` as they are.

A transaction a statement, in threads; no grouping: one failing statement would undo its company. What collides
(deadlocks, serialization) is run again. Where the database can't be reached, that is told (StoreDown) and everybody
tries again; what is in hand meanwhile stays in hand.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..errors import RequestError
from .store import Answer, Statement, Store, StoreDown, StoreFull, told_of_text
from .tables import StoreError, migrate

WRITERS, READERS = 8, 4  # connections, of one process
TRIES = 10
COLLIDED = ("40P01", "40001", "55P03")  # deadlock, serialization, lock not available
FULL = ("53100",)
UNREADABLE = ("22021", "22P05", "22001")  # what no text of the database can hold, or not in this length
NEEDED = "a PostgreSQL database needs psycopg; install it with: pip install 'darkroom-diffusion[postgres]'"

# No such database, no right; before there is a connection there is no code.
_REFUSED = re.compile(r"FATAL: .*(does not exist|authentication failed|no pg_hba|no password|permission|not permitted)")
_SCHEME = re.compile(r"postgres(ql)?(\+psycopg)?://")


class PostgresStore(Store):
    """Open a database by its address, and bring it to the newest version.

    Raises StoreError for one that is newer or refuses us, and StoreDown where there is none.
    """

    shared = True

    def __init__(self, url: str) -> None:
        if not _SCHEME.match(url):
            raise StoreError(f"--database is {_safe(url)!r}; give postgresql://USER@HOST/NAME")
        try:
            self._engine = create_engine(
                _SCHEME.sub("postgresql+psycopg://", url, count=1),
                pool_size=WRITERS + READERS,
                max_overflow=0,
                pool_timeout=10,
                pool_pre_ping=True,
                connect_args={
                    "connect_timeout": 5,
                    "application_name": f"darkroom {os.getpid()}",
                    "keepalives_idle": 10,
                    "keepalives_interval": 5,
                    "keepalives_count": 3,
                    "tcp_user_timeout": 20_000,
                    "options": "-c statement_timeout=30s -c idle_in_transaction_session_timeout=60s -c timezone=UTC",
                },
            )
        except ModuleNotFoundError:
            raise StoreError(NEEDED) from None
        except (SQLAlchemyError, ValueError) as error:
            raise StoreError(f"--database is {_safe(url)!r}, which can't be read: {error}") from None
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="store-writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._write_now(migrate)

    async def write(self, statement: Statement[Answer]) -> Answer:
        """What `statement` answers, once what it wrote is on the database's disk.

        It may run more than once. Raises StoreFull and StoreDown.
        """
        return await asyncio.get_running_loop().run_in_executor(self._writers, self._write_now, statement)

    async def read(self, statement: Statement[Answer]) -> Answer:
        """What `statement` answers, from a snapshot of the database as it was when it began. Raises StoreDown."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read_now, statement)

    def close(self) -> None:
        """Finish what is begun, and close."""
        self._writers.shutdown()
        self._readers.shutdown()
        self._engine.dispose()

    def _write_now(self, statement: Statement[Answer]) -> Answer:
        for again in range(TRIES):
            try:
                with self._engine.begin() as connection:
                    return statement(connection)
            except (SQLAlchemyError, UnicodeEncodeError) as error:
                if _code(error) not in COLLIDED:
                    raise _told(error) from error
                time.sleep(0.01 * 2**again)
        raise StoreDown("the database is too busy; try again in a moment")

    def _read_now(self, statement: Statement[Answer]) -> Answer:
        options: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        try:
            with self._engine.connect().execution_options(**options) as connection:
                return statement(connection)
        except (SQLAlchemyError, UnicodeEncodeError) as error:
            raise _told(error) from error


def _code(error: BaseException) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def _told(error: SQLAlchemyError | UnicodeEncodeError) -> BaseException:
    """A fault of the database in our words."""
    code = _code(error)
    if code in FULL:
        return StoreFull("the database's disk is full; nothing was written")
    if code in UNREADABLE or isinstance(error, UnicodeEncodeError) or "NUL" in str(getattr(error, "orig", "")):
        return RequestError("a text holds what the database can't: a NUL, half a character, or too much")
    if isinstance(error, PoolTimeout):
        return StoreDown("the database is too busy; try again in a moment")
    if (code or "")[:2] in ("28", "3D", "3F", "42") or _REFUSED.search(told_of_text(error)):
        return StoreError(f"the database refuses us: {told_of_text(error)}")
    if isinstance(error, OperationalError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return StoreDown(f"the database can't be reached: {told_of_text(error)}")
    return error


def _safe(url: str) -> str:
    """An address without its password."""
    return re.sub(r"(?<=:)[^:@/]*(?=@)", "***", url)[:120]
