"""The engine's process: `python -m darkroom.serve.engine_process FD`, started by the web process and ended with it.

It holds models and pictures in progress, and knows no database: what it is sent it draws, and what it finds it tells.
One thread moves pictures; others read the socket, write to it, load models and encode finished pictures.
"""

from __future__ import annotations

import io
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..adapters import Lora
from ..engine.engine import Engine, Failed, Finished, Progress
from ..engine.job import Control, Inputs
from ..engine.plan import plan
from ..engine.prepare.extra_channels import is_editor, takes_depth
from ..engine.prepare.upscale import is_upscaler, upscaling
from ..engine.scheduler import TICK
from ..engine.snapshot import bit_class
from ..errors import Error, RequestError
from ..formats.infotext import to_infotext
from ..formats.picture import dump_recipe, encoded
from ..images import depth_map, open_picture
from ..loading import load
from ..names import DType
from ..pipeline import Pipeline
from ..prompts.embeddings import names_in
from ..request import Request
from . import questions
from .messages import Message, read

PREVIEW_EVERY = 0.5  # seconds, of one picture
PREVIEW_SIDE = 256  # pixels
STATS_EVERY = 1.0  # seconds
NICE = 5

log = logging.getLogger(__name__)


@dataclass
class Loaded:
    """A model, and its pictures in progress."""

    name: str
    pipe: Pipeline
    engine: Engine
    description: Mapping[str, Any]


@dataclass
class Aboard:
    """A picture in progress."""

    model: Loaded
    claim: int
    job: str
    watched: bool
    begun: float
    previewed: float = 0.0
    kept: float = 0.0  # when its newest snapshot was made
    step: int = 0
    steps: int = 1


@dataclass
class Rate:
    """How long a unit of work takes: a row of a megapixel, once through the U-Net."""

    seconds: float | None = None

    def add(self, seconds: float, units: float) -> None:
        new = seconds / max(units, 1e-9)
        self.seconds = new if self.seconds is None else 0.9 * self.seconds + 0.1 * new


