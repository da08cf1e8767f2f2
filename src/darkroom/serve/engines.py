"""An engine's process as the web process sees it: started, spoken to, and killed where it hangs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import RequestError
from .messages import Message, receive

COMMAND = (sys.executable, "-m", "darkroom.serve.engine_process")
GRACE = 30.0  # seconds over what it expects that a phase may take
DEATHS_ALONE = 3  # so many with nothing else aboard, and a picture is given up
SMALL = 100_000_000  # parameters below which a processor's core does best with an engine of its own
BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)

log = logging.getLogger(__name__)


@dataclass
class EngineLink:
    """One engine's process.

    Attributes:
        alive: it has said that it is ready.
        models: the descriptions of those it has loaded, by name.
    """

    name: str
    start: dict[str, Any]  # the first message's fields: device, dtype, threads, ...
    hear: Callable[[EngineLink, Message], Awaitable[None]]
    died: Callable[[EngineLink, str], Awaitable[None]]
    command: Sequence[str] = COMMAND
    alive: bool = False
    stopping: bool = False
    restarts: int = 0
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    loading: dict[str, float] = field(default_factory=dict)  # model -> when it was asked for
    failed_loads: dict[str, str] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    pid: int | None = None

    def __post_init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._deadline = float("inf")
        self._reason = ""
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._numbers = itertools.count()

    def begin(self) -> None:
        """Start the process, and start it again whenever it ends."""
        self._task = asyncio.create_task(self._keep_alive(), name=f"engine {self.name}")

    def send(self, kind: str, *blobs: bytes, **fields: Any) -> None:
        """Send a message; it is lost where the process has just died, as everything that it had is."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(Message(kind, fields, blobs).packed())

    async def ask(self, name: str, *blobs: bytes, model: str, seconds: float, arguments: Mapping[str, Any]) -> Message:
        """Its answer to a question beside the pictures. Raises RequestError where none comes."""
        number = next(self._numbers)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self.send("call", *blobs, call=number, name=name, model=model, arguments=arguments)
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise RequestError("the engine did not answer; try again in a moment") from None
        finally:
            self._asked.pop(number, None)

    def kill(self, reason: str) -> None:
        """End the process at once."""
        self._reason = reason
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self, seconds: float) -> None:
        """Let it keep what it is at, and end it."""
        self.stopping = True
        self.send("stop")
        if self._task is not None:
            try:
                await asyncio.wait_for(asyncio.shield(self._task), seconds)
            except TimeoutError:
                self.kill("stopped")
                self._task.cancel()

    async def _keep_alive(self) -> None:
        failures = 0
        while not self.stopping:
            began = time.monotonic()
            try:
                reason = await self._run_once()
            except Exception as error:  # no process, no memory: as if it had ended
                log.exception("engine %s can't be run", self.name)
                reason = f"it can't be run: {error}"
            if self.stopping:
                return
            failures = failures + 1 if time.monotonic() - began < 60 else 1
            wait = BACKOFF[min(failures, len(BACKOFF)) - 1]
            self.restarts += 1
            log.warning("engine %s ended (%s); it starts again in %.0f s", self.name, reason, wait)
            await self.died(self, reason)
            await asyncio.sleep(wait)

    async def _run_once(self) -> str:
        """Start the process and hear it to its end; why it ended."""
        ours, theirs = socket.socketpair()
        threads = self.start.get("threads")
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        self._reason = ""
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            str(theirs.fileno()),
            pass_fds=(theirs.fileno(),),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for us; it may come before the engine can ignore it
        )
        theirs.close()
        self.pid = self._process.pid
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=2**22)
        self.send("start", **self.start)
        self._deadline = time.monotonic() + 120
        watchdog = asyncio.create_task(self._watch_clock())
        try:
            while (message := await receive(reader)) is not None:
                if message.kind == "phase":
                    self._deadline = time.monotonic() + GRACE + message["seconds"]
                    continue
                if message.kind == "stats":
                    self._deadline = time.monotonic() + GRACE + 60
                    self.stats = dict(message.fields)
                elif message.kind == "answer":
                    if (asked := self._asked.get(message["call"])) is not None and not asked.done():
                        asked.set_result(message)
                elif message.kind == "ready":
                    self.alive = True
                elif message.kind == "loaded":
                    self.models[message["name"]] = message["description"]
                    self.loading.pop(message["name"], None)
                elif message.kind == "unloaded":
                    self.models.pop(message["name"], None)
                elif message.kind == "failed_load":
                    self.loading.pop(message["name"], None)
                    self.failed_loads[message["name"]] = message["error"]
                await self.hear(self, message)
        except ValueError as error:
            self.kill(f"it said what can't be read: {error}")
        finally:
            watchdog.cancel()
            self.alive = False
            self._writer.close()
            self.models.clear()
            self.loading.clear()
            if self._process.returncode is None:
                try:
                    await asyncio.wait_for(self._process.wait(), 5 if self.stopping else 1)
                except TimeoutError:
                    self.kill(self._reason or "it closed its line")
                    await self._process.wait()
        return self._reason or _ended(self._process.returncode)

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            if time.monotonic() > self._deadline:
                self.kill("it hung")
                return


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit {code}"


def deaths_after(deaths: int, alone: bool) -> int:
    """How many deaths a picture has behind it once its engine died again; beyond `DEATHS_ALONE` it is given up.

    The first says only that one of those aboard may have been the cause: from then on it is drawn alone.
    """
    return max(deaths, 1) + alone


def given_up(reason: str) -> str:
    """What is said of such a picture."""
    return f"drawing it ended the engine {DEATHS_ALONE} times ({reason})"


def engines_for(description: Mapping[str, Any], cores: int) -> int:
    """How many engines suit a model where nobody says: on a processor one of one thread a core for a small one."""
    small = description["device"] == "cpu" and description["parameters"] < SMALL
    return max(cores, 1) if small else 1
