"""CUDA graphs: a network's kernels recorded once and launched together, for a few numbers of rows.

A small batch leaves a GPU waiting for Python, which needs several milliseconds to launch the thousand kernels of a
U-Net; a graph's launch costs none of that. A graph has fixed shapes, so calls are padded up to the next of a few
numbers of rows (`bucket`), and the answer is cut.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.packed import Hooks

MOST = 16  # graphs that are kept: the sizes, text lengths and numbers of rows that a server sees in a while
WARM_UP = 3  # calls before recording: code is compiled, cuDNN chooses its kernels, work space is allocated

Call = Callable[[], Tensor]
Recorder = Callable[[Call], tuple[Tensor, Callable[[], None]]]


def bucket(rows: int) -> int:
    """The least of 1, 2, 4, 6, 8, 12, 16, 24, 32, ... (powers of two and their halves between) not below `rows`."""
    power = 1 << (rows - 1).bit_length()
    between = power * 3 // 4
    return between if power >= 8 and rows <= between else power


@dataclass(frozen=True, slots=True)
class Recording:
    """One call: where its inputs lie, where its answer will, and how to make it."""

    inputs: Mapping[str, Tensor]  # [B, ...] each
    output: Tensor  # [B, ...]
    replay: Callable[[], None]  # `output` from what is in `inputs`


def record_calls(network: nn.Module) -> None:
    """Play calls of a network on CUDA back from now on (`RowGraphs`); nothing else about it changes."""
    network._compiled_call_impl = RowGraphs(network)


class RowGraphs:
    """What a network is called by: a recording is played back, where that gives the same.

    It is a plain call while a hook hangs on it (a LoRA's), with inputs that are not one tensor row by
    row (a ControlNet's residuals, `identity`, `cached`), and while gradients are asked for. An answer's rows do not
    depend on what the padding holds; beside a call of another number of rows they differ by rounding, as ever.

    Args:
        network: called with tensors whose dimension 0 are rows that don't know of each other. When its weights move
            (`network.to`), everything is recorded anew; changes in place, such as merged LoRAs, are seen.
        record: makes a call's answer, in memory that stays, and what makes it anew in the same place. None: `Cuda()`.
        most: recordings kept; the one that was not used for longest goes.

    Threads may share it on one CUDA stream (torch's own is one for all threads); one call is played at a time.
    """

    def __init__(self, network: nn.Module, record: Recorder | None = None, most: int = MOST) -> None:
        self.network = network
        self._call: Callable[..., Tensor] = network._call_impl
        self.record = Cuda() if record is None else record
        self.most = most
        self.recordings: OrderedDict[Hashable, Recording] = OrderedDict()  # by key, the latest last
        self._hooks = Hooks(network)
        self._weight: Tensor | None = None  # keeps the weights' place, so that no others can come to lie there
        self._lock = Lock()

    def __call__(self, x: Tensor, *inputs: Tensor, **named: Any) -> Tensor:
        """The network's answer to rows of x [N, ...] and other inputs [N, ...], as a tensor of its own [N, ...]."""
        given: dict[str, Any] = {str(i): tensor for i, tensor in enumerate((x, *inputs))}
        given |= {name: value for name, value in named.items() if value is not None}
        rows = len(x)
        by_row = all(isinstance(value, Tensor) and value.shape[:1] == (rows,) for value in given.values())
        if not by_row or torch.is_grad_enabled() or self._hooks:
            return self._call(x, *inputs, **named)
        key = bucket(rows), tuple((name, value.shape[1:], value.dtype) for name, value in given.items())
        with self._lock, torch.inference_mode(False), torch.no_grad():  # what stays must be no inference tensor
            self._check_place()
            recording = self.recordings.pop(key, None)
            if recording is None:
                recording = self._recorded(given, bucket(rows), len(inputs))
            self.recordings[key] = recording
            if len(self.recordings) > self.most:
                self.recordings.popitem(last=False)
            for name, value in given.items():
                recording.inputs[name][:rows].copy_(value)
            recording.replay()
            return recording.output[:rows].clone()

    def clear(self) -> None:
        """Forget all recordings, and give back their memory."""
        self.recordings.clear()

    def _check_place(self) -> None:
        weight = next(self.network.parameters())
        if self._weight is None or self._weight.data_ptr() != weight.data_ptr():
            self.clear()
            self._weight = weight.detach()

    def _recorded(self, given: Mapping[str, Tensor], rows: int, unnamed: int) -> Recording:
        buffers = {  # the padding is the last row again
            name: torch.cat([value, value[-1:].expand(rows - len(value), *value.shape[1:])])
            for name, value in given.items()
        }
        places = [buffers[str(i)] for i in range(unnamed + 1)]
        named = {name: buffer for name, buffer in buffers.items() if not name.isdigit()}
        try:
            return Recording(buffers, *self.record(lambda: self._call(*places, **named)))
        except torch.OutOfMemoryError:
            self.clear()
            raise


class Cuda:
    """Records CUDA graphs, which share a pool of memory: they are played one after the other."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, call: Call) -> tuple[Tensor, Callable[[], None]]:
        """Run a call a few times, then record it, on a stream of its own."""
        if self._stream is None:
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        here, aside = torch.cuda.current_stream(), self._stream
        graph = torch.cuda.CUDAGraph()
        aside.wait_stream(here)
        with _fastest_convolutions():  # while recording, too: what was remembered is looked up only then
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    call()
            # Only what this thread does must stay within what can be recorded; others may go on.
            with torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"):
                output = call()
        here.wait_stream(aside)
        return output, graph.replay


@contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """Let cuDNN time its kernels for each new shape, and remember the best, unless it must be deterministic."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
