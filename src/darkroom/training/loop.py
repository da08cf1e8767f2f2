"""The training loop: any stage's loss, with exact resume.

All randomness of a step is a function of (seed, step): a run that was killed and resumed equals one that was not,
bit for bit on the CPU with the same number of threads.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import TrainingError, out_of_memory
from ..files import owned, replacing, whole_file
from ..kernels.products import linear_layers, onednn_products
from ..models.layers import set_checkpointing
from . import optim, state
from .background import Aside, interruptible, prefetch
from .ema import Average, plain, power, save_snapshot
from .log import Log
from .memory import free
from .optim import rate
from .parallel import Rank, Replicas, spread, sum_over_ranks, this_rank
from .recipe import LoopConfig, check_loop, check_recipe
from .stage import Stage


def operations(work: Callable[[], object]) -> int:
    """The floating-point operations of `work`, a product and its sum counting as two."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@torch.no_grad()
def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product: what the device (with this process's threads) gets to."""
    n = 1024 if device.type == "cpu" else 8192
    x = torch.full((n, n), 0.01, device=device, dtype=dtype)
    best, started = math.inf, time.perf_counter()
    for _ in range(4):
        began = time.perf_counter()
        float((x @ x)[0, 0])  # which waits for the device
        best = min(best, time.perf_counter() - began)
        if time.perf_counter() - started > 0.5:
            break  # such as float16 on a CPU
    return 2 * n**3 / best


# --- discriminators


BETAS = (0.5, 0.9)  # of Esser et al.'s code: a discriminator that changes quickly is no use to remember


class Discriminators:
    """Networks that learn against those that are trained, none or several, with an optimizer (AdamW) and a clipping of
    their own.

    They take part in the same step: the loss goes back to both sides at once, each side's part to its own parameters.
    They are saved, but never averaged: nobody needs them afterwards.
    """

    def __init__(self, modules: Mapping[str, nn.Module], lr: float) -> None:
        self.modules, self.lr = modules, lr
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self._optimizer: torch.optim.Optimizer | None = None
        if self.parameters:
            self._optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=BETAS, weight_decay=0.0, fused=True)

    def clear(self) -> None:
        """Forget the last step's gradients."""
        for p in self.parameters:
            p.grad = None

    def clip(self, largest: float) -> Tensor:
        """Shrink the gradients to a norm of at most `largest`; returns the norm that they had, or 0."""
        return torch.nn.utils.clip_grad_norm_(self.parameters, largest)

    def step(self, factor: float, good: Tensor) -> None:
        """Learn, at `factor` times the learning rate, unless the step is a bad one for either side."""
        if self._optimizer is not None:
            self._optimizer.param_groups[0]["lr"] = self.lr * factor
            self._optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]  # see optim.py
            self._optimizer.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of them."""
        if self._optimizer is None:
            return {}
        weights = {n: m.state_dict() for n, m in self.modules.items()}
        return {"modules": weights, "optimizer": self._optimizer.state_dict()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        if self._optimizer is not None:
            for name, module in self.modules.items():
                module.load_state_dict(saved["modules"][name])
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": saved["optimizer"]["state"], "param_groups": groups})


# --- the loop


MEASURED = 20  # after so many steps of a process its work is counted: shorter runs don't pay for it


class Stopped(KeyboardInterrupt):
    """A run was interrupted, and saved: its message says how far it came."""


def check_done(run: Path, config: LoopConfig) -> None:
    """Raise Stopped unless a run has come to its end, and TrainingError where that was another recipe's run."""
    done = state.steps_done(run)
    if done < config.steps:
        raise Stopped(f"stopped at step {done} of {config.steps} in {run}; the same command goes on")
    if (saved := state.load_last(run, mmap=True)) is not None:
        check_recipe(saved["recipe"], config, run)


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
    # Of several processes the one that has launched them owns the folder.
    with owned(folder, "run", TrainingError) if this_rank().world_size == 1 else nullcontext():
        trainer = Trainer(stage, folder)
        trainer.restore(resume)
        return trainer.run(until)


