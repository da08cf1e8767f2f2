"""A network's graph for OpenVINO, without its weights.

A throw-away network on no memory (every weight one zero, seen in its whole shape) is traced with all its weights as
inputs; whoever compiles the graph puts the weights in by name. So a graph belongs to an architecture, not to a
checkpoint: it takes a megabyte or two, and all fine-tunes of a model share it.
"""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from .cache import kept
from .library import openvino

Answer = Tensor | tuple[Tensor, ...]
FORMAT = 1  # of what is kept


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that a method takes. A negative side is free; what it is without the sign is what is traced."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def example(self) -> Tensor:
        """Zeros of this shape, in the memory of one."""
        return torch.zeros((), dtype=self.dtype).expand([abs(side) for side in self.shape])


@dataclass(frozen=True, eq=False)
class Method:
    """Something that a network does: `call(network, **inputs)`, under a name that says all that decides it."""

    name: str
    call: Callable[..., Answer]
    inputs: Mapping[str, Input]


def graph_of(kind: Callable[[Any], nn.Module], config: Any, method: Method) -> Any:
    """An `openvino.Model` of a method of `kind(config)`; from the cache if it was converted before.

    Its inputs are the method's by their names and the weights by theirs, as far as the answer depends on them. The
    weights' values and their precision play no part.
    """
    parts = [FORMAT, openvino().__version__, torch.__version__, platform.machine(), _source(), kind, config]
    told = "\n".join(map(str, [*parts, method.name, *method.inputs.items()]))
    return kept(hashlib.sha256(told.encode()).hexdigest()[:32], lambda: converted(lambda: kind(config), method))


@cache
def _source() -> str:
    """A hash of the code that a graph is made by: stricter than our version."""
    files = [Path(__file__), *sorted(Path(models.__path__[0]).glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def converted(make: Callable[[], nn.Module], method: Method) -> Any:
    """What `graph_of` keeps."""
    library = openvino()
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.device("meta"):
        network = make().eval()
    names = [*method.inputs, *dict(network.named_parameters())]
    owners = [(network.get_submodule(path), leaf) for path, _, leaf in (n.rpartition(".") for n in names)]
    count = len(method.inputs)

    def traced(*tensors: Tensor) -> Answer:
        for (owner, leaf), tensor in zip(owners[count:], tensors[count:], strict=True):
            owner._parameters[leaf] = tensor  # type: ignore[assignment]
        return method.call(network, **dict(zip(names[:count], tensors, strict=False)))

    zero = torch.zeros(())
    weights = [zero.expand(weight.shape) for weight in network.parameters()]
    examples = (*(given.example for given in method.inputs.values()), *weights)
    # A picture in progress may have torch do things its own way on this thread (`engine.exact`): not in the graph.
    # With gradients, which nothing here has, layers go the plain way, without what torch itself needs for speed.
    with torch.enable_grad(), warnings.catch_warnings(), torch._C.DisableTorchFunction():
        warnings.simplefilter("ignore")  # checks of shapes become constants of the trace, which is as it should be
        trace = torch.jit.trace(traced, examples, check_trace=False)  # type: ignore[no-untyped-call]
    for name, value in zip(names, trace.graph.inputs(), strict=True):
        value.setDebugName(name)
    frontend = library.frontend.FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(trace, example_input=examples)  # must outlive the conversion
    graph = frontend.convert(frontend.load(decoder))
    for parameter in list(graph.get_parameters()):
        output = parameter.output(0)
        (name,) = output.get_names()
        if not output.get_target_inputs():
            graph.remove_parameter(parameter)
        elif name in method.inputs:
            parameter.set_partial_shape(library.PartialShape([max(side, -1) for side in method.inputs[name].shape]))
    graph.validate_nodes_and_infer_types()
    return graph
