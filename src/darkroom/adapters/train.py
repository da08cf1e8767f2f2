"""An adapter to be trained: its parameters, attached to a network by hooks.

`init_lora` begins anew; `TrainableLora` goes on with any adapter's updates, whatever their kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Adapter
from .updates import Update

Layer = nn.Linear | nn.Conv2d


def _attention(path: str, layer: nn.Module) -> bool:
    *_, owner, name = ("", "", *path.split("."))
    return isinstance(layer, nn.Linear) and name in ("q", "k", "v", "out") and owner.startswith("att")


WHICH: Mapping[str, Callable[[str, nn.Module], bool]] = {
    "attention": _attention,
    "cross-attention": lambda path, layer: _attention(path, layer) and path.split(".")[-2] == "attn2",
    "linear": lambda path, layer: isinstance(layer, nn.Linear),
    "convolutions": lambda path, layer: isinstance(layer, nn.Conv2d),
    "all": lambda path, layer: True,
}
KINDS = ("lora", "dora", "loha", "lokr")


class TrainableLora(nn.Module):
    """An adapter's changes of one network, as float32 parameters.

    Args:
        updates: by the layers' native names; their numbers are copied.
        dropout: fraction of a layer's inputs that its factors do not see while training (PEFT's `lora_dropout`).
        rank_dropout: fraction of the ranks that are left out of a call while training, others being counted for them
            (kohya's `rank_dropout`, with one draw for all rows). For plain factors only.

    Attributes:
        layers: the native names of the layers it changes, in order.
        seed: what dropout draws from; set it anew before each step. The draw is a function of it and the layer, so
            that a layer computed again on the way back (gradient checkpointing) drops the same.
        on: whether networks that it is attached to answer with it.
    """

    def __init__(self, updates: Mapping[str, Update], dropout: float = 0.0, rank_dropout: float = 0.0) -> None:
        super().__init__()
        if rank_dropout and any(update.kind != "lora" for update in updates.values()):
            raise ValueError(f"rank_dropout is {rank_dropout}; only plain factors (lora, dora) have ranks to leave out")
        self.layers = list(updates)
        self.dropout, self.rank_dropout = dropout, rank_dropout
        self.seed = 0
        self._factors = [update.factor for update in updates.values()]
        self.on = True
        self.tensors = nn.ModuleList(nn.ParameterDict(_tensors(update)) for update in updates.values())

    @property
    def up(self) -> list[nn.Parameter]:
        """Of plain factors, those that are zero until they are trained."""
        return [parameter for name, parameter in self.named_parameters() if name.endswith(".up")]

    def update(self, number: int) -> Update:
        """The change of one layer, made of the live parameters."""
        tensors: Any = self.tensors[number]
        factors = {name: tensor for name, tensor in tensors.items() if name not in ("magnitude", "bias")}
        return Update(
            factors,
            self._factors[number],
            tensors.get("magnitude"),
            tensors.get("bias"),
        )

    def updates(self) -> dict[str, Update]:
        """The change of each layer, made of the live parameters."""
        return {path: self.update(number) for number, path in enumerate(self.layers)}

    def attach(self, network: nn.Module, scale: float = 1.0) -> Callable[[], None]:
        """Let the network answer with the adapter from now on, in any thread; returns what ends it.

        Gradients reach the parameters. The hooks must last until the gradients are there, since gradient checkpointing
        computes layers again. The network's own weights should not require gradients.
        """
        layers = [network.get_submodule(path) for path in self.layers]
        handles = [layer.register_forward_hook(self._hook(number, scale)) for number, layer in enumerate(layers)]

        def detach() -> None:
            for handle in handles:
                handle.remove()

        return detach

    @contextmanager
    def attached(self, network: nn.Module, scale: float = 1.0) -> Iterator[None]:
        """`attach` for the length of a context."""
        detach = self.attach(network, scale)
        try:
            yield
        finally:
            detach()

    @contextmanager
    def switched(self, on: bool) -> Iterator[None]:
        """While this context lasts, networks answer with it or without it, wherever it is attached."""
        before, self.on = self.on, on
        try:
            yield
        finally:
            self.on = before

    def adapter(self, part: str = "unet", name: str = "") -> Adapter:
        """A copy of what has been learned so far, to draw with or to save (`formats.lora_save.save_lora`)."""
        return Adapter({part: {path: _copied(update) for path, update in self.updates().items()}}, name=name)

    def _hook(self, number: int, scale: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self.on:
                return None
            update, x = self.update(number), inputs[0]
            learning = self.training and torch.is_grad_enabled()
            if not (learning and (self.dropout or self.rank_dropout)):
                return output + update(layer, x, scale, answer=output)
            generator = torch.Generator(x.device).manual_seed((self.seed * 65_537 + number) % 2**63)
            if self.rank_dropout:
                down = update.factors["down"]
                kept = _kept(down[(slice(None), *[slice(1)] * (down.ndim - 1))], self.rank_dropout, generator)
                update = Update({**update.factors, "down": down * kept}, update.factor, update.magnitude, update.bias)
            seen = x * _kept(x, self.dropout, generator) if self.dropout else x
            return output + update(layer, seen, scale, answer=None if self.dropout else output)

        return add


def init_lora(
    network: nn.Module,
    rank: int = 4,
    alpha: float | None = None,
    which: str | Callable[[str], bool] = "attention",
    *,
    kind: str = "lora",
    conv_rank: int | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    rank_dropout: float = 0.0,
) -> TrainableLora:
    """An adapter that changes nothing yet, begun as PEFT and LyCORIS begin theirs, from torch's generator.

    Args:
        network: a U-Net or a text encoder.
        rank: r, at least 1.
        alpha: the difference is multiplied by alpha / r; None: by 1.
        which: the layers: "attention" (the four projections of every attention), "cross-attention", "linear" (all
            linear layers), "convolutions", "all", or what says yes to a layer's native name.
        kind: "lora"; "dora", with a magnitude for each output; "loha" and "lokr", LyCORIS' products (`updates`).
        conv_rank: r of convolutions of more than one pixel; None: as the others.
        rslora: multiply by alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv 2312.03732, eq. 4).
        dropout, rank_dropout: see `TrainableLora`.

    Raises ValueError where no layer is chosen, a rank is below 1, or the kind is unknown.
    """
    ranks = (rank, rank if conv_rank is None else conv_rank)
    if min(ranks) < 1:
        raise ValueError(f"rank is {min(ranks)}; it must be 1 or more")
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if isinstance(which, str) and which not in WHICH:
        raise ValueError(f"which is {which!r}; it must be one of {', '.join(WHICH)}")
    chosen = WHICH[which] if isinstance(which, str) else lambda path, layer: which(path)
    updates: dict[str, Update] = {}
    for path, layer in network.named_modules():
        if isinstance(layer, Layer) and chosen(path, layer):
            r = ranks[layer.weight.ndim == 4 and layer.weight[0, 0].numel() > 1]
            numerator = float(r if alpha is None else alpha)
            updates[path] = _begun(layer.weight, kind, r, numerator / (math.sqrt(r) if rslora else r))
    if not updates:
        raise ValueError(f"no layer of the network is chosen by {which!r}")
    return TrainableLora(updates, dropout, rank_dropout)


@torch.no_grad()
def _begun(weight: Tensor, kind: str, r: int, factor: float) -> Update:
    """The change of a layer of this weight that changes nothing yet."""
    out, *inner = weight.shape

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device=weight.device, dtype=torch.float32)

    def uniform(*shape: int) -> Tensor:
        return nn.init.kaiming_uniform_(empty(*shape), a=math.sqrt(5))

    if kind == "loha":  # arXiv 2108.06098; LyCORIS' deviations
        first, width = nn.init.normal_(empty(out, r), std=0.1), math.prod(inner)
        sides = {"hada_w1_b": nn.init.normal_(empty(r, width)), "hada_w2_b": nn.init.normal_(empty(r, width))}
        return Update({"hada_w1_a": first, "hada_w2_a": empty(out, r).zero_(), **sides}, factor)
    if kind == "lokr":  # arXiv 2212.10650: sides as even as they divide
        (a, c), (b, d) = _split(out), _split(inner[0])
        rest = (d, *inner[1:])
        if r >= max(c, math.prod(rest)) / 2:  # factors would be no smaller than the whole
            return Update({"lokr_w1": uniform(a, b), "lokr_w2": empty(c, *rest).zero_()}, 1.0)
        factors = {"lokr_w2_a": empty(c, r).zero_(), "lokr_w2_b": uniform(r, math.prod(rest))}
        return Update({"lokr_w1": uniform(a, b), **factors}, factor)
    # arXiv 2106.09685, sec. 4.1: down random, up zero
    plain = {"down": uniform(r, *inner), "up": empty(out, r, *[1] * (len(inner) - 1)).zero_()}
    if kind == "lora":
        return Update(plain, factor)
    axes = tuple(range(1, weight.ndim))
    return Update(plain, factor, torch.linalg.vector_norm(weight.float(), dim=axes, keepdim=True))


def _split(width: int) -> tuple[int, int]:
    """Two factors of a width, as near to each other as can be, the smaller first."""
    small = next(n for n in range(math.isqrt(width), 0, -1) if width % n == 0)
    return small, width // small


def _kept(like: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """0 for a fraction of the places, 1 / (1 - fraction) for the others."""
    kept = torch.rand(like.shape, device=like.device, generator=generator) >= fraction
    return kept.to(like.dtype) / (1 - fraction)


def _tensors(update: Update) -> dict[str, nn.Parameter]:
    tensors = {**update.factors, "magnitude": update.magnitude, "bias": update.bias}
    return {n: nn.Parameter(t.detach().float().clone()) for n, t in tensors.items() if t is not None}


def _copied(update: Update) -> Update:
    return Update(
        {name: tensor.detach().clone() for name, tensor in update.factors.items()},
        update.factor,
        None if update.magnitude is None else update.magnitude.detach().clone(),
        None if update.bias is None else update.bias.detach().clone(),
    )