class Trainer:
    """A run in progress: the stage's networks, their optimizer and average, and how far they are."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.folder, self.config = stage, folder, stage.config
        self.rank = this_rank()
        check_loop(self.config, self.rank.world_size)
        # The rows of a step are shared by ranks, and a rank's by its parts: each is a share like any other.
        world, parts = self.rank.world_size, self.config.accumulate
        self.parts = [Rank(self.rank.index + world * i, world * parts) for i in range(parts)]
        self.device = torch.device(self.config.device)
        config = self.config
        for module in stage.modules.values():
            set_checkpointing(module, config.checkpointing)
        self.discriminators = Discriminators(stage.discriminators, stage.discriminator_lr)
        self.spread: Replicas = spread(stage.modules, self.discriminators.parameters, config.sharding, self.device)
        self.optimizer = optim.build_for(config.optimizer, stage.modules, config.lr, config.weight_decay, stage.rates)
        self.spread.adopt(self.optimizer)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.average = Average(stage.modules, plain(config.ema))
        self.powers = {length: Average(stage.modules, power(length)) for length in config.ema_lengths}
        self.scale = optim.LossScale(self.device) if config.precision == "float16" else None
        networks = stage.compiled
        plain_numbers = self.device.type == "cpu" and config.precision == "float32"
        self.linear = linear_layers(list(networks)) if plain_numbers and config.sharding == "none" else []
        self.step = 0
        self.skipped = torch.zeros((), device=self.device)  # steps that changed nothing; read when it is written
        self.best: dict[str, float] = {}  # the smallest held-out loss so far, "validation", and its "step"
        self._saved = self._resumed = -1  # the steps of the newest checkpoint, and of the one that goes on
        self._validation = stage.validation() if config.validate_every else ()
        if config.sample_every and type(stage).sheet is Stage.sheet:
            stage.sheet()  # which says that it can't be done
        if config.compile:
            self.linear = []  # torch's compiler chooses its products itself
            for module in networks:
                compile_calls(module)

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
        where = state.checkpoints(self.folder)[-1]
        try:
            self._take(saved, where)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise _foreign(where, error) from error
        self.best = saved.get("best", {})
        self.step = self._saved = self._resumed = saved["step"]
        self.skipped.fill_(saved["skipped"])
        if self.rank.index == 0 and self.best.get("step") == self.step:
            state.keep_best(self.folder, self.step)  # whoever killed the run may have come between

    def _take(self, saved: Mapping[str, Any], where: Path) -> None:
        """Go on from what a checkpoint holds, read from `where`."""
        averages = {length: saved["powers"][length] for length in self.powers}
        for weights in (saved["modules"], saved["ema"], *averages.values()):
            state.check_fit(self.stage.modules, weights, where)
        self.spread.load(saved["modules"])
        # The settings of the optimizer are the recipe's, its state is the checkpoint's.
        groups, states = self.optimizer.state_dict()["param_groups"], saved["optimizer"]["state"]
        if any(i >= sum(len(group["params"]) for group in groups) for i in states):
            raise ValueError("its optimizer has more parameters")
        if not states and saved["step"] > saved["skipped"]:
            raise ValueError("its optimizer has no state")
        values = self.spread.part_of_state(self.optimizer, states)
        self.optimizer.load_state_dict({"state": values, "param_groups": groups})
        self.discriminators.load(saved.get("opponents", {}))
        self.average.load(self.spread.part(saved["ema"]))
        for length, average in self.powers.items():
            average.load(self.spread.part(averages[length]))
        if self.scale is not None:
            self.scale.load(saved["scale"])

    def save(self, aside: Aside | None = None) -> None:
        """Write a checkpoint, unless this step has one; all ranks do so at one step. Raises TrainingError.

        With `aside` it is copied and written there while the next steps are made, if there is memory for a copy.
        """
        if aside is not None:
            aside.wait()
        if self.step == self._saved:
            return
        whole = {
            "modules": self.spread.whole(self.spread.weights()), "optimizer": self.spread.whole_state(self.optimizer),
            "ema": self.spread.whole(self.average.weights), "opponents": self.discriminators.state(),
            "powers": {length: self.spread.whole(a.weights) for length, a in self.powers.items()},
        }  # fmt: skip
        if self.rank.index == 0:
            known = {
                "step": self.step, "skipped": int(self.skipped), "recipe": asdict(self.config), "best": self.best,
                "scale": None if self.scale is None else self.scale.state(),
            }  # fmt: skip
            write = partial(
                state.save, self.folder, self.step, keep=self.config.keep, best=self.best.get("step") == self.step
            )
            if aside is not None and 2 * state.size(whole) < free():
                aside.do(partial(write, state.copied({**known, **whole})))
            else:
                write({**known, **whole})
        self._saved = self.step

    def run(self, until: int | None = None) -> int:
        """Train to the end, to step `until`, or to an interruption; returns the step reached."""
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rank.index == 0:
            with whole_file(self.folder / "recipe.json", TrainingError) as draft:
                draft.write_text(json.dumps(asdict(config), indent=1) + "\n")
        end = min(config.steps, until if until is not None else config.steps)
        first, last_saved = self.step, time.monotonic()
        folder = self.folder if self.rank.index == 0 else None
        with (
            Log(folder, config, self.step) as log,
            interruptible() as asked,
            self._batches(end) as batches,
            Aside() as aside,
        ):
            for parts in batches:
                aside.check()
                due = time.monotonic() - last_saved > config.save_every
                figures, stopping, saving = self._advance(parts, asked, due)
                log.add(figures)
                found = self._look()
                if self.step % config.log_every == 0 or self.step == end or stopping or found:
                    log.write(self.step, self.optimizer, self.skipped, **found)
                if self.step == first + MEASURED:
                    log.work, log.peak = self._measure()
                if saving or self.best.get("step") == self.step:
                    self.save(aside)
                    last_saved = time.monotonic()
                if stopping:
                    break
            aside.wait()
            self.save()
        return self.step

    def _look(self) -> dict[str, float]:
        """What is due after this step: snapshots, a sheet of samples, the held-out loss, which is returned."""
        config, found = self.config, {}

        def due(every: int) -> bool:
            return every > 0 and (self.step % every == 0 or self.step == config.steps)

        if self.powers and due(config.snapshot_every):
            whole = {length: self.spread.whole(a.weights) for length, a in self.powers.items()}
            if self.rank.index == 0:
                save_snapshot(self.folder, self.step, whole)
        if due(config.sample_every) and self.rank.index == 0:
            with self._averaged():
                self._draw()
        if due(config.validate_every):
            found["validation"] = self._validate()
            if found["validation"] < self.best.get("validation", math.inf):
                self.best = {"step": self.step, **found}
        return found

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The networks are as a result would be meanwhile: averaged, and not training."""
        training = [m for m in self.stage.modules.values() if m.training]
        with torch.no_grad(), self.average.in_place():
            for module in training:
                module.eval()
            try:
                yield
            finally:
                for module in training:
                    module.train()

    def _draw(self) -> None:
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        with replacing(folder / f"step-{self.step:09d}.png") as draft:
            self.stage.sheet().save(draft, "PNG")

    def _validate(self) -> float:
        """The mean loss of the averaged networks on what is held out, with noise that is always the same."""
        if not self._validation:
            raise TrainingError(f"validate_every is {self.config.validate_every}, and nothing is held out")
        # Ranks that hold whole networks share the batches; those of a sharded one all do all.
        world = self.rank.world_size if self.config.sharding == "none" else 1
        total = torch.zeros((), device=self.device)
        with self._averaged():
            for i, batch in enumerate(self._validation):
                if world == 1 or i % world == self.rank.index:
                    torch.manual_seed(step_seed(self.config.seed, -2 - i))
                    with self._autocast():
                        total += self.stage.loss(batch, self.step, Rank())[0] / len(self._validation)
        if world > 1:
            sum_over_ranks([total])
        return float(total)

    def _measure(self) -> tuple[float, float]:
        """The operations of a step in this process, counted on a few of its rows, and the most its device can do in a
        second."""
        ranks = max(self.rank.world_size * len(self.parts), self.config.batch_size // 4)
        part = Rank(self.rank.index, ranks)
        batch = self.stage.batch(self.step, part)

        def work() -> None:
            # Counting takes layers apart, which is slow in half precision on a CPU.
            with self._autocast() if self.device.type != "cpu" else nullcontext():
                self.stage.loss(batch, self.step, part)[0].backward()  # type: ignore[no-untyped-call]

        counted = operations(work) * ranks / self.rank.world_size
        dtype = getattr(torch, self.config.precision)
        return counted, peak(self.device, dtype) if self.rank.index == 0 else math.inf

    def _batches(self, end: int) -> AbstractContextManager[Iterator[list[Any]]]:
        """The batches of every part, step by step, made in another thread."""
        return prefetch(lambda step: [self.stage.batch(step, part) for part in self.parts], self.step, end)

    def _advance(
        self, batches: Sequence[Any], asked: Callable[[], bool], due: bool
    ) -> tuple[dict[str, Tensor], bool, bool]:
        """One step; returns its figures, whether all ranks shall stop after it, and whether they shall save."""
        config = self.config
        factor = rate(config, self.step)
        for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = base * factor
        self.spread.clear()
        self.discriminators.clear()
        figures = self._gradients(batches)
        stopping, saving = self._exchange(asked(), due)
        if self.scale is not None:
            learning = [*self.spread.parameters, *self.discriminators.parameters]
            torch._foreach_mul_([p.grad for p in learning if p.grad is not None], 1 / self.scale.factor)
        norm = self.spread.clip(config.clip)
        good = torch.isfinite(norm)
        if self.discriminators.parameters:
            good &= torch.isfinite(self.discriminators.clip(config.clip))
        self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]  # see optim.py
        before = self._layout() if self.step == self._resumed else {}
        try:
            self.optimizer.step()
            self.discriminators.step(factor, good)
            after = self._layout() if before else {}
            if any(after[p] != names for p, names in before.items()):
                raise ValueError("its optimizer has the state of another")
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            if self.step != self._resumed or out_of_memory(error):
                raise
            raise _foreign(state.checkpoints(self.folder)[-1], error) from error
        for average in (self.average, *self.powers.values()):
            average.update(self.step, good)
        if self.scale is not None:
            self.scale.update((~good).float())
        self.skipped += ~good
        self.step += 1
        return {"good": good, "norm": norm, **figures}, stopping, saving

    def _layout(self) -> dict[Tensor, dict[str, Any]]:
        """What the optimizer remembers of each parameter: names, and shapes."""
        return {p: {k: getattr(v, "shape", None) for k, v in s.items()} for p, s in self.optimizer.state.items()}

    def _gradients(self, batches: Sequence[Any]) -> dict[str, Tensor]:
        """Add this rank's gradients of a step up, part by part; returns the loss and the stage's figures, averaged."""
        means: dict[str, Tensor] = {}
        for part, batch in zip(self.parts, batches, strict=True):
            torch.manual_seed(step_seed(self.config.seed, self.step))  # every part draws for the whole batch
            with onednn_products(self.linear):
                with self._autocast():
                    loss, figures = self.stage.loss(batch, self.step, part)
                if part is self.parts[-1]:
                    self.spread.arm()
                mean = loss / (len(self.parts) * self.spread.divisor)
                (mean if self.scale is None else mean * self.scale.factor).backward()  # type: ignore[no-untyped-call]
            for key, value in {"loss": loss.detach(), **figures}.items():
                means[key] = value / len(self.parts) + means.get(key, 0)
        return means

    def _autocast(self) -> AbstractContextManager[Any]:
        """Products are of the recipe's precision inside; weights and what they are updated by stay float32."""
        precision = self.config.precision
        return nullcontext() if precision == "float32" else torch.autocast(self.device.type, getattr(torch, precision))

    def _exchange(self, asked: bool, due: bool) -> tuple[bool, bool]:
        """Sum the gradients of all ranks. With them travels what all must do at one step: to stop, if anybody was asked
        to, and to save, if rank 0 thinks that it is time."""
        if self.rank.world_size == 1:
            return asked, due
        flags = torch.tensor([float(asked), float(due and self.rank.index == 0)])  # on the CPU: no GPU is waited for
        self.spread.exchange(flags)
        stopping, saving = flags.tolist()
        return bool(stopping), bool(saving)


def _foreign(path: Path, error: Exception) -> TrainingError:
    """What is said where a checkpoint holds all that it must, and not of this run's networks and optimizer."""
    why = " ".join(str(error).split())[:200]
    return TrainingError(f"checkpoint {path} is none of this run ({why}); delete it, or use another folder")


def compile_calls(module: nn.Module) -> None:
    """Let torch.compile have what a network is called by."""
    module.compile()
    for name in ("encode", "decode"):
        if hasattr(module, name):
            setattr(module, name, torch.compile(getattr(module, name)))
