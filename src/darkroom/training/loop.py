"""The training loop: any stage's loss, with exact resume.

All randomness of a step is a function of (seed, step): a run that was killed and resumed equals one that was not,
bit for bit on the CPU with the same number of threads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from darkroom.errors import TrainingError

from . import optim, state
from .background import interruptible, prefetch
from .config import LoopConfig, check_loop, check_recipe
from .ema import Average
from .log import Log
from .opponents import Opponents
from .parallel import Share, share, sum_over_ranks
from .rates import rate


class Stopped(KeyboardInterrupt):
    """A run was interrupted, and saved: its message says how far it came."""


def check_done(run: Path, steps: int) -> None:
    """Raise Stopped unless a run has come to its end."""
    done = state.steps_done(run)
    if done < steps:
        raise Stopped(f"stopped at step {done} of {steps} in {run}; the same command goes on")


class Stage(Protocol):
    """What the loop trains. `modules` are saved, averaged and updated under their names.

    A stage may also have `opponents`, modules under their names, and `opponents_lr`: see `opponents.Opponents`. Their
    loss is a summand of the stage's.
    """

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
    trainer = Trainer(stage, folder)
    trainer.restore(resume)
    return trainer.run(until)


class Trainer:
    """A run in progress: the stage's networks, their optimizer and average, and how far they are."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.folder, self.config = stage, folder, stage.config
        self.rank = share()
        check_loop(self.config, self.rank.world)
        # The rows of a step are shared by ranks, and a rank's by its parts: each is a share like any other.
        world, parts = self.rank.world, self.config.accumulate
        self.parts = [Share(self.rank.rank + world * i, world * parts) for i in range(parts)]
        self.device = torch.device(self.config.device)
        self.parameters = [p for m in stage.modules.values() for p in m.parameters() if p.requires_grad]
        config = self.config
        self.optimizer = optim.build(config.optimizer, stage.modules.values(), config.lr, config.weight_decay)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.opponents = Opponents(getattr(stage, "opponents", {}), getattr(stage, "opponents_lr", 0.0))
        self.average = Average(stage.modules, config.ema)
        self.step = 0
        self.skipped = torch.zeros((), device=self.device)  # steps that changed nothing; read when it is written
        self._on_disk = -1  # the step of the newest checkpoint

    def restore(self, resume: bool = True) -> None:
        """Go on with the newest checkpoint, if there is one. Raises TrainingError if there shall not be one."""
        saved = state.load_last(self.folder)
        if saved is None:
            return
        if not resume:
            raise TrainingError(
                f"{self.folder} holds a run at step {saved['step']}; resume it or choose another folder"
            )
        check_recipe(saved["recipe"], self.config, self.folder)
        for name, module in self.stage.modules.items():
            module.load_state_dict(saved["modules"][name])
        # The settings of the optimizer are the recipe's, its state is the checkpoint's.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": saved["optimizer"]["state"], "param_groups": groups})
        self.opponents.load(saved.get("opponents", {}))
        self.average.load(saved["ema"])
        self.step = self._on_disk = saved["step"]
        self.skipped.fill_(saved["skipped"])

    def save(self) -> None:
        """Write a checkpoint, unless this step has one. Raises TrainingError."""
        if self.rank.rank == 0 and self.step != self._on_disk:
            state.save(self.folder, self.step, {
                "step": self.step, "skipped": int(self.skipped), "recipe": asdict(self.config),
                "modules": {n: m.state_dict() for n, m in self.stage.modules.items()},
                "optimizer": self.optimizer.state_dict(), "ema": self.average.weights,
                "opponents": self.opponents.state(),
            }, self.config.keep)  # fmt: skip
            self._on_disk = self.step

    def run(self, until: int | None = None) -> int:
        """Train to the end, to step `until`, or to an interruption; returns the step reached."""
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rank.rank == 0:
            (self.folder / "recipe.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
        end = min(config.steps, until if until is not None else config.steps)
        last_saved = time.monotonic()
        with Log(self.folder, self.step) as log, interruptible() as asked, self._batches(end) as batches:
            for parts in batches:
                figures, stopping = self._advance(parts, asked)
                log.add(figures)
                if self.rank.rank == 0 and (self.step % config.log_every == 0 or self.step == end or stopping):
                    log.write(self.step, config, self.optimizer, self.skipped)
                if time.monotonic() - last_saved > config.save_every:
                    self.save()
                    last_saved = time.monotonic()
                if stopping:
                    break
            self.save()
        return self.step

    def _batches(self, end: int) -> AbstractContextManager[Iterator[list[Any]]]:
        """The batches of every part, step by step, made in another thread."""
        return prefetch(lambda step: [self.stage.batch(step, part) for part in self.parts], self.step, end)

    def _advance(self, batches: Sequence[Any], asked: Callable[[], bool]) -> tuple[dict[str, Tensor], bool]:
        """One step; returns its figures, and whether all ranks shall stop after it."""
        config = self.config
        factor = rate(config, self.step)
        for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = base * factor
        self.optimizer.zero_grad(set_to_none=True)
        self.opponents.clear()
        figures = self._gradients(batches)
        stopping = self._exchange(asked())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        good = torch.isfinite(norm) & torch.isfinite(self.opponents.clip(config.clip)).to(norm.device)
        self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]  # see optim.py
        self.optimizer.step()
        self.opponents.step(factor, good)
        self.average.update(self.step, good)
        self.skipped += ~good
        self.step += 1
        return {"good": good, "norm": norm, **figures}, stopping

    def _gradients(self, batches: Sequence[Any]) -> dict[str, Tensor]:
        """Add this rank's gradients of a step up, part by part; returns the loss and the stage's figures, averaged."""
        means: dict[str, Tensor] = {}
        for part, batch in zip(self.parts, batches, strict=True):
            torch.manual_seed(step_seed(self.config.seed, self.step))  # every part draws for the whole batch
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                loss, figures = self.stage.loss(batch, self.step, part)
            (loss / part.world).backward()  # type: ignore[no-untyped-call]
            for key, value in {"loss": loss.detach(), **figures}.items():
                means[key] = value / len(self.parts) + means.get(key, 0)
        return means

    def _exchange(self, asked: bool) -> bool:
        """Sum the gradients of all ranks. Whether anybody was asked to stop travels with them: all stop at one step."""
        if self.rank.world == 1:
            return asked
        stopping = torch.tensor(float(asked), device=self.device)
        learning = [*self.parameters, *self.opponents.parameters]
        sum_over_ranks([p.grad for p in learning if p.grad is not None] + [stopping])
        return bool(stopping)
