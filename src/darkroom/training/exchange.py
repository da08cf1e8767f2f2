"""What ranks that hold whole networks tell each other: the sums of their gradients, while they are being made.

Gradients are sent in buckets, each as soon as the way back has made its last one, so that the exchange goes on beside
the rest of the way back (Li et al. 2020, "PyTorch Distributed", arXiv 2006.15704, sec. 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .parallel import local, share

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
        self.divisor = share().world
        self._buckets = list(buckets([*others, *self.parameters])) if share().world > 1 else []
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
    if sharding == "fsdp" and share().world > 1:
        from .sharding import Shards

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
