"""Pictures in progress: add requests, call step() until nothing is left, read the events.

A single picture and a server's thousand run the same loop. One thread at a time calls `step`; any thread may add and
abort meanwhile. Several Engines may share one model.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..accelerate.compiled import is_compiled
from ..accelerate.fp8 import Float8Linear
from ..accelerate.int8 import Int8Conv2d, Int8Linear
from ..diffusion.condition import Condition
from ..errors import Error, RequestError, out_of_memory
from ..kernels.exact import same_bits
from ..kernels.packed import available
from ..models.unet import UNet
from ..request import Request, whole
from .advance import advance, release
from .decode import Preview, finish
from .job import Inputs, Job
from .prepare import LoadedModel, enlarged, prepare, prepare_next
from .queue import Asked, Jobs, Queue
from .scheduler import ACCELERATOR_ROWS, ACCELERATOR_UNITS, ADMITTED, CPU_ROWS, CPU_UNITS, Width, pick
from .snapshot import bit_class, dump, restore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """A job has crossed one more interval between noise levels."""

    id: str
    step: int  # 1..steps
    steps: int
    preview: Callable[[], Image.Image]  # makes a rough picture of how it looks so far, without a network
    index: int = 0  # in Pipeline.generate: which of its pictures


@dataclass(frozen=True, slots=True)
class Finished:
    """A picture is done, and its job gone from the engine."""

    id: str
    result: Image.Image | Tensor  # by the job's output: "pil"; "pt" [3, H, W] in 0..1; "latent" [C, h, w] (on the CPU)
    request: Request  # the complete recipe
    warnings: tuple[str, ...] = ()  # what a user should know: another model than the recipe names, ...; a sentence each

    @property
    def image(self) -> Image.Image:
        """The picture. Raises RequestError where its job's output is another one than "pil"."""
        if not isinstance(self.result, Image.Image):
            raise RequestError(f'job {self.id!r} gives a tensor; see its result, or add it with output="pil"')
        return self.result


@dataclass(frozen=True, slots=True)
class Failed:
    """A picture can't be drawn, and its job is gone; the others go on."""

    id: str
    error: Error


Event = Progress | Finished | Failed


