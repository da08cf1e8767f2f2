"""The training loop: any stage's loss, with exact resume.

All randomness of a step is a function of (seed, step): a run that was killed and resumed equals one that was not,
bit for bit on the CPU with the same number of threads.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from darkroom.errors import TrainingError

from . import optim, state
from .parallel import Share, share, sum_over_ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """What every stage's recipe has."""

    steps: int  # length of the run; may be changed between resumes (the cool-down moves with it)
    batch_size: int
    lr: float
    optimizer: str = "muon"  # "muon" or "adamw"
    weight_decay: float = 0.0
    warmup: int = 200  # steps
    cooldown: float = 0.4  # the fraction of the run over which the learning rate falls to zero
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.998  # decay of the averaged weights
    precision: str = "bfloat16"  # of the products ("float32" or "bfloat16"); weights and optimizer are float32
    seed: int = 0
    save_every: float = 300.0  # seconds between checkpoints
    log_every: int = 50  # steps between log lines
    keep: int = 2  # checkpoints kept
    device: str = "cpu"


PATIENCE = 1.0  # seconds after an interruption in which another one is the same


class Stopped(KeyboardInterrupt):
    """A run was interrupted, and saved: its message says how far it came."""


def check_done(run: Path, steps: int) -> None:
    """Raise Stopped unless a run has come to its end."""
    done = state.steps_done(run)
    if done < steps:
        raise Stopped(f"stopped at step {done} of {steps} in {run}; the same command goes on")


class Stage(Protocol):
    """What the loop trains. `modules` are saved, averaged and updated under their names."""

    @property
    def modules(self) -> Mapping[str, nn.Module]: ...

    @property
    def config(self) -> LoopConfig: ...

    def batch(self, step: int, share: Share) -> Any:
        """This process's share of a step's data, prepared in another thread; a pure function of its arguments."""

    def loss(self, batch: Any, step: int, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, a mean over rows, and detached figures to log.

        torch's generator has been seeded for this step: draw for the whole batch, then take the share.
        """


def step_seed(seed: int, step: int) -> int:
    """A 63-bit seed for one step of one run (splitmix64's finaliser: neighbouring steps are unrelated)."""
    z = (seed * 0x9E3779B97F4A7C15 + step + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    z = (z ^ z >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return (z ^ z >> 31) >> 1


def train(stage: Stage, folder: Path, *, resume: bool = True, until: int | None = None) -> int:
    """Run `stage` to its end, or to step `until`, or to an interruption (SIGINT, SIGTERM); returns the step reached.

    `folder` gets `recipe.json`, `log.jsonl` and checkpoints. With `resume` the newest checkpoint goes on; without it
    a folder that has one is refused. Raises TrainingError.
    """
    config, part = stage.config, share()
    device = torch.device(config.device)
    optimizer = optim.build(config.optimizer, stage.modules.values(), config.lr, config.weight_decay)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    averages = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in stage.modules.items()}
    step = skipped = 0
    saved = state.load_last(folder)
    if saved is not None:
        if not resume:
            raise TrainingError(f"{folder} holds a run at step {saved['step']}; resume it or choose another folder")
        check_recipe(saved["recipe"], asdict(config), folder)
        step, skipped = saved["step"], saved["skipped"]
        for name, module in stage.modules.items():
            module.load_state_dict(saved["modules"][name])
        optimizer.load_state_dict(saved["optimizer"])
        averages = {n: {k: v.to(device) for k, v in a.items()} for n, a in saved["ema"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    if part.rank == 0:
        (folder / "recipe.json").write_text(json.dumps(asdict(config), indent=1) + "\n")

    on_disk = step if saved is not None else -1

    def checkpoint() -> None:
        nonlocal on_disk
        if part.rank == 0 and step != on_disk:
            state.save(folder, step, {
                "step": step, "skipped": skipped, "recipe": asdict(config), "ema": averages,
                "modules": {n: m.state_dict() for n, m in stage.modules.items()}, "optimizer": optimizer.state_dict(),
            }, config.keep)  # fmt: skip
            on_disk = step

    end = min(config.steps, until if until is not None else config.steps)
    parameters = [p for m in stage.modules.values() for p in m.parameters() if p.requires_grad]
    pairs = [(averages[n][k], v) for n, m in stage.modules.items() for k, v in m.state_dict().items()]
    began = last_saved = last_logged = time.monotonic()
    sums: dict[str, Tensor] = {}
    summed = steps = 0  # good steps in `sums`, and all steps since the last row (fewer than log_every after a resume)
    with (
        open(folder / "log.jsonl", "a") as log,
        interruptible() as asked,
        prefetch(lambda step: stage.batch(step, part), step, end) as batches,
    ):
        for batch in batches:
            factor = optim.rate(step, config.steps, config.warmup, config.cooldown)
            for group, lr in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = lr * factor
            torch.manual_seed(step_seed(config.seed, step))
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss, figures = stage.loss(batch, step, part)
            optimizer.zero_grad(set_to_none=True)
            (loss / part.world).backward()  # type: ignore[no-untyped-call]
            # Whether anybody was asked to stop travels with the gradients, so that all ranks stop at one step.
            stopping = torch.tensor(float(asked()), device=device)
            sum_over_ranks([p.grad for p in parameters if p.grad is not None] + [stopping])
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            if torch.isfinite(norm):
                optimizer.step()
                decay = min(config.ema, (step + 1) / (step + 10))
                torch._foreach_lerp_([a for a, _ in pairs], [v for _, v in pairs], 1 - decay)
            else:
                skipped += 1
            step, steps = step + 1, steps + 1
            if torch.isfinite(norm):
                summed += 1
                for key, value in {"loss": loss.detach(), "norm": norm, **figures}.items():
                    sums[key] = sums.get(key, torch.zeros(())) + value
            if part.rank == 0 and (step % config.log_every == 0 or step == end or stopping):
                now = time.monotonic()
                row = {
                    "step": step,
                    **{k: round(float(v) / summed, 6) for k, v in sums.items()},
                    "rate": round(factor, 4),
                    "skipped": skipped,
                    "samples_per_second": round(steps * config.batch_size / (now - last_logged), 1),
                    "seconds": round(now - began, 1),
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
                sums, summed, steps, last_logged = {}, 0, 0, now
            if time.monotonic() - last_saved > config.save_every:
                checkpoint()
                last_saved = time.monotonic()
            if stopping:
                break
        checkpoint()
    return step


def check_recipe(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    """A run may be prolonged or told to log and save otherwise; anything else would make it another run."""
    free = {"steps", "cooldown", "save_every", "log_every", "keep", "device"}
    for key in new:
        if key not in free and old.get(key) != new[key]:
            raise TrainingError(
                f"{folder} was trained with {key}={old.get(key)!r}, not {new[key]!r}; use another folder"
            )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a question, so that a step is finished and saved.

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
        old = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
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

    thread = threading.Thread(target=work, daemon=True, name="darkroom-data")
    thread.start()
    try:
        yield take()
    finally:
        closing.set()
        thread.join()
