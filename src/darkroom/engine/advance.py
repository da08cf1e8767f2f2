"""One tick: jobs x guidance branches become rows, rows share U-Net calls, every job's sampler takes one step.

C H W: a latent's channels, height and width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..diffusion.condition import Condition, group_key
from ..errors import Error, RequestError, out_of_memory
from ..kernels.heap import return_freed_memory
from ..samplers.state import SamplerState
from .job import Job, Kept
from .scheduler import share

Denoise = Callable[[Tensor, Sequence[float], Sequence[Condition], Sequence[float | None]], Tensor]
"""x [N, C, H, W]; of each row: sigma, condition, timestep (None: the schedule's) -> denoised [N, C, H, W] float32."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Moved:
    """A job's step that went well: its next state, and the guided answer that led there (for a preview)."""

    state: SamplerState
    denoised: Tensor
    kept: Mapping[tuple[int, int], Kept]  # the job's next `kept`


@dataclass(slots=True)
class _Question:
    """One row: what a branch of a job's guidance asks of a window of its state, then the network's answer."""

    job: Job
    place: tuple[int, int]  # which window (0 where there is only the whole), which branch
    x: Tensor  # [C, H, W]
    condition: Condition
    answer: Tensor | None = None  # [C, H, W]

    @property
    def key(self) -> Hashable:
        return tuple(self.x.shape), group_key(self.condition)


@dataclass(slots=True)
class Tick:
    """What became of each job, by id, and the widest call that memory allowed (None: memory never ran out)."""

    moved: dict[str, Moved] = field(default_factory=dict)
    failed: dict[str, Error] = field(default_factory=dict)
    rows_that_fit: int | None = None


def advance(jobs: Sequence[Job], denoise: Denoise, largest: int) -> Tick:
    """Move every job by one network evaluation. Changes no job: the caller takes over the new states, or doesn't.

    A job whose step raises or turns non-finite fails alone. When a call of several jobs raises, each of them asks
    again by itself, to find the culprit; when memory runs out, the call is halved.

    Args:
        denoise: the denoiser.
        largest: rows of one call at most.
    """
    tick = Tick()
    questions = {job.id: _questions(job) for job in jobs}
    rows = [question for asked in questions.values() for question in asked]
    for call in share([question.key for question in rows], largest):
        _ask([rows[i] for i in call], denoise, tick)
    for job in jobs:
        if job.id not in tick.failed:
            try:
                tick.moved[job.id] = _step(job, questions[job.id])
            except Exception as error:
                tick.failed[job.id] = _sentence(error, job)
    _drop_non_finite(jobs, tick)
    return tick


def _questions(job: Job) -> list[_Question]:
    """What a job asks now: all its branches about its first window, then about the next."""
    x, windows, branches = job.state.x, job.windows, job.branches()
    if windows is None:
        shown = [(0, x, branches)]
    else:
        shown = [
            (part, windows.cut(x, place), tuple(windows.narrow(condition, place) for condition in branches))
            for part, place in enumerate(windows.places)
        ]
    return [
        _Question(job, (part, branch), seen, job.shortened(condition, (part, branch)))
        for part, seen, asked in shown
        for branch, condition in enumerate(asked)
    ]


def _answered(question: _Question) -> Tensor:
    assert question.answer is not None
    return question.answer


def _kept(questions: Sequence[_Question]) -> dict[tuple[int, int], Kept]:
    """What the answers left behind for the next ones."""
    asked = {question.place: question.condition for question in questions}
    return {
        place: Kept(c.cached.features, c.text, c.identity)
        for place, c in asked.items()
        if c.cached is not None and c.cached.features is not None
    }


def _ask(questions: Sequence[_Question], denoise: Denoise, tick: Tick) -> None:
    """One U-Net call for questions of one key, smaller ones when it fails. Fills in answers, or marks jobs failed."""
    questions = [q for q in questions if q.job.id not in tick.failed]
    if not questions:
        return
    try:
        x = torch.stack([q.x for q in questions])
        sigmas = [q.job.state.sigma for q in questions]
        told = [q.job.timesteps.get(q.job.state.sigma) for q in questions]
        answers = denoise(x, sigmas, [q.condition for q in questions], told)
        for question, answer in zip(questions, answers.unbind(), strict=True):
            question.answer = answer
        return
    except Exception as error:  # the except block ends before the retry, and with it what the traceback holds in memory
        failure = error.with_traceback(None)
    ids = list(dict.fromkeys(q.job.id for q in questions))
    if out_of_memory(failure) and len(questions) > 1:
        half = (len(questions) + 1) // 2
        log.warning("memory ran out with %d rows in a call; going on with %d", len(questions), half)
        tick.rows_that_fit = min(half, tick.rows_that_fit or half)
        release(questions[0].job.state.x.device)
        _ask(questions[:half], denoise, tick)
        _ask(questions[half:], denoise, tick)
    elif len(ids) > 1:
        for id in ids:
            _ask([q for q in questions if q.job.id == id], denoise, tick)
    else:
        tick.failed[ids[0]] = _sentence(failure, questions[0].job)


def _step(job: Job, questions: Sequence[_Question]) -> Moved:
    """Guidance combines the branches' answers, what is known is restored, the sampler takes its step."""
    state, answers = job.state, [_answered(question) for question in questions]
    if job.windows is not None:
        branches = len(answers) // job.windows.count
        answers = [job.windows.join(answers[branch::branches]) for branch in range(branches)]
    denoised = job.guidance.combine(answers, state.x, job.level)
    if job.known is not None:
        denoised = job.known.restore(denoised)
    return Moved(job.sampler.step(state, denoised, job.sigmas, job.noise), denoised, _kept(questions))


def _drop_non_finite(jobs: Sequence[Job], tick: Tick) -> None:
    """Fail the jobs whose new state holds a NaN or an infinity; one look at the device for all of them."""
    moved = [job for job in jobs if job.id in tick.moved]
    if not moved:
        return
    finite = torch.stack([tick.moved[job.id].state.x.isfinite().all() for job in moved]).tolist()
    for job, good in zip(moved, finite, strict=True):
        if not good:
            del tick.moved[job.id]
            tick.failed[job.id] = RequestError(
                f"the picture turned into numbers that are not finite in step {job.crossed + 1} of {job.steps}; "
                f'load the model with dtype="float32", or choose another sampler or a lower guidance_scale'
            )


def _sentence(error: Exception, job: Job) -> Error:
    """What a user is told of an exception in their job."""
    if isinstance(error, Error):
        return error
    width, height = job.size
    told = RequestError(
        f"memory ran out while drawing {width}x{height} pixels; ask for a smaller picture"
        if out_of_memory(error)
        else f"step {job.crossed + 1} of {job.steps} failed: {type(error).__name__}: {error}"
    )
    told.__cause__ = error
    return told


# --- memory


def release(device: torch.device) -> None:
    """Give cached blocks back, so that a smaller attempt finds whole ones, or another program."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        return_freed_memory()
