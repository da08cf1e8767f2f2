"""Networks, gradients, optimizer state and averages spread over ranks: FSDP2 (Zhao et al. 2023, arXiv 2304.11277).

Every rank keeps its rows of each parameter; a block's whole weights are brought together when it runs, and forgotten
after. The optimizer and the average see this rank's rows as plain tensors. What is saved is gathered first: a
checkpoint says nothing of how many ranks there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import TrainingError
from ..models.autoencoder import Autoencoder
from ..models.layers import Block
from .exchange import Replicas
from .parallel import local, share, sum_over_ranks


class Shards(Replicas):
    """Each rank holds its rows of all parameters."""

    def __init__(self, modules: Mapping[str, nn.Module], others: Sequence[Tensor], device: torch.device) -> None:
        """Shard `modules`, in place. Raises TrainingError for one that is never called as a network."""
        self.modules, self._others = modules, others
        self.divisor = 1  # FSDP takes the mean over ranks by itself
        mesh = init_device_mesh(device.type, (share().world,))
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
    return whole.cpu() if share().rank == 0 else torch.empty(0)


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's rows of a tensor that every rank has read."""
    if not isinstance(like, DTensor):
        return whole
    place = whole.to(like.device)
    return distribute_tensor(place, like.device_mesh, like.placements, src_data_rank=None).to_local()
