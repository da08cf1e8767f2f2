"""What an engine holds: pictures in progress, and those that wait, as requests, until there is room.

A prepared job holds its texts' embeddings, its latent, its pictures as tensors: 130 kB of the embedded model and more
of larger ones. So only as many are prepared as a few ticks move; thousands may wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from threading import Lock

from ..errors import RequestError
from ..request import Request
from .job import Inputs, Job


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A request that waits: all that its job is made of."""

    id: str
    request: Request  # with its seed
    inputs: Inputs
    output: str
    snapshot: bytes | None


class Queue:
    """Jobs by id, in their order: by rank, then by arrival. Any thread may call; no method takes long."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._numbers = count()
        self._places: dict[str, tuple[float, int]] = {}  # of all
        self._admitted: dict[str, Job] = {}
        self._waiting: dict[str, Asked | Job] = {}
        self._heap: list[tuple[tuple[float, int], str]] = []  # of those that wait, and of some that are gone

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, id: object) -> bool:
        return id in self._places

    def ids(self) -> list[str]:
        """All ids, in order."""
        with self._lock:
            return sorted(self._places, key=self._places.__getitem__)

    def add(self, given: Asked | Job, rank: float | None, admit: bool) -> None:
        """Take in a request, or a job, which can be admitted at once. RequestError for a known id."""
        with self._lock:
            if given.id in self._places:
                raise RequestError(f"job {given.id!r} is already in progress; abort it first")
            number = next(self._numbers)
            place = self._places[given.id] = (float(number) if rank is None else rank, number)
            if admit and isinstance(given, Job):
                self._admitted[given.id] = given
            else:
                self._waiting[given.id] = given
                heapq.heappush(self._heap, (place, given.id))

    def get(self, id: str) -> Asked | Job | None:
        """What is held of an id."""
        with self._lock:
            return self._admitted.get(id) or self._waiting.get(id)

    def replace(self, job: Job) -> bool:
        """Put a job in place of what is held of its id, and admit it; False where that is gone."""
        with self._lock:
            if job.id not in self._places:
                return False
            self._waiting.pop(job.id, None)
            self._admitted[job.id] = job
            return True

    def remove(self, id: str) -> bool:
        """Forget an id; whether it was known."""
        with self._lock:
            self._admitted.pop(id, None)
            self._waiting.pop(id, None)
            if len(self._heap) > 64 + 2 * len(self._waiting):  # most are gone: let go of them
                self._heap = [entry for entry in self._heap if entry[1] in self._waiting]
                heapq.heapify(self._heap)
            return self._places.pop(id, None) is not None

    def admitted(self) -> list[Job]:
        """The prepared jobs, in order."""
        with self._lock:
            return sorted(self._admitted.values(), key=lambda job: self._places[job.id])

    def next_waiting(self) -> Asked | Job | None:
        """The first that waits. It stays until `replace` or `remove`."""
        with self._lock:
            while self._heap:
                place, id = self._heap[0]
                if id in self._waiting and self._places.get(id) == place:
                    return self._waiting[id]
                heapq.heappop(self._heap)
            return None


class Jobs(Mapping[str, Job]):
    """A queue's jobs by id, in order. One that waits is prepared to be looked at, each time."""

    def __init__(self, queue: Queue, prepared: Callable[[Asked], Job]) -> None:
        self._queue, self._prepared = queue, prepared

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[str]:
        return iter(self._queue.ids())

    def __contains__(self, id: object) -> bool:
        return id in self._queue

    def __getitem__(self, id: str) -> Job:
        if (found := self._queue.get(id)) is None:
            raise KeyError(id)
        return found if isinstance(found, Job) else self._prepared(found)
