"""Data-parallel training: several processes, each with its share of every batch.

On a processor this pays at two cores already: small layers leave a second thread idle, a second process does not wait
at every operation. Two ranks equal one rank with the whole batch, up to the rounding of a sum.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

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
        parts = flat.split([t.numel() for t in tensors])
        torch._foreach_copy_(list(tensors), [f.view_as(t) for f, t in zip(parts, tensors, strict=True)])


def launch(work: Callable[..., Any], workers: int, *args: Any) -> None:
    """work(*args) in `workers` processes that form a process group; in this process if that is one.

    `work` is an importable function. An exception in any process ends all and is raised here.
    """
    if workers == 1:
        work(*args)
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (workers, os.path.join(folder, "store"), work, args), nprocs=workers)  # type: ignore[no-untyped-call]


def _work(rank: int, world: int, store: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        work(*args)
    finally:
        dist.destroy_process_group()
