"""Training in several processes, each with its part of every batch (DDP), or of the networks too (FSDP2).

On a processor this is worth it at two cores already: small layers leave a second thread idle, a second process does
not wait at every operation. Two ranks equal one rank with the whole batch, up to the rounding of a sum.

The processes are started by `launch` itself, on this machine, or by torchrun, on one machine or several: then
`together` makes rank 0 the one that does everything, and the others wait for the works that it launches.

Ranks that hold whole networks send each other their gradients in buckets, each as soon as the way back has made its
last one, beside the rest of the way back (Li et al. 2020, "PyTorch Distributed", arXiv 2006.15704, sec. 3.2).

Sharded (FSDP2; Zhao et al. 2023, arXiv 2304.11277), every rank keeps its rows of each parameter; a block's whole
weights are brought together when it runs, and forgotten after. The optimizer and the average see this rank's rows as
plain tensors. What is saved is gathered first: a checkpoint says nothing of how many ranks there were.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from ..errors import Error, TrainingError
from ..models.autoencoder import Autoencoder
from ..models.layers import Block
from .background import endings, stop_asked

Rows = TypeVar("Rows", Tensor, range)


@dataclass(frozen=True, slots=True)
class Rank:
    """A process among those that train, and so its part of every batch: rows index, index + world_size, ..."""

    index: int = 0
    world_size: int = 1

    def of(self, rows: Rows) -> Rows:
        """The rows of a whole batch that are this process's."""
        return rows[self.index :: self.world_size]


_now = Rank()
LOOK_EVERY = 1.0  # seconds between looks whether the processes that share a work shall stop
_LONG = datetime.timedelta(days=7)  # ranks may wait that long for rank 0, which encodes pictures, say


def this_rank() -> Rank:
    """This process's rank: the only one but in a work that has been launched in several processes."""
    return _now


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor (`sharding`), in place; any other tensor itself."""
    own = getattr(tensor.detach(), "to_local", None)
    part: Tensor = tensor if own is None else own()
    return part


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, in one exchange. Nothing happens for a single rank."""
    if this_rank().world_size > 1 and tensors:
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat, [t.numel() for t in tensors])
        torch._foreach_copy_(list(tensors), [f.view_as(t) for f, t in zip(parts, tensors, strict=True)])


