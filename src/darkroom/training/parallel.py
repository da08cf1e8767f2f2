"""Data-parallel training: several processes, each with its share of every batch.

On a processor this pays at two cores already: small layers leave a second thread idle, a second process does not wait
at every operation. Two ranks equal one rank with the whole batch, up to the rounding of a sum.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from darkroom.errors import Error, TrainingError

Rows = TypeVar("Rows", Tensor, range)


@dataclass(frozen=True, slots=True)
class Share:
    """This process's part of every batch: rows rank, rank + world, rank + 2 world, ..."""

    rank: int = 0
    world: int = 1

    def of(self, rows: Rows) -> Rows:
        """The rows of a whole batch that are this process's."""
        return rows[self.rank :: self.world]


def share() -> Share:
    """This process's share: all of it unless a process group has been set up (by `launch` or by torchrun)."""
    if dist.is_available() and dist.is_initialized():
        return Share(dist.get_rank(), dist.get_world_size())
    return Share()


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, in one exchange. Nothing happens for a single rank."""
    if share().world > 1 and tensors:
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat, [t.numel() for t in tensors])
        torch._foreach_copy_(list(tensors), [f.view_as(t) for f, t in zip(parts, tensors, strict=True)])


def launch(work: Callable[..., Any], workers: int, *args: Any) -> None:
    """work(*args) in `workers` processes that form a process group; in this process if that is one.

    `work` is an importable function. An exception in any process ends all and is raised here, an Error of ours and
    an OSError as TrainingError with its own sentence. SIGINT and SIGTERM are passed on to the processes, and waited
    for: after one, this returns when they have saved and gone.
    """
    if workers == 1:
        work(*args)
        return
    with tempfile.TemporaryDirectory() as folder, _passed_on() as signals:
        try:
            logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # we tell of every failure once
            context = spawn(_work, (workers, folder, work, args), nprocs=workers, join=False)  # type: ignore[no-untyped-call]
            signals.processes = context.processes
            while not context.join():
                pass
        except (ProcessRaisedException, ProcessExitedException) as error:
            if signals.came and isinstance(error, ProcessExitedException):
                return  # it had not begun to listen yet
            for sentence in sorted(Path(folder).glob("error-*")):
                raise TrainingError(sentence.read_text(encoding="utf-8")) from error
            raise


class _Signals:
    """Signals on their way to child processes; those that come before there are any are kept."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self._processes: Sequence[Any] = ()

    @property
    def processes(self) -> Sequence[Any]:
        return self._processes

    @processes.setter
    def processes(self, found: Sequence[Any]) -> None:
        self._processes = found
        for number in self.came:
            self._send(number)

    def handle(self, number: int, frame: Any) -> None:
        self.came.append(number)
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                if process.is_alive():
                    os.kill(process.pid, number)


@contextlib.contextmanager
def _passed_on() -> Iterator[_Signals]:
    signals, old = _Signals(), {}
    if threading.current_thread() is threading.main_thread():
        old = {n: signal.signal(n, signals.handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _work(rank: int, world: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        work(*args)
        dist.barrier()
    except (Error, OSError) as error:
        Path(folder, f"error-{rank}").write_text(str(error), encoding="utf-8")
        dist.destroy_process_group()
        raise
    # All is done and on disk. Taking the process group down, as an ordinary end does, now and then aborts in gloo's own
    # threads, and a finished run would be told as a failed one.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
