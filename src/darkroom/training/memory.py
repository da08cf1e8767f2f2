"""How much memory a training run will need, said before it begins.

A stage's own loss is taken through networks without values (torch's fake tensors): every operation says how large its
answer is, and the largest sum of what is alive at one time is counted. No weights are loaded.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.layers import set_checkpointing
from . import optim
from .recipe import LoopConfig

Module = TypeVar("Module", bound=nn.Module)
PROCESS = 0.4e9  # bytes of a process that has imported torch and computed something; a CUDA context takes as much
WIDTH = 128  # of the small networks on which an optimizer shows what it keeps


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes on the device of one process."""

    weights: int  # of all networks, those that are trained and those that are not
    gradients: int
    optimizer: int  # its state
    average: int  # of the weights, or several
    activations: int  # the most that the way forward and back holds beside all these
    update: int  # the most that the optimizer's step holds beside all these

    @property
    def total(self) -> int:
        """The most at one time, with the process itself; what kernels take for themselves comes on top."""
        lasting = self.weights + self.gradients + self.optimizer + self.average
        return lasting + max(self.activations, self.update) + int(PROCESS)

    def __str__(self) -> str:
        parts = ", ".join(f"{f.name} {gigabytes(getattr(self, f.name))}" for f in fields(self))
        return f"{gigabytes(self.total)} GB ({parts})"


def gigabytes(count: float) -> str:
    """Bytes in 10^9, to two digits behind the point."""
    return f"{count / 1e9:.2f}"


class Sketch:
    """Networks at any size, that have shapes and no memory: what is made `inside` it. Tensors that are made outside are
    ordinary ones, and go into such networks; what comes out has no values again.
    """

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """While this lasts, all that is made has no values."""
        with self._mode:
            yield


@contextmanager
def with_values() -> Iterator[None]:
    """While this lasts, also inside a `Sketch`, what is made has values: numbers that somebody looks at."""
    with unset_fake_temporarily():
        yield


def moved(module: Module, device: torch.device) -> Module:
    """A module on a device. It isn't touched where it is there: without values it could not be moved even to that."""
    there = next((p.device for p in module.parameters()), device)
    return module if there.type == device.type and device.index in (None, there.index) else module.to(device)


def empty(network: nn.Module) -> None:
    """Leave nothing of a network's values but their shapes; to be called inside a `Sketch`."""
    for module in network.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=False)
        for name, b in module._buffers.items():
            module._buffers[name] = None if b is None else torch.empty(b.shape, dtype=b.dtype)


def estimate(
    config: LoopConfig,
    trained: Mapping[str, nn.Module],
    frozen: Iterable[nn.Module],
    loss: Callable[[], Tensor],
    world: int = 1,
) -> Estimate:
    """What a run takes in each of `world` processes.

    Args:
        config: tells precision, checkpointing, sharding, optimizer and average.
        trained: the networks that learn, and
        frozen: those that are only used; a network that is in both counts once. All are made inside a `Sketch`.
        loss: one part's way forward.
    """
    networks = {id(m): m for m in (*trained.values(), *frozen)}
    shards = world if config.sharding == "fsdp" else 1
    learned = [p for m in trained.values() for p in m.parameters() if p.requires_grad]
    everything = {id(t): t for m in networks.values() for t in (*m.parameters(), *m.buffers())}
    trained_bytes, values = size_of(learned), sum(p.numel() for p in learned)
    averaged = size_of(t for m in trained.values() for t in m.state_dict().values())
    weights = size_of(everything.values())
    kept, moved, most = cost(config.optimizer)
    return Estimate(
        weights=weights - trained_bytes + trained_bytes // shards,
        gradients=trained_bytes // shards,
        optimizer=int(kept * values) // shards,
        average=averaged // shards * (1 + len(config.ema_lengths)),
        activations=_activations(config, networks.values(), learned, loss),
        update=int(moved * values + most * max((p.numel() for p in learned), default=0)) // shards,
    )


def rows_of(config: LoopConfig, world: int) -> int:
    """The rows that a process computes at once."""
    return max(1, config.batch_size // (world * config.accumulate))


def cost(optimizer: str) -> tuple[float, float, float]:
    """What an optimizer keeps of each value, in bytes, and the most its step holds besides: of each value, and of each
    value of the largest parameter. Seen on two small networks."""
    with with_values():  # an optimizer in 8 bits looks at its numbers
        (few, state, least), (many, _, most) = ((n, *_observed(optimizer, n)) for n in (2, 8))
    size = WIDTH**2
    of_all = (most - least) / ((many - few) * size)
    return state / (few * size), of_all, max(0.0, least / size - few * of_all)


def _observed(optimizer: str, layers: int) -> tuple[int, int]:
    """The bytes of an optimizer's state on so many equal matrices, and of what its step makes on the way."""
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    steps = optim.build(optimizer, [network], 1e-3)
    for _ in range(2):  # the first one makes the state
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        state = [v for values in steps.state.values() for v in values.values() if isinstance(v, Tensor)]
        kept = [t for p in network.parameters() for t in (p, p.grad) if t is not None]
        with (live := Live([*kept, *state])):  # what it only changes is none of what it makes
            steps.step()
    return size_of(state), live.most


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def device_memory(device: str) -> int | None:
    """Bytes that a device has in all; None where nobody can say."""
    place = torch.device(device)
    if place.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(place).total_memory)
    if place.type == "cpu" and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def free() -> int:
    """Bytes of main memory that can still be taken; 0 where nobody can say (anywhere but on Linux)."""
    try:
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        count = int(told["MemAvailable"].removesuffix("kB")) * 1024
    except (OSError, ValueError, KeyError):
        return 0
    group = Path("/sys/fs/cgroup")  # of a container
    with contextlib.suppress(OSError, ValueError, KeyError):
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        taken = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
        count = min(count, int((group / "memory.max").read_text()) - taken)
    return max(count, 0)


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages made inside that are alive.

    Attributes:
        now: at this moment.
        most: at the moment when they were most.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._seen = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return answer

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _activations(
    config: LoopConfig, networks: Iterable[nn.Module], learned: list[nn.Parameter], loss: Callable[[], Tensor]
) -> int:
    """The most that one part's way forward and back holds beside weights and gradients."""
    for network in networks:
        set_checkpointing(network, config.checkpointing)
    known = [t for m in networks for t in (*m.parameters(), *m.buffers())]
    for p in learned:
        p.grad = torch.zeros_like(p)
        known.append(p.grad)
    with Live(known) as live:
        # What half precision holds is the same in either of its forms.
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision != "float32"):
            end = loss()
        end.backward()  # type: ignore[no-untyped-call]
    most: int = live.most
    return most
