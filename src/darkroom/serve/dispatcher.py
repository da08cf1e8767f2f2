"""Hands pictures of the queue to engines, and brings back what they tell: files, rows, news.

An engine is given the pictures of lowest rank of the models that it holds, until it holds twice what fits into one of
its ticks. Pictures that an engine died with are drawn alone, until they are finished or given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..embedded import MODEL
from ..errors import Error, RequestError
from . import queue
from .data import Data, DataError
from .engines import COMMAND, EngineLink, engines_for
from .events import Hub
from .jobs import roles_in_order, wanted_for_engine
from .messages import Message
from .metrics import Metrics
from .models import Found, ModelIndex
from .options import ServeOptions
from .queue import Claimed
from .store import Store, StoreFull
from .tables import models

RENEW = 15.0  # seconds between words to the database that engines live
PROBE = 5.0  # seconds between looks whether a full disk has room again
TURN = 10.0  # seconds that a model with work runs before another takes its place in memory

FACTS = ("hash", "size", "task", "defaults", "sampler", "xl", "base", "words", "examples")  # that are shown of a model

log = logging.getLogger(__name__)


@dataclass
class Seat:
    """An engine, and what it has in hand."""

    link: EngineLink
    aboard: dict[str, Claimed] = field(default_factory=dict)
    turn: float = 0.0  # when the model that it draws with was loaded
    told_watched: set[str] = field(default_factory=set)
    wanted: str | None = None  # a model that there is no room for yet
    used: dict[str, float] = field(default_factory=dict)  # model -> when it was last needed


class Dispatcher:
    """Starts engines and keeps them busy. Belongs to the event loop's thread."""

    def __init__(
        self, store: Store, data: Data, hub: Hub, index: ModelIndex, options: ServeOptions, metrics: Metrics
    ) -> None:
        self.store, self.data, self.hub, self.index, self.options = store, data, hub, index, options
        self.metrics = metrics
        self.seats: list[Seat] = []
        self.descriptions: dict[str, dict[str, Any]] = {}  # by fingerprint, of all files that engines told of
        self.full = False  # the disk is
        self.stopping = False
        self._handing: set[str] = set()  # pictures on their way from the database to an engine, unless cancelled
        self._owed: set[str] = set()  # engines whose pictures must go back once the disk has room
        self._awake = asyncio.Event()
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._known: dict[str, asyncio.Event] = {}

    # --- from start to stop

    async def start(self) -> None:
        """Put back what an earlier server had in progress, and start the engines."""
        now = time.time()
        await self.store.write(lambda c: queue.died(c, None, now, "the server was killed"))
        for fingerprint, text in await self.store.read(lambda c: c.execute(models.select()).all()):
            self.descriptions[fingerprint] = json.loads(text)
        count = self.options.engines or 1
        for _ in range(count):
            self._seat()
        self._spawn(self._pump())

    def _seat(self) -> None:
        start = {
            "device": self.options.device,
            "dtype": self.options.dtype,
            "threads": self._threads(),
            "snapshot_every": self.options.snapshot_every,
            "max_rows": self.options.max_rows,
        }
        link = EngineLink(str(len(self.seats)), start, self._hear, self._died, self.options.engine_command or COMMAND)
        self.seats.append(Seat(link))
        link.begin()

    def _threads(self) -> int | None:
        cores = self.options.cores
        return None if self.options.device not in ("auto", "cpu") else max(1, cores // (self.options.engines or 1))

    async def stop(self, seconds: float) -> None:
        """Let engines keep what they are at, and put it back. Nothing is claimed any more."""
        self.stopping = True
        self._awake.set()
        await asyncio.gather(*(seat.link.stop(seconds) for seat in self.seats))
        tasks = [task for task in self._tasks if task.get_name() != "pump"]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        now = time.time()
        with contextlib.suppress(Error):
            await self.store.write(lambda c: queue.released(c, None, now))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the dispatcher failed: %s", error, exc_info=error)

    def wake(self) -> None:
        """There is something to hand out, or room for it."""
        self._awake.set()

    @property
    def ready(self) -> bool:
        """Whether an engine with a model is there."""
        return any(seat.link.alive and seat.link.models for seat in self.seats)

    # --- models

    async def describe(self, found: Found, seconds: float = 600.0) -> dict[str, Any]:
        """What is known of a model; it is loaded where that isn't known yet. Raises RequestError."""
        if (known := self.descriptions.get(found.fingerprint)) is not None:
            return known
        room = self.room
        if found.bytes > room:
            raise RequestError(
                f"the model {found.name!r} takes {found.bytes / 1e9:.1f} GB, and an engine's models may take "
                f"{room / 1e9:.1f}; start the server with more --model-memory, or fewer --engines"
            )
        event = self._known.setdefault(found.name, asyncio.Event())
        for seat in self.seats:
            seat.link.failed_loads.pop(found.name, None)
        seat = min(self.seats, key=lambda seat: len(seat.aboard))
        seat.wanted = found.name
        self.wake()
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            raise RequestError(f"the model {found.name!r} is not loaded yet; try again in a moment") from None
        if (known := self.descriptions.get(found.fingerprint)) is None:
            sentence = next(
                (s.link.failed_loads[found.name] for s in self.seats if found.name in s.link.failed_loads), ""
            )
            raise RequestError(f"the model {found.name!r} can't be used: {sentence or 'it changed meanwhile'}")
        return known

    def told(self, found: Found) -> dict[str, Any]:
        """A model as it is shown: whether there is room for it, how long loading it takes, and what engines told."""
        links = [seat.link for seat in self.seats]
        known = self.descriptions.get(found.fingerprint)
        loaded, loading = (any(found.name in group for group in groups) for groups in (
            [link.models for link in links], [link.loading for link in links],
        ))  # fmt: skip
        paces = [one["load_seconds"] / one["bytes"] for one in self.descriptions.values() if one.get("load_seconds")]
        seconds = (known or {}).get("load_seconds") or (found.bytes * sum(paces) / len(paces) if paces else None)
        return {
            "name": found.name,
            "bytes": found.bytes,
            "fits": found.bytes <= self.room,
            "state": "loaded" if loaded else "loading" if loading else "here",
            "seconds": seconds,
            **({} if known is None else {name: known.get(name) for name in FACTS}),
        }

    @property
    def room(self) -> float:
        """Bytes that an engine's models may take."""
        return self.options.model_memory / max(len(self.seats), 1)

    async def remember(self, told: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what an engine told of files, by their fingerprints, beyond a restart."""
        self.descriptions.update({fingerprint: dict(one) for fingerprint, one in told.items()})
        rows = [{"fingerprint": fingerprint, "description": json.dumps(one)} for fingerprint, one in told.items()]

        def write(connection: Any) -> None:
            connection.execute(models.delete().where(models.c.fingerprint.in_(list(told))))
            connection.execute(models.insert(), rows)

        if rows:
            with contextlib.suppress(StoreFull):
                await self.store.write(write)

    @property
    def bit_exact(self) -> bool:
        """Whether every picture has the bytes that it has alone, on all engines."""
        told = [d for seat in self.seats for d in seat.link.models.values()]
        return bool(told) and all(d.get("bit_exact", False) for d in told)

    # --- handing out

    async def _pump(self) -> None:
        """Fill engines whenever something changed, and once a second."""
        task = asyncio.current_task()
        assert task is not None
        task.set_name("pump")
        renewed = probed = 0.0
        while not self.stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.25 if self.hub.live else 1.0):
                    await self._awake.wait()
            self._awake.clear()
            now = time.monotonic()
            try:
                if self.full and now - probed > PROBE:
                    probed = now
                    await self._probe()
                if now - renewed > RENEW:
                    renewed = now
                    await self._renew()
                for seat in self.seats:
                    self._tell_watched(seat)
                    if seat.link.alive and not self.full and not self.stopping:
                        await self._fill(seat)
            except StoreFull:
                self.disk_full()
            except Exception:
                log.exception("handing out failed; trying again")

    async def _renew(self) -> None:
        now, names = time.time(), [seat.link.name for seat in self.seats if seat.aboard]

        def write(connection: Any) -> None:
            for name in names:
                queue.renew(connection, name, now)

        if names:
            await self.store.write(write)

    def _tell_watched(self, seat: Seat) -> None:
        jobs = {picture.job: picture.key for picture in seat.aboard.values()}
        watched = {job for job, key in jobs.items() if self.hub.watched(job, key)}
        for job in watched ^ (seat.told_watched & jobs.keys()):
            seat.link.send("watch", job=job, on=job in watched)
        seat.told_watched = watched

    async def _fill(self, seat: Seat) -> None:
        """Give an engine pictures while it has room."""
        rows = await self.store.read(lambda c: queue.waiting(c, None, 256))
        if not seat.link.alive:
            return  # it died meanwhile, and knows nothing of what would be asked of it
        self._choose_models(seat, [row.model for row in rows])
        loaded = {} if seat.wanted is not None and not self._may_stay(seat, rows) else seat.link.models
        chosen: list[str] = []
        held = sum(picture.width for picture in seat.aboard.values())
        alone = any(picture.deaths for picture in seat.aboard.values())
        for row in rows:
            if row.model not in loaded:
                continue
            if alone or (row.deaths and (seat.aboard or chosen)):
                break  # what an engine died with is drawn with nothing else aboard
            room = 2 * loaded[row.model]["budget"]
            width = row.cost / max(row.steps, 1)
            if held and held + width > room:
                break
            held += width
            chosen.append(row.id)
            alone = bool(row.deaths)
        if not chosen:
            return
        now, life = time.time(), seat.link.restarts
        claimed: list[Claimed] = []
        handed = 0
        self._handing.update(chosen)
        try:
            claimed = await self.store.write(lambda c: queue.claim(c, chosen, seat.link.name, now))
            while handed < len(claimed) and await self._submit(seat, claimed[handed], life):
                handed += 1
        finally:
            self._handing.difference_update(chosen)
            if handed < len(claimed):
                await self._give_back(seat, claimed[handed:])

    async def _give_back(self, seat: Seat, claimed: list[Claimed]) -> None:
        """Pictures that were claimed for an engine and never reached it wait again."""
        now = time.time()
        try:
            await self.store.write(lambda c: [queue.put_back(c, picture.id, picture.claim, now) for picture in claimed])
        except StoreFull:
            self._owed.add(seat.link.name)
            self.disk_full()
        for picture in claimed:
            self._changed(picture)

    async def _submit(self, seat: Seat, picture: Claimed, life: int) -> bool:
        """Hand a picture over to an engine. False: the process that it was claimed for has died meanwhile."""
        roles = roles_in_order(picture.inputs)
        loop = asyncio.get_running_loop()
        try:
            wanted, words = wanted_for_engine(picture.request, self.index)
            blobs = [await loop.run_in_executor(None, self.data.input, picture.inputs[role]) for role in roles]
        except (RequestError, DataError) as error:
            sentence, now = str(error), time.time()
            await self.store.write(lambda c: queue.fail(c, picture.id, picture.claim, now, sentence))
            self._changed(picture)
            return True
        state = await loop.run_in_executor(None, self.data.snapshot, picture.id)
        if not seat.link.alive or seat.link.restarts != life:
            return False
        if picture.id not in self._handing:
            return True
        seat.aboard[picture.id] = picture
        seat.used[picture.model] = time.monotonic()
        self._changed(picture)
        seat.link.send(
            "submit",
            *blobs,
            *([] if state is None else [state]),
            id=picture.id,
            claim=picture.claim,
            job=picture.job,
            index=picture.index,
            model=picture.model,
            wanted=wanted,
            words=words,
            roles=roles,
            rank=picture.rank,
            snapshot=state is not None,
            watched=self.hub.watched(picture.job, picture.key),
        )
        return True

    # --- which models an engine holds

    def _choose_models(self, seat: Seat, waiting: list[str]) -> None:
        """Load what the next pictures need, where there is room, or make room when its turn has come."""
        link = seat.link
        if not link.models and not link.loading and seat.wanted is None:
            seat.wanted = self.index.default_model.name if not waiting else waiting[0]
        elsewhere = {name for other in self.seats if other is not seat for name in other.link.models}
        if seat.wanted is None and not link.loading:
            missing = [name for name in waiting if name not in link.models and name not in link.failed_loads]
            seat.wanted = next((name for name in missing if name not in elsewhere or not seat.aboard), None)
        wanted = seat.wanted
        if wanted is None or link.loading:
            self._make_room(seat, 0.0)
            return
        if wanted in link.models or wanted in link.failed_loads:
            seat.wanted = None
            return
        try:
            found = self.index.get("model", wanted)
        except RequestError:
            link.failed_loads[wanted] = f"the model {wanted!r} is not here any more"
            seat.wanted = None
            self._spawn(self._fail_model(wanted, link.failed_loads[wanted]))
            return
        if not self._make_room(seat, self.descriptions.get(found.fingerprint, {}).get("bytes", found.bytes)):
            return  # what is in progress ends first
        link.loading[wanted] = time.monotonic()
        seat.turn = time.monotonic()
        vae = None if found.vae is None else found.vae.path
        link.send("load", name=wanted, path=_source(found), vae=vae, lora_dir=self.index.path("lora"))
        seat.wanted = None

    def _make_room(self, seat: Seat, need: float) -> bool:
        """Let models go that have nothing in progress, the least recently needed first, until `need` bytes fit; whether
        they do. The last model stays while nothing else is needed, and a single one is tried whatever it takes."""
        held = {name: told["bytes"] for name, told in seat.link.models.items()}
        busy = {picture.model for picture in seat.aboard.values()}
        room = self.room
        for name in sorted(held, key=lambda name: seat.used.get(name, 0.0)):
            if sum(held.values()) + need <= room or (len(held) == 1 and not need):
                return True
            if name not in busy:
                del held[name]
                seat.link.models.pop(name)
                seat.link.send("unload", name=name)
        return not held or sum(held.values()) + need <= room

    def _may_stay(self, seat: Seat, rows: list[Any]) -> bool:
        """Whether the models that an engine holds go on being given work while another waits for their place."""
        has_work = any(row.model in seat.link.models for row in rows)
        return has_work and time.monotonic() - seat.turn < TURN

    async def _fail_model(self, name: str, sentence: str) -> None:
        """A model can't be loaded: the jobs that name it fail."""
        now = time.time()

        def write(connection: Any) -> list[Claimed]:
            ids = [row.id for row in queue.waiting(connection, [name], 100_000)]
            taken = queue.claim(connection, ids, "failing", now)
            for picture in taken:
                queue.fail(connection, picture.id, picture.claim, now, sentence)
            return taken

        for picture in await self.store.write(write):
            self._changed(picture)

    # --- what engines tell

    async def _hear(self, link: EngineLink, message: Message) -> None:
        seat = next(seat for seat in self.seats if seat.link is link)
        kind = message.kind
        if kind == "progress":
            for id, claim, step, steps in message["items"]:
                if (picture := seat.aboard.get(id)) is not None and picture.claim == claim:
                    self.hub.progress(picture.job, picture.key, picture.index, step, steps)
        elif kind == "preview":
            if (picture := seat.aboard.get(message["id"])) is not None:
                self.metrics.previews.inc()
                self.hub.preview(picture.job, picture.key, picture.index, message.blobs[0])
        elif kind == "finished":
            if (picture := seat.aboard.get(message["id"])) is not None and picture.claim == message["claim"]:
                self._spawn(self._finish(seat, picture, message))
        elif kind == "failed":
            if (picture := seat.aboard.get(message["id"])) is not None and picture.claim == message["claim"]:
                self._spawn(self._fail(seat, picture, message))
        elif kind == "snapshot":
            if (picture := seat.aboard.get(message["id"])) is not None and picture.claim == message["claim"]:
                self._spawn(self._keep(picture, message))
        elif kind in ("loaded", "failed_load"):
            await self._loaded(link, message)
        elif kind == "answer":
            if (future := self._calls.pop(message["call"], None)) is not None and not future.done():
                future.set_result(message)
        elif kind == "stats":
            self.metrics.engine(link.name, message.fields)
        elif kind in ("ready", "unloaded"):
            self.wake()

    async def _loaded(self, link: EngineLink, message: Message) -> None:
        name = message["name"]
        if message.kind == "loaded":
            description = dict(message["description"])
            with contextlib.suppress(RequestError):
                fingerprint = self.index.get("model", name).fingerprint
                await self.remember({fingerprint: description})
            self._more_engines(link, description)
        else:
            log.warning("model %s can't be loaded: %s", name, message["error"])
            self._spawn(self._fail_model(name, f"the model {name!r} can't be used: {message['error']}"))
        if (event := self._known.pop(name, None)) is not None:
            event.set()
        self.wake()

    def _more_engines(self, link: EngineLink, description: Mapping[str, Any]) -> None:
        """On a processor, a small model is drawn fastest by an engine of one thread a core."""
        if self.options.engines is not None or len(self.seats) > 1:
            return
        if (count := engines_for(description, self.options.cores)) > 1:
            self.options.engines = count
            link.start["threads"] = 1
            link.send("threads", count=1)
            for _ in range(count - 1):
                self._seat()

    async def _finish(self, seat: Seat, picture: Claimed, message: Message) -> None:
        loop = asyncio.get_running_loop()
        facts = {name: message[name] for name in ("width", "height", "sha256", "infotext", "recipe")}
        facts["warnings"] = json.dumps(message.fields.get("warnings", []))
        try:
            name = await loop.run_in_executor(None, self.data.keep_picture, picture.id, message.blobs[0])
            facts |= {"file": name, "bytes": len(message.blobs[0])}
            now = time.time()
            counted = await self.store.write(lambda c: queue.finish(c, picture.id, picture.claim, now, **facts))
        except (StoreFull, DataError):
            self.disk_full()
            return
        seat.aboard.pop(picture.id, None)
        self.hub.landed(picture.job, picture.index)
        if counted:
            self.metrics.finished(now - int(picture.job[:11], 16) / 1000)
        else:  # another worker has it, or it was cancelled
            await loop.run_in_executor(None, self.data.drop, name)
        await loop.run_in_executor(None, self.data.drop_snapshot, picture.id)
        self._changed(picture)
        self.wake()

    async def _fail(self, seat: Seat, picture: Claimed, message: Message) -> None:
        sentence, again, now = message["error"], message.fields.get("retry", False), time.time()

        def write(connection: Any) -> None:
            if again:
                queue.put_back(connection, picture.id, picture.claim, now)
            else:
                queue.fail(connection, picture.id, picture.claim, now, sentence)

        try:
            await self.store.write(write)
        except StoreFull:
            self.disk_full()
            return
        seat.aboard.pop(picture.id, None)
        self.hub.landed(picture.job, picture.index)
        if not again:
            self.metrics.failures.inc()
        await asyncio.get_running_loop().run_in_executor(None, self.data.drop_snapshot, picture.id)
        self._changed(picture)
        self.wake()

    async def _keep(self, picture: Claimed, message: Message) -> None:
        step = message["step"]
        with contextlib.suppress(OSError, Error):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self.data.keep_snapshot, picture.id, message.blobs[0])
            await self.store.write(lambda c: queue.kept(c, picture.id, picture.claim, step))

    async def _died(self, link: EngineLink, reason: str) -> None:
        seat = next(seat for seat in self.seats if seat.link is link)
        self.metrics.restarts.inc()
        aboard, seat.aboard = seat.aboard, {}
        seat.wanted = None
        now = time.time()
        try:
            await self.store.write(lambda c: queue.died(c, link.name, now, reason))
        except StoreFull:
            self._owed.add(link.name)
            self.disk_full()
        for picture in aboard.values():
            self.hub.landed(picture.job, picture.index)
            self._changed(picture)
        self.wake()

    def _changed(self, picture: Claimed) -> None:
        self.hub.changed(picture.job, picture.key)

    # --- a full disk

    def disk_full(self) -> None:
        """Nothing can be written: what is in progress goes back, and admission is closed."""
        if not self.full:
            log.warning("the disk is full: nothing is taken in until there is room")
        self.full = True
        for seat in self.seats:
            for picture in seat.aboard.values():
                seat.link.send("cancel", id=picture.id, claim=picture.claim)
            if seat.aboard:
                self._owed.add(seat.link.name)
            seat.aboard.clear()

    async def _probe(self) -> None:
        if not await asyncio.get_running_loop().run_in_executor(None, self.data.has_room):
            return
        now, owed = time.time(), list(self._owed)

        def write(connection: Any) -> list[str]:
            return [job for name in owed for job in queue.released(connection, name, now)]

        await self.store.write(write)
        self._owed.difference_update(owed)
        self.full = False
        log.warning("there is room on the disk again")
        self.wake()

    # --- what people do

    def cancel(self, pictures: list[str]) -> None:
        """Tell engines that pictures are not wanted any more; their rows say so already."""
        self._handing.difference_update(pictures)
        for seat in self.seats:
            for id in pictures:
                if (picture := seat.aboard.pop(id, None)) is not None:
                    seat.link.send("cancel", id=id, claim=picture.claim)
                    self.hub.landed(picture.job, picture.index)
        self.wake()

    async def call(self, name: str, *blobs: bytes, model: str = "", seconds: float = 30.0, **arguments: Any) -> Message:
        """Ask an engine something beside the pictures. Raises RequestError where it can't, or there is none."""
        seat = next((seat for seat in self.seats if seat.link.alive and model in seat.link.models), None)
        seat = seat or next((seat for seat in self.seats if seat.link.alive), None)
        if seat is None:
            raise RequestError("no engine is ready; try again in a moment")
        number = next(self._numbers)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        seat.link.send("call", *blobs, call=number, name=name, model=model, arguments=arguments)
        try:
            async with asyncio.timeout(seconds):
                answer = await future
        except TimeoutError:
            raise RequestError("the engine did not answer; try again in a moment") from None
        finally:
            self._calls.pop(number, None)
        if answer["error"] is not None:
            raise RequestError(answer["error"])
        return answer


def _source(found: Found) -> str | None:
    """What `darkroom.load` is given; None: the embedded model, with what comes with it."""
    return None if found.path == str(MODEL) else found.path