def launch(work: Callable[..., Any], workers: int, *args: Any) -> None:
    """work(*args) in `workers` processes that form a process group; in this process if that is one.

    `work` is an importable function. An exception in any process ends all and is raised here, an Error of ours and
    an OSError as TrainingError with its own sentence. Signals to end are passed on to the processes, and waited for:
    after one, this returns when they have saved and gone. Inside `together` all of its processes share the work,
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
            while not context.join(timeout=LOOK_EVERY):
                if stop_asked() and not signals.came:
                    signals.handle(signal.SIGTERM, None)
        except (ProcessRaisedException, ProcessExitedException) as error:
            for sentence in _told(folder):
                raise TrainingError(sentence.read_text(encoding="utf-8")) from error
            if signals.came and isinstance(error, ProcessExitedException):
                return  # it had not begun to listen yet
            if killed := [p.exitcode for p in signals.processes if (p.exitcode or 0) < 0]:
                raise TrainingError(_killed(killed)) from error
            raise


def _killed(codes: Sequence[int]) -> str:
    """What is to be said when processes were ended by signals."""
    # Those that were left are ended by SIGTERM.
    name = signal.Signals(-next((code for code in codes if code != -signal.SIGTERM), codes[0])).name
    why = " (as a system does that runs out of memory)" if name == "SIGKILL" else ""
    return f"one of the processes that shared the work was ended by {name}{why}; the same command goes on"


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
        old = {n: signal.signal(n, signals.handle) for n in endings()}
    try:
        yield signals
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _work(rank: int, world: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    global _now
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    dist.init_process_group(_backend(rank, world), init_method=f"file://{folder}/store", rank=rank, world_size=world)
    _now = Rank(rank, world)
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
        old = {n: signal.signal(n, signal.SIG_IGN) for n in endings()}
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
    _now = Rank(dist.get_rank(), dist.get_world_size())
    try:
        work(*args)
        dist.barrier()
    except BaseException:
        first = _store.compare_set(_FAILED, "", str(_now.index)).decode()
        if first != str(_now.index):
            raise SystemExit(1) from None  # that one tells why; ours may only be that it is gone
        raise
    finally:
        _now = Rank()


# --- whole networks: gradients are exchanged


BUCKET = 25 * 2**20  # bytes


class Replicas:
    """Every rank holds all of the networks. (`sharding.Shards` is the other way; the loop needn't know which it is.)

    Args:
        modules: what is trained, by name.
        others: further parameters whose gradients are to be exchanged.

    Attributes:
        parameters: what the optimizer updates in this rank.
        divisor: what a rank's mean loss is divided by, so that the exchanged gradients are those of the whole mean.
    """

    def __init__(self, modules: Mapping[str, nn.Module], others: Sequence[Tensor] = ()) -> None:
        self.modules = modules
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.divisor = this_rank().world_size
        self._buckets = list(buckets([*others, *self.parameters])) if this_rank().world_size > 1 else []
        self._armed = False
        self._missing: list[int] = []  # gradients of each bucket that are still to come
        self._sent: list[tuple[list[Tensor], Tensor, Any]] = []  # gradients, their flat copy, its exchange
        for i, bucket in enumerate(self._buckets):
            for p in bucket:
                p.register_post_accumulate_grad_hook(partial(self._made, i))  # type: ignore[no-untyped-call]

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """The live values of every module, this rank's part of them."""
        return {n: {k: local(v) for k, v in m.state_dict().items()} for n, m in self.modules.items()}

    def load(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over whole weights."""
        for name, module in self.modules.items():
            module.load_state_dict(weights[name])

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """Let a new optimizer update this rank's part of every parameter."""

    def clear(self) -> None:
        """Forget the last step's gradients."""
        for p in self.parameters:
            p.grad = None

    def arm(self) -> None:
        """The next way back is the step's last: what it makes may be sent."""
        self._missing, self._sent = [len(bucket) for bucket in self._buckets], []
        self._armed = True

    def exchange(self, flags: Tensor) -> None:
        """Replace gradients and `flags` by their sums over all ranks."""
        self._armed = False
        while len(self._sent) < len(self._buckets):
            self._send()  # of parameters that the loss does not depend on
        dist.all_reduce(flags)
        for gradients, flat, exchanged in self._sent:
            if gradients:
                exchanged.wait()
                parts = torch.split(flat, [g.numel() for g in gradients])
                torch._foreach_copy_(gradients, [f.view_as(g) for f, g in zip(parts, gradients, strict=True)])
        self._sent = []

    def clip(self, largest: float) -> Tensor:
        """Shrink the gradients to a norm of at most `largest`; returns the norm that they had."""
        return torch.nn.utils.clip_grad_norm_(self.parameters, largest)

    def whole(self, weights: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Mapping[str, Tensor]]:
        """`weights`, or an average of them, as an unsharded network has them. All ranks must ask; rank 0 gets them."""
        return weights

    def whole_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state_dict of unsharded parameters. All ranks must ask; rank 0 gets it."""
        return optimizer.state_dict()

    def part(self, weights: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Mapping[str, Tensor]]:
        """This rank's part of whole weights; the inverse of `whole`."""
        return weights

    def part_of_state(self, optimizer: torch.optim.Optimizer, state: Mapping[int, Any]) -> Mapping[int, Any]:
        """This rank's part of a whole optimizer's state, by the numbers of the parameters."""
        return state

    def _made(self, i: int, parameter: Tensor) -> None:
        """A gradient of bucket i is complete. Buckets go in their order, which is the same in all ranks."""
        if self._armed:
            self._missing[i] -= 1
            while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
                self._send()

    def _send(self) -> None:
        gradients = [p.grad for p in self._buckets[len(self._sent)] if p.grad is not None]
        if gradients:
            flat = torch.cat([g.reshape(-1) for g in gradients])
            self._sent.append((gradients, flat, dist.all_reduce(flat, async_op=True)))
        else:
            self._sent.append(([], torch.empty(0), None))


def spread(modules: Mapping[str, nn.Module], others: Sequence[Tensor], sharding: str, device: torch.device) -> Replicas:
    """How networks lie on the ranks: `sharding` is "none" or "fsdp". A single rank has all of them either way."""
    if sharding == "fsdp" and this_rank().world_size > 1:
        return Shards(modules, others, device)
    return Replicas(modules, others)


def buckets(parameters: Sequence[Tensor], size: int = BUCKET) -> Iterable[list[Tensor]]:
    """Parameters in the order in which their gradients come (about the reverse), in lists of about `size` bytes.

    A list is of one dtype and on one device.
    """
    bucket: list[Tensor] = []
    for p in reversed(parameters):
        kind = (p.dtype, p.device)
        if bucket and (sum(b.nbytes for b in bucket) + p.nbytes > size or (bucket[0].dtype, bucket[0].device) != kind):
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket


# --- sharded networks


class Shards(Replicas):
    """Each rank holds its rows of all parameters."""

    def __init__(self, modules: Mapping[str, nn.Module], others: Sequence[Tensor], device: torch.device) -> None:
        """Shard `modules`, in place. Raises TrainingError for one that is never called as a network."""
        self.modules, self._others = modules, others
        self.divisor = 1  # FSDP takes the mean over ranks by itself
        mesh = init_device_mesh(device.type, (this_rank().world_size,))
        for name, module in modules.items():
            if type(module).forward is nn.Module.forward:
                raise TrainingError(f"sharding is 'fsdp', and {name} is too small to be sharded; use sharding=none")
            for block in module.modules():
                if isinstance(block, Block):
                    fully_shard(block, mesh=mesh, reshard_after_forward=True)
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
            if isinstance(module, Autoencoder):
                for method in ("encode", "decode"):
                    register_fsdp_forward_method(module, method)
        self._sharded: list[DTensor] = [p for m in modules.values() for p in m.parameters() if p.requires_grad]  # type: ignore[misc]
        # The optimizer's: the same memory as the networks' own, seen as plain tensors.
        self.parameters = [nn.Parameter(local(p)) for p in self._sharded]
        self._of = {id(own): p for own, p in zip(self.parameters, self._sharded, strict=True)}

    def load(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        with torch.no_grad():
            for name, tensors in self.part(weights).items():
                mine = self.weights()[name]
                if tensors.keys() != mine.keys():
                    raise TrainingError(f"the checkpoint's {name} is of another architecture")
                for key, tensor in tensors.items():
                    mine[key].copy_(tensor)

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        mine = {id(p): own for p, own in zip(self._sharded, self.parameters, strict=True)}
        for group in optimizer.param_groups:
            group["params"] = [mine[id(p)] for p in group["params"]]

    def clear(self) -> None:
        for p in (*self._sharded, *self.parameters):
            p.grad = None

    def arm(self) -> None:
        """FSDP sends gradients on its own account."""

    def exchange(self, flags: Tensor) -> None:
        for p, mine in zip(self._sharded, self.parameters, strict=True):
            mine.grad = None if p.grad is None else local(p.grad)
        sum_over_ranks([*(p.grad for p in self._others if p.grad is not None), flags])

    def clip(self, largest: float) -> Tensor:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        square = torch.stack(torch._foreach_norm(gradients)).square().sum()
        dist.all_reduce(square)
        norm = square.sqrt()
        torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def whole(self, weights: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Mapping[str, Tensor]]:
        like = {name: module.state_dict() for name, module in self.modules.items()}
        return {n: {k: _gathered(v, like[n][k]) for k, v in tensors.items()} for n, tensors in weights.items()}

    def whole_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        found = optimizer.state_dict()
        ours = [self._of[id(p)] for group in optimizer.param_groups for p in group["params"]]
        state = {
            i: {k: _gathered(v, ours[i]) if _islocal(v, ours[i]) else v for k, v in values.items()}
            for i, values in found["state"].items()
        }
        return {**found, "state": state}

    def part(self, weights: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Mapping[str, Tensor]]:
        like = {name: module.state_dict() for name, module in self.modules.items()}
        return {n: {k: _part(v, like[n][k]) for k, v in tensors.items()} for n, tensors in weights.items()}

    def part_of_state(self, optimizer: torch.optim.Optimizer, state: Mapping[int, Any]) -> Mapping[int, Any]:
        ours = [self._of[id(p)] for group in optimizer.param_groups for p in group["params"]]
        return {
            i: {k: _part(v, ours[i]) if isinstance(v, Tensor) and v.shape == ours[i].shape else v for k, v in s.items()}
            for i, s in state.items()
        }


def _islocal(value: Any, like: DTensor) -> bool:
    """Whether an optimizer's value is sharded as its parameter is (a step counter is not)."""
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape == like.to_local().shape


def _gathered(rows: Tensor, like: Tensor) -> Tensor:
    """All ranks' rows together, as `like` has them; on the CPU, and in rank 0 only."""
    if not isinstance(like, DTensor):
        return rows
    sharded = DTensor.from_local(
        rows.detach(), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    whole = sharded.full_tensor()
    return whole.cpu() if this_rank().index == 0 else torch.empty(0)


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's rows of a tensor that every rank has read."""
    if not isinstance(like, DTensor):
        return whole
    place = whole.to(like.device)
    return distribute_tensor(place, like.device_mesh, like.placements, src_data_rank=None).to_local()