@dataclass
class Worker:
    """The process's state. Everything but `inbox` and `outbox` belongs to the thread that moves pictures."""

    device: str
    dtype: DType
    snapshot_every: float
    max_rows: int | None
    inbox: queue.SimpleQueue[Message] = field(default_factory=queue.SimpleQueue)
    outbox: queue.SimpleQueue[Message | None] = field(default_factory=queue.SimpleQueue)
    models: dict[str, Loaded] = field(default_factory=dict)
    aboard: dict[str, Aboard] = field(default_factory=dict)
    rate: Rate = field(default_factory=Rate)
    ticks: int = 0
    rows: int = 0
    busy: float = 0.0  # seconds in ticks
    encoding: int = 0  # finished pictures whose file is being made
    stopping: bool = False

    def __post_init__(self) -> None:
        self.encoders = ThreadPoolExecutor(2, thread_name_prefix="encoder")
        self.helpers = ThreadPoolExecutor(1, thread_name_prefix="helper")

    def say(self, kind: str, *blobs: bytes, **fields: Any) -> None:
        """Send a message; returns at once."""
        self.outbox.put(Message(kind, fields, blobs))

    # --- the loop

    def run(self) -> None:
        """Move pictures until told to stop."""
        told = 0.0
        while True:
            self._take(wait=not self.aboard)
            if self.stopping:
                return self._stop()
            for name in list(self.models):  # by name: a model that is let go must not be held here
                if self.models[name].engine.jobs:
                    self._tick(self.models[name])
            if time.monotonic() - told > STATS_EVERY:
                told = time.monotonic()
                self._tell()

    def _take(self, wait: bool) -> None:
        """Do what was asked meanwhile; with nothing in progress, wait for it."""
        try:
            message = self.inbox.get(timeout=STATS_EVERY) if wait else self.inbox.get_nowait()
            while True:
                self._do(message)
                message = self.inbox.get_nowait()
        except queue.Empty:
            return

    def _do(self, message: Message) -> None:
        doing: Mapping[str, Callable[[Message], None]] = {
            "load": self._load,
            "loaded": self._take_in,
            "unload": self._unload,
            "threads": lambda message: torch.set_num_threads(message["count"]),
            "submit": self._submit,
            "cancel": self._cancel,
            "watch": self._watch,
            "call": self._call,
            "stop": lambda message: setattr(self, "stopping", True),
        }
        doing[message.kind](message)

    def _tell(self) -> None:
        self.say(
            "stats",
            ticks=self.ticks,
            rows=self.rows,
            busy=self.busy,
            seconds_per_unit=self.rate.seconds,
            memory=_resident(),
            models=list(self.models),
            aboard=len(self.aboard),
        )

    def _stop(self) -> None:
        """Keep what every picture in progress is at, and go."""
        for id, picture in self.aboard.items():
            self._keep(id, picture)
        self.encoders.shutdown()
        self.say("stopped")

    # --- models

    def _load(self, message: Message) -> None:
        name, path = message["name"], message["path"]
        if name in self.models:
            return self.say("loaded", name=name, description=self.models[name].description)
        self.say("phase", name="loading", seconds=message.fields.get("seconds", 600))

        began = time.monotonic()

        def work() -> None:
            try:
                vae, lora_dir = message.fields.get("vae"), message.fields.get("lora_dir")
                pipe = load(path, device=self.device, dtype=self.dtype, vae=vae, lora_dir=lora_dir)
                described = _describe(name, pipe, self.max_rows) | {"load_seconds": time.monotonic() - began}
                self._loading.append((pipe, described))
                self.inbox.put(Message("loaded", {"name": name}))
            except Exception as error:
                sentence = str(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"
                self.say("failed_load", name=name, error=sentence)

        threading.Thread(target=work, name="loader", daemon=True).start()

    @property
    def _loading(self) -> list[tuple[Pipeline, dict[str, Any]]]:
        return self.__dict__.setdefault("_arrived", [])  # type: ignore[no-any-return]

    def _take_in(self, message: Message) -> None:
        pipe, described = self._loading.pop(0)
        engine = Engine(pipe, max_rows=self.max_rows, deterministic=True, tick_seconds=TICK)
        described["bit_exact"] = engine.bit_exact
        described["bit_class"] = bit_class(pipe.device, engine.bit_exact)
        described["budget"] = engine.budget * pipe.autoencoder.config.downscale**2 / 1e6
        self.models[described["name"]] = Loaded(described["name"], pipe, engine, described)
        self.say("loaded", name=described["name"], description=described)

    def _unload(self, message: Message) -> None:
        """Let a model go that has nothing in progress."""
        if message["name"] in self.models and not self.models[message["name"]].engine.jobs:
            del self.models[message["name"]]
            _give_back()
            self.say("unloaded", name=message["name"])

    # --- pictures

    def _submit(self, message: Message) -> None:
        id, claim = message["id"], message["claim"]
        model = self.models.get(message["model"])
        if model is None:
            return self.say("failed", id=id, claim=claim, error="the model is not loaded", retry=True)
        self.say("phase", name="encoding", seconds=60)
        try:
            request, inputs = _opened(model.pipe, message)
            kept = message.blobs[-1] if message["snapshot"] else None
            model.engine.add(request, inputs, id=id, rank=message["rank"], snapshot=kept)
        except Exception as error:
            return self._failed(id, claim, error)
        now = time.monotonic()
        self.aboard[id] = Aboard(model, claim, message["job"], message["watched"], now, kept=now)

    def _cancel(self, message: Message) -> None:
        picture = self.aboard.get(message["id"])
        if picture is not None and picture.claim == message["claim"]:
            picture.model.engine.abort(message["id"])
            del self.aboard[message["id"]]

    def _watch(self, message: Message) -> None:
        for picture in self.aboard.values():
            if picture.job == message["job"]:
                picture.watched = message["on"]

    def _tick(self, model: Loaded) -> None:
        began = time.monotonic()
        engine = model.engine
        moving = engine.moving()
        rows = [(job.rows, job.rows * job.size[0] * job.size[1] / 1e6) for job in moving]
        units = sum(unit for _, unit in rows)
        self.say("phase", name="ticking", seconds=60 + 10 * units * (self.rate.seconds or 60.0))
        events = engine.tick()
        took = time.monotonic() - began
        self.ticks += 1
        self.busy += took
        if units:
            self.rate.add(took, units)
            self.rows = sum(count for count, _ in rows)
        steps = [event for event in events if isinstance(event, Progress)]
        if steps:
            self.say("progress", items=[[e.id, self.aboard[e.id].claim, e.step, e.steps] for e in steps])
        for step in steps:
            self._look(step)
        events += engine.decode_one()
        for event in events:
            if isinstance(event, Finished):
                self._finished(event)
            elif isinstance(event, Failed):
                picture = self.aboard.pop(event.id)
                self._failed(event.id, picture.claim, event.error)

    def _look(self, event: Progress) -> None:
        """A preview of a picture that somebody watches, and a snapshot of one that has long to go."""
        picture, now = self.aboard[event.id], time.monotonic()
        picture.step, picture.steps = event.step, event.steps
        if picture.watched and now - picture.previewed >= PREVIEW_EVERY and event.step < event.steps:
            picture.previewed = now
            buffer = io.BytesIO()
            small = event.preview()
            small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
            small.save(buffer, "JPEG", quality=70)
            self.say("preview", buffer.getvalue(), id=event.id, claim=picture.claim, step=event.step)
        if now - picture.kept >= self.snapshot_every:
            to_go = (now - picture.begun) / max(event.step, 1) * (event.steps - event.step)
            if to_go > self.snapshot_every:
                picture.kept = now
                self._keep(event.id, picture)

    def _keep(self, id: str, picture: Aboard) -> None:
        """Tell how far a picture is, so that another process can go on from there."""
        state = picture.model.engine.snapshot(id)
        if state is not None and picture.step:
            self.say("snapshot", state, id=id, claim=picture.claim, step=picture.step)

    def _finished(self, event: Finished) -> None:
        picture = self.aboard.pop(event.id)
        image = event.result
        assert isinstance(image, Image.Image)

        def work() -> None:
            try:
                recipe = event.request.to_dict()
                data = encoded(image, "PNG", recipe)
                facts = {
                    "width": image.width,
                    "height": image.height,
                    "sha256": sha256(data).hexdigest(),
                    "infotext": to_infotext(recipe).encode("utf-8", "replace").decode(),
                    "recipe": dump_recipe(recipe),
                    "warnings": list(event.warnings),
                }
            except Exception as error:
                return self._failed(event.id, picture.claim, error)
            self.say("finished", data, id=event.id, claim=picture.claim, **facts)

        self.encoders.submit(work)

    def _failed(self, id: str, claim: int, error: Exception) -> None:
        if not isinstance(error, Error):
            log.exception("picture %s failed", id, exc_info=error)
        sentence = str(error) if isinstance(error, Error) else f"internal error: {type(error).__name__}: {error}"
        self.say("failed", id=id, claim=claim, error=sentence, retry=False)

    # --- questions

    def _call(self, message: Message) -> None:
        """Answer a question beside the pictures, in a thread of its own."""
        model = self.models.get(message.fields.get("model", "")) or next(iter(self.models.values()), None)
        pipe, arguments = None if model is None else model.pipe, message["arguments"]
        asked: Mapping[str, Callable[[], Any]] = {
            "explain": lambda: questions.explained(pipe, arguments),
            "enlarge": lambda: questions.enlarged(message.blobs[0], arguments),
            "adapters": lambda: questions.adapters(arguments["files"]),
        }

        def work() -> None:
            try:
                self.say("answer", call=message["call"], value=asked[message["name"]](), error=None)
            except Exception as error:
                sentence = str(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"
                self.say("answer", call=message["call"], value=None, error=sentence)

        self.helpers.submit(work)


def _describe(name: str, pipe: Pipeline, max_rows: int | None) -> dict[str, Any]:
    """What the web process needs to know of a model to complete and to price requests."""
    usual = plan(pipe.schedule, pipe.scheduler_config)
    task = "upscale" if is_upscaler(pipe) else "edit" if is_editor(pipe) else "depth" if takes_depth(pipe) else "text"
    networks = pipe.model.networks.values()
    return {
        "name": name,
        "hash": pipe.model_hash,
        "title": pipe.name,
        "size": list(pipe.size),
        "downscale": pipe.autoencoder.config.downscale,
        "defaults": dict(pipe.defaults),
        "sampler": usual.sampler_name,
        "schedule": usual.schedule_name,
        "task": task,
        "xl": pipe.unet.config.size_conditioning,
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
        "bytes": sum(p.numel() * p.element_size() for network in networks for p in network.parameters()),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "device": str(pipe.device),
        **questions.text_sizes(pipe),
        **questions.vocabulary(pipe),
    }


def _opened(pipe: Pipeline, message: Message) -> tuple[Request, Inputs]:
    """The request of a submitted picture, and what it is made from."""
    pictures = {role: Image.open(io.BytesIO(blob)) for role, blob in zip(message["roles"], message.blobs, strict=False)}
    wanted = message["wanted"]
    fields = dict(wanted["request"])
    if wanted.get("upscale") is not None:
        fields = _upscaled(pipe, fields, wanted["upscale"], pictures)
    for name, path in wanted.get("upscalers", {}).items():
        pipe.upscalers[name] = pipe.upscaler(path)
    request = Request.from_dict(fields).seeded().numbered(message["index"])
    texts = (request.prompt, request.negative_prompt)
    inputs = pipe.inputs(
        image=pictures.get("image"),
        mask=pictures.get("mask"),
        depth=None if "depth" not in pictures else depth_map(pictures["depth"]),
        controls=[
            Control(
                control["path"],
                pictures[f"control.{i}"],
                scale=control.get("scale", 1.0),
                start=control.get("start", 0.0),
                stop=control.get("stop", 1.0),
                guess=control.get("guess", False),
                hint=control.get("hint"),
            )
            for i, control in enumerate(wanted.get("controls", ()))
        ],
        loras=[Lora(lora["path"], lora["scale"], lora.get("text_scale")) for lora in wanted.get("loras", ())],
        embeddings=_named_words(message["words"], texts, request.prompt_style),
    )
    return request, inputs


def _upscaled(
    pipe: Pipeline, fields: dict[str, Any], asked: Mapping[str, Any], pictures: Mapping[str, Image.Image]
) -> dict[str, Any]:
    if "image" not in pictures:
        raise RequestError("upscale needs an image; give one")
    size = open_picture(pictures["image"]).size
    found = upscaling(pipe, size, asked.get("scale"), fields.get("strength"), fields.get("tile"))
    return {**fields, **{name: value for name, value in found.items() if value is not None}}


def _named_words(words: Mapping[str, str], texts: Sequence[str], style: str) -> list[Path]:
    """The files of the learned words of the models' folder that the texts name."""
    named = {name for text in texts for name in names_in(text, list(words), style)}
    return [Path(words[name]) for name in sorted(named)]


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _give_back() -> None:
    import gc

    from ..kernels.heap import return_freed_memory

    gc.collect()
    return_freed_memory()


def main() -> None:
    """Serve one web process until it stops us or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the web process decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(NICE)
    line = socket.socket(fileno=int(sys.argv[1]))
    stream = line.makefile("rb")
    start = read(stream)
    if start is None:
        return
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    if start.fields.get("threads"):
        torch.set_num_threads(start["threads"])
    worker = Worker(start["device"], start["dtype"], start["snapshot_every"], start.fields.get("max_rows"))

    def listen() -> None:
        try:
            while (message := read(stream)) is not None:
                worker.inbox.put(message)
        finally:
            os._exit(0)  # the web process is gone, however it went: nobody is left to draw for

    def speak() -> None:
        while (message := worker.outbox.get()) is not None:
            line.sendall(message.packed())

    threading.Thread(target=listen, name="listener", daemon=True).start()
    speaker = threading.Thread(target=speak, name="speaker", daemon=True)
    speaker.start()
    worker.say("ready", pid=os.getpid())
    worker.run()
    worker.outbox.put(None)
    speaker.join(timeout=5)


if __name__ == "__main__":
    main()
