"""A list of prompts drawn by engines on this machine: whole files, resumable, byte for byte what each line gives alone.

The engines are the server's (`serve.engine_process`), processes of their own: one that dies or hangs is started again,
what it had is drawn alone, and a line that ends three of them alone has failed. A file that is there is whole and done:
there is no other state, so a batch that was ended in any way goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, Error, ImageError, RequestError
from ..files import FULL, owned, read_json
from ..formats.picture import write_atomically
from ..serve.engines import COMMAND, DEATHS_ALONE, EngineLink, deaths_after, engines_for, given_up
from ..serve.messages import Message
from .lines import Line, Refused, drawn_already, read_lines

MARKER = "batch.json"  # in the folder: what its pictures are drawn with
FAILED = "failed.jsonl"
AHEAD = 4  # ticks' worth of lines that an engine has, so that short ones make room for long ones
NO_SNAPSHOTS = 1e9  # seconds

log = logging.getLogger(__name__)


class DiskFull(Error):
    """The disk is full: what was drawn before is there, and the batch can be gone on with."""


class Stopped(Error):
    """Engines can't be started at all."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What all lines are drawn with.

    Attributes:
        model, vae, lora_dir: as `darkroom.load` takes them.
        words: name -> file of the learned words that prompts may call.
        max_rows: U-Net rows of a tick; None: what suits the device.
        engine_command: another program of the engines' protocol, for tests.
    """

    model: str | None = None
    vae: str | None = None
    lora_dir: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    dtype: str = "auto"
    max_rows: int | None = None
    engine_command: Sequence[str] = COMMAND


@dataclass
class Summary:
    """What became of a batch. `steps`: intervals between noise levels that were crossed in this run."""

    drawn: int = 0
    found: int = 0  # that were there
    failed: int = 0
    steps: int = 0


@dataclass(eq=False)
class _Seat:
    link: EngineLink
    aboard: dict[str, Line] = field(default_factory=dict)


Tell = Callable[[Line, str | None], None]  # a line is drawn (None), or can't be, with the sentence


class Crew:
    """Engines on this machine that draw lines into a folder. Belongs to one event loop.

    Args:
        workers: engines; None: what suits model and device.
        tell: hears of every line once.
        stepped: hears how many steps were crossed.
        cores: of the processor, for all engines; None: all that this process may use.
    """

    def __init__(
        self,
        drawing: Drawing,
        folder: Path,
        workers: int | None,
        tell: Tell,
        stepped: Callable[[int], None] = lambda count: None,
        cores: int | None = None,
    ) -> None:
        self.drawing, self.folder, self.workers = drawing, folder, workers
        self.tell, self.stepped = tell, stepped
        there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.cores = cores or there
        self._seats: list[_Seat] = []
        self._waiting: deque[Line] = deque()
        self._deaths: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = 0  # lines that were not told of yet
        self._changed = asyncio.Event()
        self._fault: Error | None = None
        self.description: Mapping[str, Any] | None = None

    async def start(self) -> None:
        """Start the engines, and wait for the model.

        Raises CheckpointError where it can't be loaded, RequestError where the folder's pictures are of another one.
        """
        for _ in range(self.workers or 1):
            self._seat(self.cores // (self.workers or 1))
        await self._until(lambda: self.description is not None)
        assert self.description is not None
        _check_marker(self.folder, self.drawing, self.description["hash"])

    async def stop(self) -> None:
        """End the engines."""
        await asyncio.gather(*(seat.link.stop(5.0) for seat in self._seats))

    async def draw(self, lines: Iterable[Line]) -> None:
        """Draw lines, all of them told of when this returns. Raises DiskFull, and Error where no engine lives."""
        before = len(self._waiting)
        self._waiting.extend(lines)
        self._left += len(self._waiting) - before
        for seat in self._seats:
            self._fill(seat)
        await self._until(lambda: not self._left)

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            if self._fault is not None:
                raise self._fault
            await self._changed.wait()
            self._changed.clear()

    def _seat(self, threads: int) -> None:
        start = {
            "device": self.drawing.device,
            "dtype": self.drawing.dtype,
            "threads": max(1, threads) if self.drawing.device in ("auto", "cpu") else None,
            "snapshot_every": NO_SNAPSHOTS,
            "max_rows": self.drawing.max_rows,
        }
        link = EngineLink(str(len(self._seats)), start, self._hear, self._died, self.drawing.engine_command)
        self._seats.append(_Seat(link))
        link.begin()

    def _of(self, link: EngineLink) -> _Seat:
        return next(seat for seat in self._seats if seat.link is link)

    # --- handing out

    def _fill(self, seat: _Seat) -> None:
        """Give an engine lines while it has room; one that an engine died with goes alone."""
        if not seat.link.models or self._fault is not None:
            return
        (told,) = seat.link.models.values()
        while self._waiting and not any(self._deaths[id] for id in seat.aboard):
            line = self._waiting[0]
            crowded = sum(_width(one, told) for one in (line, *seat.aboard.values())) > AHEAD * told["budget"]
            if seat.aboard and (crowded or self._deaths[line.id]):
                break
            self._waiting.popleft()
            seat.aboard[line.id] = line
            seat.link.send(
                "submit",
                id=line.id,
                claim=0,
                job=line.id,
                index=0,
                model="model",
                wanted={"request": dict(line.request)},
                words=dict(self.drawing.words),
                roles=[],
                rank=float(line.number),
                snapshot=False,
                watched=False,
            )

    # --- what engines tell

    async def _hear(self, link: EngineLink, message: Message) -> None:
        seat, kind = self._of(link), message.kind
        if kind == "ready":
            link.send(
                "load", name="model", path=self.drawing.model, vae=self.drawing.vae, lora_dir=self.drawing.lora_dir
            )
        elif kind == "loaded":
            self.description = message["description"]
            if self.workers is None:
                self.workers = engines_for(self.description, self.cores)
                if self.workers > 1:
                    link.start["threads"] = 1
                    link.send("threads", count=1)
                    for _ in range(self.workers - 1):
                        self._seat(1)
            self._fill(seat)
            self._changed.set()
        elif kind == "failed_load":
            self._end(CheckpointError(message["error"]))
        elif kind == "progress":
            self.stepped(len(message["items"]))
        elif kind == "finished":
            if (line := seat.aboard.pop(message["id"], None)) is not None:
                self._spawn(self._keep(line, message.blobs[0]))
            self._fill(seat)
        elif kind == "failed" and (line := seat.aboard.pop(message["id"], None)) is not None:
            if message.fields.get("retry", False):
                self._waiting.appendleft(line)
            else:
                self._tell(line, message["error"])
            self._fill(seat)

    async def _keep(self, line: Line, data: bytes) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(None, keep_picture, self.folder / line.place, data)
        except Error as error:
            return self._end(error)
        self._tell(line, None)

    def _tell(self, line: Line, error: str | None) -> None:
        self._left -= 1
        self._deaths.pop(line.id, None)
        self.tell(line, error)
        self._changed.set()

    def _end(self, fault: Error) -> None:
        self._fault = self._fault or fault
        self._changed.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _died(self, link: EngineLink, reason: str) -> None:
        seat = self._of(link)
        aboard, seat.aboard = seat.aboard, {}
        if self.description is None and link.restarts >= DEATHS_ALONE:
            self._end(Stopped(f"no engine could be started ({reason}); what they wrote stands above"))
        for line in reversed(aboard.values()):
            self._deaths[line.id] = deaths_after(self._deaths[line.id], alone=len(aboard) == 1)
            if self._deaths[line.id] > DEATHS_ALONE:
                self._tell(line, given_up(reason))
            else:
                self._waiting.appendleft(line)


def _width(line: Line, told: Mapping[str, Any]) -> float:
    """What a line adds to a tick, about: rows x megapixels."""
    width, height = (
        line.request.get(name) or usual for name, usual in zip(("width", "height"), told["size"], strict=True)
    )
    return float(2 * width * height / 1e6)


def keep_picture(path: Path, data: bytes) -> None:
    """A finished picture's file, whole or not at all, and on disk. Raises DiskFull and ImageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data, overwrite=True)
    except (ImageError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in FULL:
            raise DiskFull("the disk is full; make room, and start the same command again to go on") from None
        raise error if isinstance(error, Error) else ImageError(f"can't write {str(path)!r}: {error}") from None


def _check_marker(folder: Path, drawing: Drawing, hash: str) -> None:
    """Note which model a folder's pictures are drawn with. Raises RequestError where it is another one."""
    now = {"source": drawing.model, "model": hash, "vae": drawing.vae}
    path = folder / MARKER
    if not path.exists():
        keep_picture(path, json.dumps(now).encode())
        return
    before = read_json(path, error=RequestError)
    if (before.get("model"), before.get("vae")) != (hash, drawing.vae):
        raise RequestError(
            f"the pictures in {str(folder)!r} are of the model {before.get('model')} (--vae {before.get('vae')}), and "
            f"this one is {hash} (--vae {drawing.vae}); choose another folder"
        )


class Batch:
    """A batch's folder and what of its list is left to draw. Held against other processes until `close`.

    Raises RequestError where the list or the folder can't be used, or another process draws into it.
    """

    def __init__(self, file: str, folder: Path) -> None:
        lines, refused = read_lines(file)
        self.folder = folder
        self.summary = Summary()
        self.left: list[Line] = []
        self._held = contextlib.ExitStack()
        self._held.enter_context(owned(folder, "the batch's folder", RequestError))
        self._failed = open(folder / FAILED, "w", encoding="utf-8")  # noqa: SIM115
        self._held.enter_context(self._failed)
        for one in refused:
            self._fail(one)
        for line in lines:
            try:
                if drawn_already(line, folder):
                    self.summary.found += 1
                else:
                    self.left.append(line)
            except RequestError as error:
                self._fail(Refused(line.number, line.id, str(error)))

    @property
    def total(self) -> int:
        """How many lines there are."""
        return self.summary.found + self.summary.failed + self.summary.drawn + len(self.left)

    def is_done(self, drawing: Drawing) -> bool:
        """Whether nothing is left, and the model was the same by name: then none needs to be loaded."""
        path = self.folder / MARKER
        return not self.left and path.exists() and read_json(path).get("source") == drawing.model

    def tell(self, line: Line, error: str | None) -> None:
        """A line is drawn, or can't be."""
        if error is None:
            self.summary.drawn += 1
        else:
            self._fail(Refused(line.number, line.id, error))

    def _fail(self, one: Refused) -> None:
        self.summary.failed += 1
        self._failed.write(json.dumps({"line": one.number, "id": one.id, "error": one.error}) + "\n")
        self._failed.flush()

    def close(self) -> None:
        """Leave the folder to others."""
        if not self.summary.failed:
            (self.folder / FAILED).unlink(missing_ok=True)
        self._held.close()


async def draw_here(
    batch: Batch, drawing: Drawing, workers: int | None, stepped: Callable[[int], None] = lambda count: None
) -> None:
    """Draw what is left of a batch with engines on this machine."""

    def count(steps: int) -> None:
        batch.summary.steps += steps
        stepped(steps)

    if batch.is_done(drawing):
        return
    crew = Crew(drawing, batch.folder, workers, batch.tell, count)
    try:
        await crew.start()
        await crew.draw(batch.left)
    finally:
        await crew.stop()
