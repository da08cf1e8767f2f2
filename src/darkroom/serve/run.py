"""Run a server in this process until a signal ends it.

uvicorn's own handling of signals waits for open streams for ever and ignores the second signal; ours closes admission,
ends streams, lets engines keep what they are at, and goes within ten seconds; a second signal goes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn

from ..errors import Error
from .app import make_app
from .data import DataError
from .options import ServeOptions
from .server import Server

SECONDS = 8.0  # that engines have to keep what they are at
CONNECTIONS = 1000


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as a line."""
        told = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name}
        message = record.getMessage()
        if record.name.endswith(".access"):
            return json.dumps(told | json.loads(message))
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return json.dumps(told | {"message": message})


class _Runner(uvicorn.Server):
    """uvicorn without its signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Ours are there."""
        yield


def run(options: ServeOptions, announce: Callable[[Server], None]) -> int:
    """Serve until a signal; the exit code. Raises Error where the server can't begin.

    announce: called once when requests are answered.
    """
    log_to_stderr()
    return asyncio.run(_serve(options, announce))


def log_to_stderr() -> None:
    """Write our log as JSON lines."""
    log = logging.getLogger("darkroom")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)


async def _serve(options: ServeOptions, announce: Callable[[Server], None]) -> int:
    server = Server(options)
    config = uvicorn.Config(
        make_app(server),
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=options.behind_proxy,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=64 * 1024,
    )
    runner = _Runner(config)
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()

    def end(number: int, frame: FrameType | None = None) -> None:
        if ending.is_set():
            os._exit(128 + number)  # asked twice: at once
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    try:
        sock = _bind(config)
    except OSError as error:
        server.data.close()
        server.store.close()
        raise DataError(
            f"{options.host}:{options.port} can't be listened on: {error.strerror}; choose another --port"
        ) from None
    options.port = sock.getsockname()[1]
    try:
        await server.start()
    except Error:
        await server.stop(1.0)
        raise
    serving = asyncio.create_task(runner.serve([sock]))
    while not runner.started and not serving.done():
        await asyncio.sleep(0.01)
    announce(server)
    waiting = asyncio.create_task(ending.wait())
    await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
    began = time.monotonic()
    server.closing.set()
    await server.stop(SECONDS)
    runner.should_exit = True
    try:
        await asyncio.wait_for(serving, max(0.5, SECONDS + 1 - (time.monotonic() - began)))
    except TimeoutError:
        serving.cancel()
    return 0


def _bind(config: uvicorn.Config) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
        sock.listen(2048)
    except OSError:
        sock.close()
        raise
    sock.set_inheritable(False)
    return sock
