"""Data-parallel training: several processes, each with its share of every batch.

On a processor this pays at two cores already: small layers leave a second thread idle, a second process does not wait
at every operation. Two ranks equal one rank with the whole batch, up to the rounding of a sum.

The processes are started by `launch` itself, on this machine, or by torchrun, on one machine or several: then
`together` makes rank 0 the one that does everything, and the others wait for the works that it launches.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from ..errors import Error, TrainingError

Rows = TypeVar("Rows", Tensor, range)


@dataclass(frozen=True, slots=True)
class Share:
    """This process's part of every batch: rows rank, rank + world, rank + 2 world, ..."""

    rank: int = 0
    world: int = 1

    def of(self, rows: Rows) -> Rows:
        """The rows of a whole batch that are this process's."""
        return rows[self.rank :: self.world]


_now = Share()
_LONG = datetime.timedelta(days=7)  # ranks may wait that long for rank 0, which encodes pictures, say


def share() -> Share:
    """This process's share: all of it but in a work that has been launched in several processes."""
    return _now


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor (`sharding`), in place; any other tensor itself."""
    own = getattr(tensor.detach(), "to_local", None)
    part: Tensor = tensor if own is None else own()
    return part


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
    for: after one, this returns when they have saved and gone. Inside `together` all of its processes share the work,
    however many `workers` says.
    """
    if _store is not None:
        dist.broadcast_object_list([(work, args)], device=torch.device("cpu"))
        _shared(work, args)
        return
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
            for sentence in _told(folder):
                raise TrainingError(sentence.read_text(encoding="utf-8")) from error
            if signals.came and isinstance(error, ProcessExitedException):
                return  # it had not begun to listen yet
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
    global _now
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    dist.init_process_group(_backend(rank, world), init_method=f"file://{folder}/store", rank=rank, world_size=world)
    _now = Share(rank, world)
    try:
        work(*args)
        dist.barrier()
    except (Error, OSError) as error:
        draft = Path(folder, f"draft-{rank}")
        draft.write_text(str(error), encoding="utf-8")
        draft.rename(Path(folder, f"error-{rank}"))
        _leave(1)
    except Exception:
        if not _told(folder):
            raise
        _leave(1)  # what failed here is the exchange with a rank that has told why
    _leave(0)


def _told(folder: str) -> list[Path]:
    """The sentences of ranks that failed."""
    return sorted(Path(folder).glob("error-*"))


def _leave(code: int) -> NoReturn:
    """End this process: all that it had to do or to say is on disk.

    Taking the process group down, as an ordinary end does, now and then aborts in gloo's own threads: a finished run
    would be told as a failed one, and a failed one would say more than its sentence.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _backend(local_rank: int, local_world: int) -> str:
    """What exchanges tensors: NCCL those on GPUs, where every process of this machine has one of its own ("cuda" means
    that one from now on), gloo all others."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    return "cpu:gloo,cuda:nccl" if gpus >= local_world else "gloo"


# torchrun

_store: Any = None  # where ranks leave word for each other, inside `together`
_FAILED = "darkroom/failed"


def launched() -> int | None:
    """How many processes torchrun (or another launcher that sets its variables) has started; None: it did not."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return None
    try:
        return int(os.environ["WORLD_SIZE"])
    except ValueError:
        raise TrainingError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r}; torchrun sets a number there") from None


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, this process is rank 0 of those that torchrun started, or the only one if it did not.

    In the other processes this doesn't come back: they share the works that rank 0 launches, and end when it leaves.
    Files that a work reads and writes must be where all machines see them. An error in any process ends all; it is
    raised, and told, in that one alone.
    """
    global _store
    if launched() is None:
        yield
        return
    store, rank, world = next(iter(rendezvous("env://", timeout=_LONG)))
    local = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", world))
    dist.init_process_group(_backend(*local), store=store, rank=rank, world_size=world, timeout=_LONG)
    _store = store
    try:
        if rank > 0:
            _serve()
        try:
            yield
        finally:
            if not store.check([_FAILED]):
                dist.broadcast_object_list([None], device=torch.device("cpu"))
    finally:
        _store = None
        sys.stdout.flush()


def _serve() -> None:
    """Do what rank 0 launches, until it leaves; then end this process."""
    while True:
        # Whoever waits here has nothing to save: a signal is rank 0's to answer.
        old = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)}
        order: list[Any] = [None]
        try:
            dist.broadcast_object_list(order, device=torch.device("cpu"))
        except RuntimeError:  # rank 0 is gone without a word
            raise SystemExit(1) from None
        for number, handler in old.items():
            signal.signal(number, handler)
        if order[0] is None:
            _leave(0)
        _shared(*order[0])


def _shared(work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """This rank's share of a work, to the end of all ranks' shares."""
    global _now
    _now = Share(dist.get_rank(), dist.get_world_size())
    try:
        work(*args)
        dist.barrier()
    except BaseException:
        first = _store.compare_set(_FAILED, "", str(_now.rank)).decode()
        if first != str(_now.rank):
            raise SystemExit(1) from None  # that one tells why; ours may only be that it is gone
        raise
    finally:
        _now = Share()
