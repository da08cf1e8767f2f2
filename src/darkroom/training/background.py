"""What goes on beside the steps of a run: signals that become questions, batches and checkpoints in other threads."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..errors import check_room

PATIENCE = 1.0  # seconds after an interruption in which another one is the same


def endings() -> list[signal.Signals]:
    """The signals that ask a process to end: SIGINT, SIGTERM, and SIGHUP unless it shall outlive its terminal."""
    found = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup; not on Windows
        found.append(signal.SIGHUP)
    return found


_stop: ContextVar[Callable[[], bool] | None] = ContextVar("darkroom.training.stop", default=None)  # of this thread


@contextmanager
def stopped_by(question: Callable[[], bool]) -> Iterator[None]:
    """While this lasts, what this thread does that is `interruptible` stops as soon as `question` is answered by yes,
    as it does after a signal."""
    token = _stop.set(question)
    try:
        yield
    finally:
        _stop.reset(token)


def stop_asked() -> bool:
    """Whether `stopped_by` asks to stop."""
    question = _stop.get()
    return question is not None and question()


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the signals of `endings` into a question, so that a step is finished and saved.

    The same signal again kills, but not within a second of the first: one Ctrl-C may come from the terminal and from
    the parent process.
    """
    asked = threading.Event()
    first = 0.0

    def ask(number: int, frame: Any) -> None:
        nonlocal first
        if not asked.is_set():
            first = time.monotonic()
            asked.set()
        elif time.monotonic() - first > PATIENCE:
            signal.signal(number, old[number] or signal.SIG_DFL)
            os.kill(os.getpid(), number)

    old: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        old = {n: signal.signal(n, ask) for n in endings()}
    try:
        yield lambda: asked.is_set() or stop_asked()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def prefetch(make: Callable[[int], Any], start: int, end: int, depth: int = 3) -> Iterator[Iterator[Any]]:
    """make(start), make(start + 1), ... up to end, each made in another thread while earlier ones are used."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    closing = threading.Event()

    def put(item: tuple[Any, BaseException | None]) -> bool:
        while not closing.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for step in range(start, end):
                if not put((make(step), None)):
                    return
        except BaseException as error:
            put((None, error))

    def take() -> Iterator[Any]:
        for _ in range(start, end):
            item, error = ready.get()
            if error is not None:
                raise error
            yield item

    check_room()
    thread = threading.Thread(target=work, daemon=True, name="darkroom-data")
    thread.start()
    try:
        yield take()
    finally:
        closing.set()
        thread.join()


class Aside:
    """Makes calls in another thread, one at a time. As a context manager it leaves when the last one is done.

    An error in a call is raised by the next `check` or `wait`.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "darkroom-save")
        self._last: Future[object] | None = None

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def do(self, call: Callable[[], object]) -> None:
        """Make a call, after the one before it."""
        self.wait()
        self._last = self._pool.submit(call)

    def check(self) -> None:
        """Raise the error of the last call, if it has come to one."""
        if self._last is not None and self._last.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the last call, and raise its error."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
