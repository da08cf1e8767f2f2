"""A LoRA to be trained: its parameters, attached to a network by hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .adapter import Adapter
from .updates import Update

WHICH: Mapping[str, Callable[[str, nn.Module], bool]] = {
    "attention": lambda path, layer: isinstance(layer, nn.Linear) and path.rsplit(".", 1)[-1] in ("q", "k", "v", "out")
    and path.split(".")[-2].startswith("att"),
    "linear": lambda path, layer: isinstance(layer, nn.Linear),
    "all": lambda path, layer: True,
}  # fmt: skip


class TrainableLora(nn.Module):
    """Factors of plain LoRA for chosen layers of one network, as float32 parameters.

    Attributes:
        layers: the native names of the layers it changes, in the network's order.
    """

    def __init__(self, network: nn.Module, paths: list[str], rank: int, alpha: float) -> None:
        super().__init__()
        self.layers = paths
        self.alpha = float(alpha)
        self.rank = rank
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for path in paths:
            weight = network.get_submodule(path).weight
            assert isinstance(weight, Tensor)
            out, *inner = weight.shape
            down = torch.empty(rank, *inner, device=weight.device, dtype=torch.float32)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))  # arXiv 2106.09685, sec. 4.1: down random, up zero
            up = torch.zeros(out, rank, *[1] * (len(inner) - 1), device=weight.device, dtype=torch.float32)
            self.down.append(nn.Parameter(down))
            self.up.append(nn.Parameter(up))

    def updates(self) -> dict[str, Update]:
        """The change of each layer, made of the live parameters."""
        factors = zip(self.layers, self.down, self.up, strict=True)
        return {path: Update({"down": down, "up": up}, self.alpha / self.rank) for path, down, up in factors}

    @contextmanager
    def attached(self, network: nn.Module, scale: float = 1.0) -> Iterator[None]:
        """While this context lasts, the network answers with the LoRA, in any thread; gradients reach its parameters.

        The network's own weights should not require gradients.
        """
        handles = []
        try:
            for path, update in self.updates().items():
                handles.append(network.get_submodule(path).register_forward_hook(_hook(update, scale)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def adapter(self, part: str = "unet", name: str = "") -> Adapter:
        """A copy of what has been learned so far, to draw with or to save (`formats.lora_save.save_lora`)."""
        updates = {}
        for path, update in self.updates().items():
            factors = {key: tensor.detach().clone() for key, tensor in update.factors.items()}
            updates[path] = Update(factors, update.factor)
        return Adapter({part: updates}, name=name)


def _hook(update: Update, scale: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda layer, inputs, output: output + update(layer, inputs[0], scale)


def init_lora(
    network: nn.Module, rank: int = 4, alpha: float | None = None, which: str | Callable[[str], bool] = "attention"
) -> TrainableLora:
    """A LoRA that changes nothing yet: down is random (torch's generator), up is zero.

    Args:
        network: a U-Net or a text encoder.
        rank: r, at least 1.
        alpha: the difference is multiplied by alpha / rank; None: by 1.
        which: the layers: "attention" (the four projections of every attention), "linear" (all linear layers), "all"
            (convolutions too), or what says yes to a layer's native name.

    Raises ValueError where no layer is chosen, or the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be 1 or more")
    chosen = WHICH[which] if isinstance(which, str) else lambda path, layer: which(path)
    paths = [
        path
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and chosen(path, layer)
    ]
    if not paths:
        raise ValueError(f"no layer of the network is chosen by {which!r}")
    return TrainableLora(network, paths, rank, rank if alpha is None else alpha)
