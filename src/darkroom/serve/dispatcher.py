"""Hands pictures of the queue to engines, and brings back what they tell: files, rows, news.

An engine is given the pictures of lowest rank of the models that it holds, until it holds twice what fits into one of
its ticks. Pictures that an engine died with are drawn alone, until they are finished or given up. On a database that
several processes share, each has a dispatcher; what they tell each other is in `together`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sqlalchemy import Connection

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
from .seats import Seat, astray, shown_model, told_of
from .store import Answer, Store, StoreDown, StoreFull
from .tables import clock, models, upsert
from .together import Together

BEAT = 0.4  # seconds between words to and from other processes
PROBE = 5.0  # seconds between looks whether a full disk has room again

log = logging.getLogger(__name__)


class Dispatcher:
    """Starts engines and keeps them busy. Belongs to the event loop's thread."""

    def __init__(
        self, store: Store, data: Data, hub: Hub, index: ModelIndex, options: ServeOptions, metrics: Metrics
    ) -> None:
        self.store, self.data, self.hub, self.index, self.options = store, data, hub, index, options
        self.metrics = metrics
        self.together = Together(store, data, hub, options.lease) if store.shared else None
        self.seats: list[Seat] = []
        self.descriptions: dict[str, dict[str, Any]] = {}  # by fingerprint, of all files that engines told of
        self.full = False  # the disk is
        self.stopping = False
        self._handing: set[str] = set()  # pictures on their way from the database to an engine, unless cancelled
        self._down = False  # the database was, a moment ago
        self._news = False  # this process has something to tell the others at once
        self._elsewhere: set[str] = set()  # jobs whose previews are wanted by other processes
        self._landing: set[str] = set()  # finished pictures whose rows are being written
        self._steps: dict[str, int] = {}  # pictures that others look at -> how far they are
        self._owed: set[str] = set()  # engines whose pictures must go back once the disk has room
        self._awake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._known: dict[str, asyncio.Event] = {}

    # --- from start to stop

    async def start(self) -> None:
        """Put back what an earlier server had in progress, where nobody else can have it, and start the engines."""
        if self.together is None:
            await self.store.write(lambda c: queue.died(c, None, clock(c), "the server was killed"))
        for fingerprint, text in await self.store.read(lambda c: c.execute(models.select()).all()):
            self.descriptions[fingerprint] = json.loads(text)
        for _ in range(1 if self.options.engines is None else self.options.engines):
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
        name = str(len(self.seats))
        link = EngineLink(name, start, self._hear, self._died, self.options.engine_command or COMMAND)
        self.seats.append(Seat(link, name if self.together is None else f"{self.together.id}.{name}"))
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
        owners = [None] if self.together is None else self._owners
        with contextlib.suppress(Error):
            for owner in owners:
                await self.store.write(partial(_released, owner=owner))
            if self.together is not None and self.seats:
                await self.together.leave()

    @property
    def _owners(self) -> list[str]:
        return [seat.owner for seat in self.seats]

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
        here = any(seat.link.alive and seat.link.models for seat in self.seats)
        return here or bool(self.together and self.together.models)

    # --- models

    async def describe(self, found: Found, seconds: float = 600.0) -> dict[str, Any]:
        """What is known of a model; it is loaded where that isn't known yet. Raises RequestError."""
        if (known := self.descriptions.get(found.fingerprint)) is not None:
            return known
        if self.together is not None and not self.seats:
            self.descriptions[found.fingerprint] = await self.together.described(found.fingerprint, found.name, seconds)
            return self.descriptions[found.fingerprint]
        if found.bytes > self.room:
            raise RequestError(
                f"the model {found.name!r} takes {found.bytes / 1e9:.1f} GB, and an engine's models may take "
                f"{self.room / 1e9:.1f}; start the server with more --model-memory, or fewer --engines"
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
        return shown_model(
            found, self.seats, self.descriptions, self.room, self.together.models if self.together else ()
        )

    @property
    def room(self) -> float:
        """Bytes that an engine's models may take."""
        return self.options.model_memory / max(len(self.seats), 1)

    async def remember(self, told: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what an engine told of files, by their fingerprints, beyond a restart."""
        self.descriptions.update({fingerprint: dict(one) for fingerprint, one in told.items()})
        rows = [{"fingerprint": fingerprint, "description": json.dumps(one)} for fingerprint, one in told.items()]

        def write(connection: Any) -> None:
            for row in rows:
                upsert(connection, models, ("fingerprint",), row)

        if rows:
            with contextlib.suppress(StoreFull):
                await self.store.write(write)

    @property
    def bit_exact(self) -> bool:
        """Whether every picture has the bytes that it has alone, on all engines."""
        if self.together is not None and self.together.workers:
            return self.together.bit_exact
        told = [d for seat in self.seats for d in seat.link.models.values()]
        return bool(told) and all(d.get("bit_exact", False) for d in told)

    # --- handing out

    async def _pump(self) -> None:
        """Fill engines whenever something changed, and once a second."""
        task = asyncio.current_task()
        assert task is not None
        task.set_name("pump")
        probed = looked = 0.0
        while not self.stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.25 if self.hub.live else 1.0 if self.together is None else 0.5):
                    await self._awake.wait()
            self._awake.clear()
            now = time.monotonic()
            try:
                if self.full and now - probed > PROBE:
                    probed = now
                    await self._probe()
                if self.together is not None and now - looked > BEAT:
                    looked = now
                    await self._beat(self.together)
                for seat in self.seats:
                    seat.tell_watched(self._is_watched)
                    if seat.link.alive and not self.full and not self.stopping:
                        await self._fill(seat)
                self._down = False
            except StoreFull:
                self.disk_full()
            except StoreDown as error:
                if not self._down:
                    log.warning("%s; trying again until it can", error)
                self._down = True
            except Exception:
                log.exception("handing out failed; trying again")

    async def _beat(self, together: Together) -> None:
        """Where the database is shared: say that we live, hear what is not ours any more, tell how far pictures are."""
        if self.seats:
            for job in await together.say(self._owners, told_of(self.seats, self._loadable), now=self._news):
                log.warning("job %s goes on without the worker that had it", job)
            self._news = False
            aboard = {id: picture for seat in self.seats for id, picture in seat.aboard.items()}
            lives = {seat.owner: seat.link.restarts for seat in self.seats if seat.link.alive}
            news = await together.hear(self._owners, {picture.job for picture in aboard.values()})
            claims = {id: claim for id, (claim, _) in news.held.items()}
            gone = [id for id, picture in aboard.items() if claims.get(id) != picture.claim]
            self.cancel([id for id in gone if id not in self._landing])
            if not self.full and (lost := astray(self.seats, news.held, aboard, lives)):
                log.warning("%d pictures were claimed and are with no engine; they wait again", len(lost))
                await self.store.write(partial(_put_back, claims=lost))
                self.wake()
            self._elsewhere = set(news.previewed)
            looked = {id for id, picture in aboard.items() if picture.job in news.watched}
            steps = {id: step for id, step in self._steps.items() if id in looked}
            self._steps = {}
            await together.tell_steps(self._owners, steps)
            for fingerprint, name in news.wishes.items():
                await self._grant(fingerprint, name)
        await together.look({picture.job for seat in self.seats for picture in seat.aboard.values()})

    @property
    def all_engines(self) -> list[dict[str, Any]]:
        """What there is of engines, in the other processes too, for people."""
        others = self.together.others() if self.together is not None else []
        return [seat.shown for seat in self.seats] + [one for told in others for one in told["engines"]]

    @property
    def _loadable(self) -> set[str]:
        """The models that this process can draw with."""
        failed = {name for seat in self.seats for name in seat.link.failed_loads}
        return set(self.index.found["model"]) - failed

    async def _grant(self, fingerprint: str, name: str) -> None:
        """Load a model that somebody wants to know of, or tell what it is."""
        if fingerprint in self.descriptions or name not in self._loadable:
            return
        told = next((seat.link.models[name] for seat in self.seats if name in seat.link.models), None)
        if told is not None:
            await self.remember({fingerprint: told})
            return
        seat = min(self.seats, key=lambda seat: len(seat.aboard))
        if seat.wanted is None:
            seat.wanted = name

    def _is_watched(self, job: str, key: str) -> bool:
        return job in self._elsewhere or self.hub.watched(job, key)

    async def _fill(self, seat: Seat) -> None:
        """Give an engine pictures while it has room."""
        loadable = None if self.together is None else self._loadable
        rows = await self.store.read(lambda c: queue.waiting(c, loadable, 256))
        if not seat.link.alive:
            return  # it died meanwhile, and knows nothing of what would be asked of it
        self._choose_models(seat, [row.model for row in rows])
        chosen = seat.choose(rows)
        if not chosen:
            return
        life, lease = seat.link.restarts, self.options.lease
        claimed: list[Claimed] = []
        handed = 0
        self._handing.update(chosen)
        try:
            claimed = await self.store.write(lambda c: queue.claim(c, chosen, seat.owner, clock(c), lease))
            if len(claimed) < len(chosen):
                self.wake()  # another worker was quicker; there may be more
            while handed < len(claimed) and await self._submit(seat, claimed[handed], life):
                handed += 1
        finally:
            self._handing.difference_update(chosen)
            if handed < len(claimed):
                await self._give_back(seat, claimed[handed:])

    async def _give_back(self, seat: Seat, claimed: list[Claimed]) -> None:
        """Pictures that were claimed for an engine and never reached it wait again."""
        try:
            await self.store.write(partial(_put_back, claims={picture.id: picture.claim for picture in claimed}))
        except StoreFull:
            self._owed.add(seat.owner)
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
            sentence = str(error)
            await self.store.write(lambda c: queue.fail(c, picture.id, picture.claim, clock(c), sentence))
            self._changed(picture)
            return True
        state = await loop.run_in_executor(None, self.data.snapshot, picture.id)
        if not seat.link.alive or seat.link.restarts != life:
            return False
        if picture.id not in self._handing:
            return True
        self._changed(picture)
        seat.submit(picture, wanted, words, blobs, state, self._is_watched(picture.job, picture.key))
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
            seat.make_room(0.0, self.room)
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
        if not seat.make_room(self.descriptions.get(found.fingerprint, {}).get("bytes", found.bytes), self.room):
            return  # what is in progress ends first
        seat.load(found, self.index.path("lora"))
        seat.wanted = None

    async def _fail_model(self, name: str, sentence: str) -> None:
        """A model can't be loaded: the jobs that name it fail, unless another worker may load it."""
        self._news = True
        if self.together is not None and any(name in told["models"] for told in self.together.others()):
            return

        def write(connection: Any) -> list[Claimed]:
            now = clock(connection)
            ids = [row.id for row in queue.waiting(connection, [name], 1000)]
            taken = queue.claim(connection, ids, "failing", now)
            for picture in taken:
                queue.fail(connection, picture.id, picture.claim, now, sentence)
            return taken

        while failed := await self._written(write):
            for picture in failed:
                self._changed(picture)

    # --- what engines tell

    async def _hear(self, link: EngineLink, message: Message) -> None:
        seat = next(seat for seat in self.seats if seat.link is link)
        kind = message.kind
        if kind == "progress":
            for id, claim, step, steps in message["items"]:
                if (picture := seat.aboard.get(id)) is not None and picture.claim == claim:
                    self._steps[id] = step
                    self.hub.progress(picture.job, picture.key, picture.index, step, steps)
        elif kind == "preview":
            if (picture := seat.aboard.get(message["id"])) is not None:
                self.metrics.previews.inc()
                if picture.job in self._elsewhere:
                    await asyncio.get_running_loop().run_in_executor(
                        None, self.data.keep_preview, picture.id, message.blobs[0]
                    )
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
            self._news = True
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
        facts["infotext"] = facts["infotext"].replace("\0", "\ufffd")  # which PostgreSQL has no place for
        self._landing.add(picture.id)
        try:
            name = await loop.run_in_executor(None, self.data.keep_picture, picture.id, message.blobs[0], picture.claim)
            facts |= {"file": name, "bytes": len(message.blobs[0])}

            def write(connection: Connection) -> tuple[bool, float]:
                now = clock(connection)
                return queue.finish(connection, picture.id, picture.claim, now, **facts), now

            counted, now = await self._written(write)
        except (StoreFull, DataError):
            self.disk_full()
            return
        finally:
            self._landing.discard(picture.id)
        seat.landed(picture)
        self.hub.landed(picture.job, picture.index)
        if counted:
            self.metrics.finished(now - int(picture.job[:11], 16) / 1000)
        else:  # another worker has it, or it was cancelled
            await loop.run_in_executor(None, self.data.drop, name)
        if counted or self.together is None:
            await loop.run_in_executor(None, self.data.drop_snapshot, picture.id)
        self._changed(picture)
        self.wake()

    async def _written(self, statement: Callable[[Connection], Answer]) -> Answer:
        """What a statement answers, however long the database can't be reached. What it tells is small: a picture's
        file is on disk before its row, and an engine has no more in hand than two of its ticks."""
        while True:
            try:
                return await self.store.write(statement)
            except StoreDown:
                await asyncio.sleep(0.5)

    async def _fail(self, seat: Seat, picture: Claimed, message: Message) -> None:
        sentence, again = message["error"], message.fields.get("retry", False)

        def write(connection: Any) -> None:
            now = clock(connection)
            if again:
                queue.put_back(connection, picture.id, picture.claim, now)
            else:
                queue.fail(connection, picture.id, picture.claim, now, sentence)

        try:
            await self._written(write)
        except StoreFull:
            self.disk_full()
            return
        seat.landed(picture)
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
        try:
            await self._written(lambda c: queue.died(c, seat.owner, clock(c), reason))
        except StoreFull:
            self._owed.add(seat.owner)
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
                self._owed.add(seat.owner)
            seat.aboard.clear()

    async def _probe(self) -> None:
        if not await asyncio.get_running_loop().run_in_executor(None, self.data.has_room):
            return
        owed = list(self._owed)

        def write(connection: Any) -> list[str]:
            now = clock(connection)
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
        answer = await seat.link.ask(name, *blobs, model=model, seconds=seconds, arguments=arguments)
        if answer["error"] is not None:
            raise RequestError(answer["error"])
        return answer


def _released(connection: Connection, owner: str | None) -> None:
    queue.released(connection, owner, clock(connection))


def _put_back(connection: Connection, claims: Mapping[str, int]) -> None:
    now = clock(connection)
    for id, claim in claims.items():
        queue.put_back(connection, id, claim, now)
