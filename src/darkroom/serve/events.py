"""Who watches which jobs, and what they have not been told yet.

State, not a log: a watcher learns that a job changed, or how far it is, and reads the present state; what happened in
between it need not know. So nothing is kept for those who come back, and none can miss a job's end.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

GLANCE = 5.0  # seconds after a question for which its answer is kept up to date
CHANGED, PROGRESS, PREVIEW = KINDS = "changed", "progress", "preview"


@dataclass(eq=False)
class Watcher:
    """One connection's unread news: by job, the kinds of them."""

    key: str | None  # whose jobs; None: everybody's
    job: str | None  # one job; None: all
    kinds: Collection[str]  # of news that are wanted
    _news: dict[str, set[str]] = field(default_factory=dict)
    _some: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, job: str, kind: str) -> None:
        """Note news; the same twice is once."""
        self._news.setdefault(job, set()).add(kind)
        self._some.set()

    async def next(self, timeout: float | None) -> tuple[str, set[str]] | None:
        """The next job with news, and which kinds; None after `timeout` seconds without."""
        try:
            async with asyncio.timeout(timeout):
                await self._some.wait()
        except TimeoutError:
            return None
        job = next(iter(self._news))
        kinds = self._news.pop(job)
        if not self._news:
            self._some.clear()
        return job, kinds


@dataclass
class Live:
    """What is known of a job in progress beside its rows: how far each picture is, and how the newest one looks."""

    key: str
    steps: dict[int, tuple[int, int]] = field(default_factory=dict)  # picture -> (step, steps)
    previews: dict[int, bytes] = field(default_factory=dict)  # index -> JPEG, the newest last
    preview_count: int = 0

    @property
    def preview(self) -> bytes | None:
        """The newest preview."""
        return self.previews[self.preview_index] if self.previews else None

    @property
    def preview_index(self) -> int:
        """Whose it is."""
        return next(reversed(self.previews), 0)


class Hub:
    """Brings news of jobs to those who watch them. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self.live: dict[str, Live] = {}
        self._watchers: set[Watcher] = set()
        self._looks: dict[str, float] = {}  # key -> until when previews of its jobs are wanted
        self._glances: dict[str, float] = {}  # job -> until when its steps are wanted

    def changed(self, job: str, key: str, ended: bool = False) -> None:
        """A job is in another state, or has another picture."""
        if ended:
            self.live.pop(job, None)
        self._tell(job, key, CHANGED)

    def steps(self) -> dict[str, dict[int, int]]:
        """How far pictures in progress are: job -> picture -> step."""
        return {job: {i: step for i, (step, _) in live.steps.items()} for job, live in self.live.items()}

    def progress(self, job: str, key: str, index: int, step: int, steps: int) -> None:
        """A picture has crossed another step."""
        self.live.setdefault(job, Live(key)).steps[index] = (step, steps)
        self._tell(job, key, PROGRESS)

    def preview(self, job: str, key: str, index: int, jpeg: bytes) -> None:
        """How a picture looks so far; replaces the one before."""
        live = self.live.setdefault(job, Live(key))
        live.previews.pop(index, None)
        live.previews[index] = jpeg
        live.preview_count += 1
        self._tell(job, key, PREVIEW)

    def landed(self, job: str, index: int) -> None:
        """A picture is in progress no more: its row tells how far it is. With the last of a job nothing of it stays."""
        if (live := self.live.get(job)) is not None:
            live.steps.pop(index, None)
            live.previews.pop(index, None)
            if not live.steps and not live.previews:
                del self.live[job]

    @contextmanager
    def watching(self, key: str | None, job: str | None = None, kinds: Collection[str] = KINDS) -> Iterator[Watcher]:
        """A watcher of one job, or of all of a key's."""
        watcher = Watcher(key, job, kinds)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def look(self, key: str, seconds: float) -> None:
        """Somebody asks now and then how a key's jobs look, instead of watching: previews are wanted for a while."""
        self._looks[key] = max(self._looks.get(key, 0.0), time.monotonic() + seconds)

    def glance(self, job: str) -> None:
        """Somebody asked how far a job is, and may ask again."""
        self._glances[job] = time.monotonic() + GLANCE

    def looked_at(self, kind: str) -> tuple[set[str], set[str], bool] | None:
        """The jobs, and the keys all of whose jobs, whose news of a kind are wanted, and whether everybody's are; None
        where none are. Whoever waits for a job's end wants its steps too."""
        now = time.monotonic()
        self._glances = {job: until for job, until in self._glances.items() if until > now}
        self._looks = {key: until for key, until in self._looks.items() if until > now}
        those = [w for w in self._watchers if kind != PREVIEW or PREVIEW in w.kinds]
        found = {w.job for w in those if w.job is not None} | (set() if kind == PREVIEW else set(self._glances))
        keys = {w.key for w in those if w.job is None and w.key is not None} | set(self._looks)
        all = any(w.job is None and w.key is None for w in those)
        return (found, keys, all) if found or keys or all else None

    def watched(self, job: str, key: str) -> bool:
        """Whether somebody wants to see a job's previews."""
        if self._looks.get(key, 0.0) > time.monotonic():
            return True
        return any(PREVIEW in watcher.kinds and _concerns(watcher, job, key) for watcher in self._watchers)

    def _tell(self, job: str, key: str, kind: str) -> None:
        for watcher in self._watchers:
            if kind in watcher.kinds and _concerns(watcher, job, key):
                watcher.tell(job, kind)


class Awaited:
    """The jobs that live connections wait for, so that a repeated request takes up one whose connection broke.

    A request's `state` (the guard's) notes its job. Written in the database's thread, where a job is admitted and must
    be known as awaited before the next statement looks, and in the loop's.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def begin(self, state: MutableMapping[str, Any], job: str) -> None:
        """A request waits for a job, and for no other that it may have waited for."""
        self.end(state)
        with self._lock:
            state["awaits"] = job
            self._counts[job] += 1

    def end(self, state: MutableMapping[str, Any]) -> None:
        """A request is over."""
        with self._lock:
            if (job := state.pop("awaits", None)) is not None:
                self._counts[job] -= 1
                if not self._counts[job]:
                    del self._counts[job]

    def __contains__(self, job: object) -> bool:
        return job in self._counts


def _concerns(watcher: Watcher, job: str, key: str) -> bool:
    return watcher.job == job if watcher.job is not None else watcher.key is None or watcher.key == key
