"""A server's parts together, and what all dialects do with them: take a job in, wait for it, end it.

Routes know the wire; this knows the work. Everything here runs in the event loop, and what takes long in `pool`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, select

from .. import __version__
from ..errors import RequestError
from . import queue
from .adapters import Adapters
from .data import Data, DataError
from .dispatcher import Dispatcher
from .events import CHANGED, Awaited, Hub, Watcher
from .jobs import Priced, Wanted, priced
from .keys import Keys, Owner, Signer, new_key
from .metrics import Metrics
from .models import Found, ModelIndex
from .options import ServeOptions
from .queue import Limits, NewJob
from .retention import Retention
from .store import Store, StoreFull
from .tables import LIVE, clock, inputs, one_at_a_time, pictures, preferences, upsert
from .uploads import Upload, received

RESCAN = 60.0  # seconds between looks into the models' folder
SERVER = ""  # the key under which the server keeps its own preferences
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Brought:
    """What a job is made with: its model, and its pictures by role, as uploads, hashes and sizes (width, height)."""

    found: Found
    description: Mapping[str, Any]
    uploads: Mapping[str, Upload]
    hashes: Mapping[str, str]
    sizes: Mapping[str, tuple[int, int]]

    def write(self, connection: Connection, key: str, now: float) -> None:
        """Write the rows of the uploads."""
        for upload in self.uploads.values():
            _write_input(connection, key, upload, now)


def open_store(options: ServeOptions) -> Store:
    """The database of a server or worker. Raises StoreError and StoreDown."""
    if options.database is None:
        return Store(options.data)
    from .postgres import PostgresStore

    return PostgresStore(options.database)


async def same_folder(store: Store, data: Data) -> str:
    """See that a folder is the one that its database was begun with, for all processes that share them; the secret of
    cookies and signed addresses. Raises DataError."""
    secret, identity = await store.write(lambda c: _own(c, data.identity()))
    if identity != data.identity():
        raise DataError(
            f"{data.folder} is not the folder that its database was begun with; is a disk not mounted, or another "
            "machine's folder of that name? (its darkroom.json is of another)"
        )
    return secret


class Closed(Exception):
    """The server is stopping: nothing is taken in any more."""


class Server:
    """All of a server but HTTP. Raises Error where the data folder, the keys or the models can't be used."""

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        self.index = ModelIndex(options.models, options.model)
        open_to_others = options.host not in LOOPBACK and options.keys is None
        self.keys = Keys(options.keys, new_key() if open_to_others else None)
        self.data = Data(options.data, shared=options.database is not None)
        try:
            self.store = open_store(options)
        except BaseException:
            self.data.close()
            raise
        self.hub = Hub()
        self.awaited = Awaited()
        self.metrics = Metrics()
        self.dispatcher = Dispatcher(self.store, self.data, self.hub, self.index, options, self.metrics)
        self.adapters = Adapters(self.dispatcher, self.index)
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="pictures")
        self.retention = Retention(self.store, self.data, options)
        self.closing = asyncio.Event()
        self.signer = Signer(b"")
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def cookie(self) -> str:
        """The name of a page's cookie: browsers share those of a host among its ports."""
        return f"darkroom-{self.options.port}"

    # --- from start to stop

    async def start(self) -> None:
        """Know the folder, put back what was in progress, start the engines. Raises DataError for another's folder."""
        secret = await same_folder(self.store, self.data)
        self.signer = Signer(bytes.fromhex(secret))
        await self.retention.sweep()
        await self.dispatcher.start()
        self._tasks = [asyncio.create_task(self._look_around())]

    async def stop(self, seconds: float = 8.0) -> None:
        """Close admission, let engines keep what they are at, put it back, and close."""
        self.closing.set()
        self.adapters.close()
        for task in self._tasks:
            task.cancel()
        await self.dispatcher.stop(seconds)
        self.pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.get_running_loop().run_in_executor(None, self.store.close)
        self.data.close()

    async def _look_around(self) -> None:
        while True:
            await asyncio.sleep(RESCAN)
            try:
                await self.in_pool(self.index.scan)
                await self.retention.apply()
            except Exception as error:
                log.warning("looking around failed: %s", error)

    async def in_pool(self, work: Callable[..., Answer], *arguments: Any) -> Answer:
        """What takes long, away from the loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *arguments)

    # --- pictures that people send

    async def receive(self, name: str, data: bytes) -> Upload:
        """Decode an upload and keep it; its row comes with the job's, or by `keep_input`."""
        upload = await self.in_pool(received, data, name, self.options.max_pixels)
        await self.in_pool(self.data.keep_input, upload.sha256, upload.png)
        return upload

    async def keep_input(self, owner: Owner, upload: Upload) -> None:
        """Write an upload's row: from now on its key may name it."""
        await self.store.write(lambda c: _write_input(c, owner.name, upload, clock(c)))

    async def input_size(self, owner: Owner, sha256: str) -> tuple[int, int]:
        """The size of an input of a key. Raises RequestError for one that it doesn't have."""
        wanted = select(inputs.c.width, inputs.c.height).where(inputs.c.key == owner.name, inputs.c.sha256 == sha256)
        row = await self.store.read(lambda c: c.execute(wanted).first())
        if row is None:
            raise RequestError(f"there is no input {sha256[:12]}...; send it first (PUT /api/inputs/SHA256)")
        return row.width, row.height

    # --- jobs

    async def submit(
        self,
        owner: Owner,
        dialect: str,
        wanted: Wanted,
        *,
        idempotency: str | None = None,
        digest: str | None = None,
        alias: str | None = None,
        repeat: bool = False,
        waits: MutableMapping[str, Any] | None = None,
    ) -> str:
        """Take a job in: when this returns, its id is on disk. It may be one that was there already (`queue.same`).

        Args:
            idempotency, digest, repeat: an Idempotency-Key, what tells two requests apart, and whether its sender says
                that it was sent before.
            alias: another name for it.
            waits: the state of the request that will wait for it (`events.Awaited`).

        Raises RequestError and ImageError, TooMuch and Conflict (`queue`), StoreFull, Closed.
        """
        brought = await self.bring(owner, wanted)
        job = await self.in_pool(priced, wanted, brought.description, brought.sizes, self.index)
        names = {"idempotency": idempotency, "digest": digest, "alias": alias}
        new, limits = self.new_job(owner, dialect, job, brought, **names), self.limits(owner)

        def write(connection: Connection) -> str:
            now = clock(connection)
            id = queue.same(connection, new, repeat, self.awaited, now)
            if id is None:
                brought.write(connection, owner.name, now)
                id = queue.admit(connection, new, limits, now)
            if waits is not None:
                self.awaited.begin(waits, id)
            return id

        id = await self.take_in(write)
        if self.options.log_prompts:
            log.info("job %s of %r: %r", id, owner.name, job.request.prompt)
        self.hub.changed(id, owner.name)
        return id

    async def bring(self, owner: Owner, wanted: Wanted) -> Brought:
        """The model and the pictures of a job, received. Raises as `submit` does."""
        if self.closing.is_set():
            raise Closed
        if self.dispatcher.full:
            raise StoreFull("the disk is full; nothing is taken in until there is room")
        found = self.index.default_model if wanted.model is None else self.index.get("model", wanted.model)
        if len(wanted.pictures) > 8:
            raise RequestError(f"{len(wanted.pictures)} pictures are sent; a job takes 8 at most")
        uploads: dict[str, Upload] = {}
        hashes: dict[str, str] = {}
        sizes: dict[str, tuple[int, int]] = {}
        for role, given in wanted.pictures.items():
            if isinstance(given, str):
                sizes[role], hashes[role] = await self.input_size(owner, given), given
            else:
                upload = given if isinstance(given, Upload) else await self.receive(role, given)
                uploads[role] = upload
                sizes[role], hashes[role] = (upload.width, upload.height), upload.sha256
        return Brought(found, await self.dispatcher.describe(found), uploads, hashes, sizes)

    def new_job(self, owner: Owner, dialect: str, job: Priced, brought: Brought, **names: str | None) -> NewJob:
        """What the queue is given. Raises RequestError for a job that costs more than one may."""
        if job.cost > self.options.max_cost:
            raise RequestError(
                f"this costs {job.cost:,.0f} (rows x megapixels x steps), and a job may cost "
                f"{self.options.max_cost:,.0f}; ask for fewer pictures, fewer steps or a smaller size"
            )
        return NewJob(
            key=owner.name,
            dialect=dialect,
            version=__version__,
            request=job.document,
            model=brought.found.name,
            cost=job.cost,
            seconds=job.cost * self.seconds_per_unit(brought.description),
            seeds=job.seeds,
            steps=job.steps,
            inputs=brought.hashes,
            **names,
        )

    def limits(self, owner: Owner) -> Limits:
        """How much unfinished work a key may have."""
        return Limits(
            cost=owner.cost or self.options.max_outstanding,
            jobs=owner.queue or self.options.max_jobs,
            queue=self.options.max_queue,
        )

    async def take_in(self, write: Callable[[Connection], Answer]) -> Answer:
        """Write what admits jobs, whole or not at all, and have them handed out."""
        try:
            answer = await self.store.write(write)
        except StoreFull:
            self.dispatcher.disk_full()
            raise
        self.dispatcher.wake()
        return answer

    def seconds_per_unit(self, description: Mapping[str, Any]) -> float:
        """What a row of a megapixel takes, by what engines measured."""
        told = [seat.link.stats.get("seconds_per_unit") for seat in self.dispatcher.seats]
        if (together := self.dispatcher.together) is not None:
            told += [worker["speed"] for worker in together.others()]
        known = [float(value) for value in told if value]
        usual: float = 5e-8 * description["parameters"]  # about a core's speed
        return (sum(known) / len(known) if known else usual) / max(len(self.dispatcher.all_engines), 1)

    async def view(self, owner: Owner, job: str) -> dict[str, Any] | None:
        """A job as it is told, with how far its pictures in progress are; None where the key has no such job."""
        live = self.hub.steps()

        def read(connection: Connection) -> dict[str, Any] | None:
            row = queue.find(connection, job, owner.reach)
            return None if row is None else queue.view(connection, row, live.get(row.id, {}))

        found = await self.store.read(read)
        if found is not None and self.store.shared and found["state"] in LIVE:
            self.hub.glance(found["id"])
        return found

    async def views(self, owner: Owner, states: Sequence[str], most: int = 1000) -> list[dict[str, Any]]:
        """A key's jobs in these states, newest first."""
        live = self.hub.steps()
        return await self.store.read(lambda c: queue.listed(c, owner.reach, states, most, live))

    async def wait(self, owner: Owner, job: str, gone: Awaitable[None] | None = None) -> dict[str, Any]:
        """A job's view once it has ended. Raises Closed where the server stops first.

        gone: returns when whoever waits has gone (`bodies.gone`); Gone is raised then, and the job goes on, or ends
            with `--cancel-when-client-goes`.
        """
        left = None if gone is None else asyncio.ensure_future(gone)
        try:
            with self.hub.watching(owner.reach, job, (CHANGED,)) as watcher:
                while True:
                    view = await self.view(owner, job)
                    assert view is not None
                    if view["state"] not in LIVE:
                        return view
                    if self.closing.is_set():
                        raise Closed
                    if left is not None and left.done():
                        await self.left_alone(owner, job)
                        raise Gone
                    await self.news(watcher, left)
        finally:
            if left is not None:
                left.cancel()

    async def left_alone(self, owner: Owner, job: str) -> None:
        """Whoever waited for a job has gone."""
        if self.options.cancel_when_client_goes:
            await self.cancel(owner, job)

    async def news(self, watcher: Watcher, end: asyncio.Future[None] | None = None) -> tuple[str, set[str]] | None:
        """A watcher's next news; None after a second without, and as soon as the server stops or `end` is done."""
        news = asyncio.create_task(watcher.next(1.0))
        closing = asyncio.create_task(self.closing.wait())
        try:
            ends: set[asyncio.Future[Any]] = {news, closing} | (set() if end is None else {end})
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            return news.result() if news.done() else None
        finally:
            news.cancel()
            closing.cancel()

    async def cancel(self, owner: Owner, job: str, waiting: bool = True) -> bool:
        """End a job's unfinished pictures, or (waiting False) those that are being drawn; False where the key has no
        such job."""

        def write(connection: Connection) -> tuple[str, str, list[str]] | None:
            now = clock(connection)
            row = queue.find(connection, job, owner.reach)
            if row is None:
                return None
            running = queue.cancel(connection, row.id, now, waiting) if row.state in LIVE else []
            return row.id, row.key, running

        found = await self.store.write(write)
        if found is None:
            return False
        id, key, running = found
        self.dispatcher.cancel(running)
        self.hub.changed(id, key, ended=waiting)
        return True

    async def file(self, picture: str) -> bytes | None:
        """A finished picture's file; None where it is gone."""
        return await self.in_pool(self.data.picture, picture)

    async def picture_row(self, owner: Owner | None, picture: str) -> Any:
        """A finished picture's row; None where the key has none such. owner None: whoever asks may see it."""
        wanted = select(pictures).where(pictures.c.id == picture, pictures.c.state == "finished")
        if owner is not None and owner.reach is not None:
            wanted = wanted.where(pictures.c.key == owner.reach)
        return await self.store.read(lambda c: c.execute(wanted).first())

    # --- preferences

    async def preference(self, owner: Owner, name: str) -> Any:
        """A key's preference; None where it has none."""
        return (await self.preferences(owner)).get(name)

    async def preferences(self, owner: Owner) -> dict[str, Any]:
        """All of a key's preferences."""
        wanted = select(preferences.c.name, preferences.c.value).where(preferences.c.key == f"key:{owner.name}")
        rows = await self.store.read(lambda c: c.execute(wanted).all())
        return {name: json.loads(value) for name, value in rows}

    async def prefer(self, owner: Owner, values: Mapping[str, Any]) -> None:
        """Set a key's preferences; None removes one."""

        def write(connection: Connection) -> None:
            for name, value in values.items():
                mine = {"key": f"key:{owner.name}", "name": name}
                if value is None:
                    connection.execute(preferences.delete().filter_by(**mine))
                else:
                    upsert(connection, preferences, ("key", "name"), mine | {"value": json.dumps(value)})

        await self.store.write(write)


class Gone(Exception):
    """Whoever asked has gone."""


def _own(connection: Connection, identity: str) -> tuple[str, str]:
    """The server's secret and its folder's id, made at the first start."""
    one_at_a_time(connection, "own")
    wanted = select(preferences.c.name, preferences.c.value).where(preferences.c.key == SERVER)
    known = {row.name: row.value for row in connection.execute(wanted)}
    for name, value in (("secret", secrets.token_hex(32)), ("identity", identity)):
        if name not in known:
            known[name] = value
            upsert(connection, preferences, ("key", "name"), {"key": SERVER, "name": name, "value": value})
    return known["secret"], known["identity"]


def _write_input(connection: Connection, key: str, upload: Upload, now: float) -> None:
    row = {"width": upload.width, "height": upload.height, "bytes": len(upload.png), "created": now}
    upsert(connection, inputs, ("key", "sha256"), {"key": key, "sha256": upload.sha256, **row}, created=now)
