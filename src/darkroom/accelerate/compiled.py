"""torch.compile, block by block.

The blocks of one kind (class, shapes and types of the weights) run the same compiled code: Stable Diffusion 1.5's U-Net
has 41 blocks of 17 kinds, so that compiling takes a fraction of what the whole network does, in which every layer is
code of its own. What lies between the blocks (concatenations, the first and last convolution) stays plain torch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.packed import Hooks
from ..models.layers import Block


def compile_blocks(network: nn.Module, mode: str | None = None) -> None:
    """Let torch.compile have every `Block` of a network, when it is first used; in place, and the weights stay.

    Sizes and rows: a kind is compiled for the first shape that comes, with its numbers in the code; the second makes it
    compile once more, with what differs (rows, sides, length of the text) left open, and that serves all others. One
    row is always code of its own. torch stops at 8 variants of a kind (`torch._dynamo.config.recompile_limit`) and runs
    what comes then uncompiled, so that time to compile is bounded.

    A block runs uncompiled while a hook hangs on a layer of it (`adapters.attached`). On CUDA the weights are laid out
    channels-last, which the tensor cores' convolutions take without turning them over.

    Args:
        mode: torch.compile's, such as "max-autotune-no-cudagraphs": slower to compile.
    """
    weight = next(network.parameters())
    if weight.is_cuda:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for block in network.modules():
        if isinstance(block, Block):
            block._compiled_call_impl = _call(block, _compiled(_kind(block), mode))
    if network._compiled_call_impl is None:
        network._compiled_call_impl = network._call_impl  # nothing changes by it but what `is_compiled` says


def is_compiled(network: nn.Module) -> bool:
    """Whether a network was given to torch.compile, whole or by blocks."""
    return network._compiled_call_impl is not None


def _call(block: Block, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """What stands in for a call of the block."""
    hooks = Hooks(block)

    def call(*inputs: Any) -> Any:
        plain: Callable[..., Any] = block._call_impl
        return plain(*inputs) if hooks else compiled(block, *inputs)

    return call


def _kind(block: Block) -> str:
    """A name that blocks share when the same code can serve them, and that another process finds again."""
    shapes = [(name, tuple(t.shape), str(t.dtype), t.device.type) for name, t in block.state_dict().items()]
    return f"{type(block).__name__}_{zlib.crc32(repr(shapes).encode()):08x}"


@cache
def _compiled(kind: str, mode: str | None) -> Callable[..., Any]:
    """The compiled call of blocks of one kind.

    torch.compile keeps what it made, and what it saw of shapes, by code object and by its name. So every kind has its
    own: otherwise two kinds' widths would look like one that varies, and be left open.
    """
    function = FunctionType(_forward.__code__.replace(co_name=kind), _forward.__globals__, kind)
    compiled: Callable[..., Any] = torch.compile(function, mode=mode)
    return compiled


def _forward(block: Block, *inputs: Tensor | None) -> Any:
    return block.forward(*inputs)