class Engine:
    """Draws many pictures at once.

    Args:
        model: a `darkroom.Pipeline` (anything with its networks will do).
        max_rows: U-Net rows of a tick, and of a call, at most; a guided picture is two rows. None: what suits the
            device, fewer for large pictures. Less for a while after memory ran out.
        tick_seconds: what a tick takes at most, where one job alone allows it: so that others needn't wait long for
            their turn, or a server for its next look. None: no limit.
        deterministic: a picture has the same bits whatever else is drawn with it, where `bit_exact` says so: kernels of
            constant bits, and no call of a single row (docs/determinism.md). Without it, kernels choose by the batch's
            size and the number of threads, and the last digits vary.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_rows: int | None = None,
        deterministic: bool = False,
        tick_seconds: float | None = None,
    ) -> None:
        self.model = model
        on_cpu = model.device.type == "cpu"
        if max_rows is None:
            self.max_rows, self.budget = (CPU_ROWS, CPU_UNITS) if on_cpu else (ACCELERATOR_ROWS, ACCELERATOR_UNITS)
        else:
            self.max_rows = whole("max_rows", max_rows, 1, 100_000)
            self.budget = self.max_rows * model.unet.config.sample_size**2
        self.deterministic = deterministic
        self.tick_seconds = tick_seconds
        self._queue = Queue()
        self._width = Width(self.max_rows)
        self._rate: float | None = None  # seconds of a unit, as of late

    @property
    def bit_exact(self) -> bool:
        """Whether a picture's bytes are the same in any company and with 1, 2 or 4 threads, in this kind of processor.

        It takes `deterministic`, and a U-Net in float32 on a processor with oneDNN: not compiled, not rounded to
        8 bits, not run by another library. Elsewhere pictures differ in the last digits.
        """
        unet, rounded = self.model.unet, (Float8Linear, Int8Linear, Int8Conv2d)
        if not self.deterministic or type(unet) is not UNet or is_compiled(unet):
            return False
        weight = next(unet.parameters())  # the first only: packed layers unpack when asked for theirs
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or not available(torch.float32):
            return False
        return not any(isinstance(layer, rounded) for layer in unet.modules())

    @property
    def jobs(self) -> Mapping[str, Job]:
        """The jobs in progress by id, in order. Pickle one at any time between steps, and `resume` it.

        Those for which there is no room yet are held as requests, and prepared when they are looked at.
        """
        return Jobs(self._queue, self._prepared)

    def add(
        self,
        request: Request,
        inputs: Inputs | None = None,
        *,
        id: str | None = None,
        output: str = "pil",
        rank: float | None = None,
        snapshot: bytes | None = None,
    ) -> str:
        """Take a request in; its id comes back. Encodes its texts and pictures.

        Args:
            inputs: what the picture is made from beside its request: starting noise, pictures, adapters.
            id: what its events shall call it, such as a queue's own number; None: one is drawn.
            output: "pil", "pt" (float32 [3, H, W] in 0..1) or "latent" ([C, h, w], scaled as the U-Net sees it).
            rank: its place in the order, the lowest first (`scheduler.rank`); None: by arrival. All have one, or none.
            snapshot: how far it was somewhere else (`snapshot`); it goes on from there if all fits, else starts over.

        Raises RequestError where the model can't do what is asked, and for an id that is in progress.
        """
        id = secrets.token_hex(8) if id is None else id
        if id in self._queue:
            raise RequestError(f"job {id!r} is already in progress; abort it first")
        asked = Asked(id, request.seeded(), inputs or Inputs(), output, snapshot)
        job = self._prepared(asked)  # also where it has to wait: what can't be done is refused now
        room = self._room(job)
        self._queue.add(job if room else asked, rank, room)
        return id

    @torch.no_grad()
    def _prepared(self, asked: Asked) -> Job:
        job = prepare(self.model, asked.request, asked.id, asked.inputs, asked.output)
        if asked.snapshot is None:
            return job
        return restore(self.model, copy(job), asked.snapshot, self._bit_class) or job

    def _room(self, more: Job | None = None) -> bool:
        """Whether one more job (None: any) may be prepared beside those that are."""
        held = sum(_weight(job) for job in self._queue.admitted())
        return not held or held + (1 if more is None else _weight(more)) <= ADMITTED * self.budget

    def resume(self, job: Job, rank: float | None = None) -> str:
        """Take in a job that was made, or begun, elsewhere (with the same model)."""
        self._queue.add(job, rank, self._room(job))
        return job.id

    def snapshot(self, id: str) -> bytes | None:
        """How far a job is, for `add` in this or another process; None where it would have to start over, or is gone.

        Its size is the latent's and what the sampler remembers: 66 kB for 512 x 512. Between steps, as for `jobs`.
        """
        job = self._queue.get(id)
        if isinstance(job, Asked):
            return job.snapshot
        return None if job is None else dump(job, self._bit_class)

    @property
    def _bit_class(self) -> str:
        return bit_class(self.model.device, self.bit_exact)

    def abort(self, id: str) -> None:
        """Forget a job; no event tells of it any more. Nothing happens if it has already finished or failed."""
        if self._queue.remove(id):
            self._rest()

    def run(self, refill: Callable[[], None] = lambda: None) -> Iterator[Event]:
        """The loop over `step`: all events, as they come, until no job is left.

        `refill` is called before every step and may add jobs.
        """
        while True:
            refill()
            if not len(self._queue):
                return
            yield from self.step()

    def step(self) -> list[Event]:
        """`tick`, then `decode_one`: their events."""
        return [*self.tick(), *self.decode_one()]

    @torch.no_grad()
    def tick(self) -> list[Event]:
        """Move the jobs that fit by one network evaluation; nothing where all are done sampling.

        Interrupted at any point (KeyboardInterrupt), the engine stays whole, and the next tick goes on from there.
        """
        events = self._admit()
        moving = self.moving()
        if not moving:
            return events
        began, units = self._clock(), sum(job.units for job in moving)
        tick = advance(moving, self._denoise, self._width.rows)
        self._width.ticked(tick.rows_that_fit)
        rate = (self._clock() - began) / units
        # A narrow tick is dear by the row: what a wide one showed is believed for long.
        self._rate = rate if self._rate is None else min(rate, 1.05 * self._rate)
        for job in moving:
            if (error := tick.failed.get(job.id)) is not None:
                events += self._failure(job.id, error)
                continue
            if job.id not in self._queue:
                continue  # aborted meanwhile
            before, moved = job.state.interval, tick.moved[job.id]
            job.state, job.kept = moved.state, moved.kept
            if job.state.interval > before:
                step = job.before + job.crossed
                events.append(Progress(job.id, step, job.total, self._preview(job, moved.denoised)))
        return events

    def _clock(self) -> float:
        """Seconds; on a processor those of work, so that a busy machine doesn't make ticks narrow, and slower still."""
        if self.model.device.type != "cpu":
            return time.perf_counter()
        return time.process_time() / torch.get_num_threads()

    @torch.no_grad()
    def decode_one(self) -> list[Event]:
        """Decode one picture that is done sampling, or begin its next pass; nothing where none is. Interruptible, too.

        Pictures are decoded one at a time: eight at once take no less time, and a picture's bits are its own.
        """
        job = next((job for job in self._queue.admitted() if job.done), None)
        if job is None:
            return []
        try:
            result = finish(self.model.autoencoder, job)
            after = None if job.next is None else prepare_next(self.model, job, result)
            if after is None and isinstance(result, Image.Image):
                result = enlarged(self.model, job.request, result)
        except Exception as error:
            if out_of_memory(error):
                release(self.model.device)
                width, height = job.size
                size = f"{width}x{height}"
                error = RequestError(f"memory ran out while decoding {size} pixels; ask for a smaller picture")
            elif not isinstance(error, Error):
                told = RequestError(f"decoding the picture failed: {type(error).__name__}: {error}")
                told.__cause__ = error
                error = told
            return self._failure(job.id, error)
        if after is not None:
            self._queue.replace(after)  # aborted meanwhile: neither a picture nor a second pass
            return []
        if not self._queue.remove(job.id):
            return []
        self._rest()
        return [Finished(job.id, result, job.request, job.warnings)]

    def _rest(self) -> None:
        """Give memory back when nothing is left to do."""
        if not len(self._queue) and self.model.device.type == "cpu":
            release(self.model.device)

    def _admit(self) -> list[Event]:
        """Prepare the jobs that wait while there is room for them; events of those that turn out impossible."""
        events: list[Event] = []
        while self._room() and (given := self._queue.next_waiting()) is not None:
            try:
                job = given if isinstance(given, Job) else self._prepared(given)
            except Exception as error:  # it was possible when it was taken in: a file may be gone
                told = error if isinstance(error, Error) else RequestError(f"{type(error).__name__}: {error}")
                events += self._failure(given.id, told)
                continue
            self._queue.replace(job)
        return events

    def moving(self) -> list[Job]:
        """The jobs that the next tick moves, of those that are prepared: the first in order, within the budget."""
        allowed = float(self.budget)
        if self.tick_seconds is not None and self._rate:
            allowed = min(allowed, self.tick_seconds / self._rate)
        waiting = [job for job in self._queue.admitted() if not job.done]
        picked = pick(((job, job.units) for job in waiting), allowed)
        return pick(((job, job.rows) for job in picked), self._width.rows)

    def _denoise(
        self, x: Tensor, sigmas: Sequence[float], conditions: Sequence[Condition], told: Sequence[float | None]
    ) -> Tensor:
        """One call of the denoiser, with each row's own timestep where its plan has one, else the schedule's."""
        t_of = self.model.schedule.sigma_to_t
        timesteps = [t_of(sigma) if t is None else t for sigma, t in zip(sigmas, told, strict=True)]
        if not self.deterministic:
            return self.model.denoiser(x, sigmas, conditions, t=timesteps)
        with same_bits(self.model.unet):
            if len(x) > 1:
                return self.model.denoiser(x, sigmas, conditions, t=timesteps)
            # A single row goes with a copy of itself: kernels for one have other bits than those for two and more.
            return self.model.denoiser(x.repeat(2, 1, 1, 1), [*sigmas] * 2, [*conditions] * 2, t=timesteps * 2)[:1]

    def _preview(self, job: Job, denoised: Tensor) -> Preview:
        return Preview(self.model.previewer, denoised, *job.size)

    def _failure(self, id: str, error: Error) -> list[Event]:
        """The event of a job that is given up; none where it was aborted meanwhile."""
        if not self._queue.remove(id):
            return []
        log.warning("job %s failed: %s", id, error, exc_info=error.__cause__)
        self._rest()
        return [Failed(id, error)]


def _weight(job: Job) -> int:
    """What a prepared job holds, in units: those of its next question, or of its latent if only decoding is left."""
    return job.state.x[0].numel() if job.done else job.units
