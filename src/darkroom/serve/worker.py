"""A worker: the server's dispatcher and engines without its HTTP, drawing from a database that others take jobs into.

It may be started and ended at any time, as often as there are machines. What it has when it is killed another takes
over once its lease has run out; ended in order, it puts everything back first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable

from ..errors import Error
from .data import Data, DataError
from .dispatcher import Dispatcher
from .events import Hub
from .metrics import Metrics
from .models import ModelIndex
from .options import ServeOptions
from .run import SECONDS, log_to_stderr
from .server import open_store, same_folder
from .store import StoreDown

PATIENCE = 60.0  # seconds between looks into the models' folder

log = logging.getLogger(__name__)


class Worker:
    """A worker's parts. Raises Error where the data folder, the database or the models can't be used."""

    def __init__(self, options: ServeOptions) -> None:
        index = ModelIndex(options.models, options.model)
        self.data = Data(options.data, shared=True)
        try:
            self.store = open_store(options)
        except BaseException:
            self.data.close()
            raise
        self.dispatcher = Dispatcher(self.store, self.data, Hub(), index, options, Metrics())
        self._index = index
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See that the folder is the database's, and start the engines. Raises DataError."""
        await same_folder(self.store, self.data)
        await self.dispatcher.start()
        self._looking = asyncio.create_task(self._look_around())

    async def stop(self, seconds: float = SECONDS) -> None:
        """Let engines keep what they are at, put it back, and close."""
        if self._looking is not None:
            self._looking.cancel()
        await self.dispatcher.stop(seconds)
        await asyncio.get_running_loop().run_in_executor(None, self.store.close)
        self.data.close()

    async def _look_around(self) -> None:
        while True:
            await asyncio.sleep(PATIENCE)
            try:
                await asyncio.get_running_loop().run_in_executor(None, self._index.scan)
            except Error as error:
                log.warning("looking around failed: %s", error)


def run(options: ServeOptions, announce: Callable[[Worker], None]) -> int:
    """Draw until a signal; the exit code. Raises Error where the worker can't begin.

    announce: called once when engines are being started.
    """
    if options.database is None:
        raise DataError("a worker needs a database that others share; give --database postgresql://USER@HOST/NAME")
    log_to_stderr()
    return asyncio.run(_work(options, announce))


async def _work(options: ServeOptions, announce: Callable[[Worker], None]) -> int:
    loop, ending = asyncio.get_running_loop(), asyncio.Event()

    def end(number: int) -> None:
        if ending.is_set():
            os._exit(128 + number)  # asked twice: at once
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    worker = None
    while worker is None and not ending.is_set():
        try:
            worker = Worker(options)
        except StoreDown as error:  # it may start before the database does
            log.warning("%s; trying again until it can", error)
            await asyncio.sleep(1.0)
    if worker is None:
        return 0
    try:
        await worker.start()
    except Error:
        await worker.stop(1.0)
        raise
    announce(worker)
    await ending.wait()
    await worker.stop()
    return 0
