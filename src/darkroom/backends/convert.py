"""A network's graph for OpenVINO, without its weights, and kept on disk.

A throw-away network on no memory (every weight one zero, seen in its whole shape) is traced with all its weights as
inputs; whoever compiles the graph puts the weights in by name. So a graph belongs to an architecture, not to a
checkpoint: it takes a megabyte or two, and all fine-tunes of a model share it.

It is kept in the cache folder. An entry is a folder that comes into being with one rename: whole or not at all, whoever
else is at it. One that can't be read any more is made anew. OpenVINO itself is imported when it is asked for.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from .. import kernels, models
from ..errors import RequestError
from ..files import cache_folder

TELEMETRY = "openvino_telemetry"
GRAPH = "graph.xml"  # and graph.bin, its constants
FORMAT = 1  # of what is kept

Answer = Tensor | tuple[Tensor, ...]
log = logging.getLogger(__name__)


def openvino() -> Any:
    """The module. Raises RequestError where it isn't installed.

    Its converter reports its use to its maker as soon as it is imported. Nothing that Darkroom does may leave the
    machine, so the reporting part is out of reach meanwhile, and the converter takes the silent one that it has.
    """
    hidden = TELEMETRY not in sys.modules and "openvino" not in sys.modules
    if hidden:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino as library
    except ImportError as error:
        raise RequestError(
            "backend is 'openvino', and OpenVINO isn't installed; pip install 'darkroom-diffusion[openvino]', "
            "or leave it"
        ) from error
    finally:
        if hidden:
            del sys.modules[TELEMETRY]
    return library


@cache
def core() -> Any:
    """OpenVINO's devices; one for the process."""
    return openvino().Core()


def kept(key: str, make: Callable[[], Any]) -> Any:
    """The graph of a key (a file name), an `openvino.Model`; made, and kept, where it isn't there yet.

    A disk that is full or not writable costs the keeping, not the picture: one warning says so.
    """
    place = cache_folder() / "openvino" / key
    if (place / GRAPH).is_file():
        try:
            return core().read_model(place / GRAPH)
        except RuntimeError:
            log.warning("the converted network in %s can't be read; converting again", place)
            shutil.rmtree(place, ignore_errors=True)
    graph = make()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=place.parent) as temporary:
            new = Path(temporary, key)
            new.mkdir()
            openvino().save_model(graph, new / GRAPH, compress_to_fp16=False)
            core().read_model(new / GRAPH)  # the library notices a full disk when it reads, not when it writes
            new.rename(place)
    except (OSError, RuntimeError) as error:
        if not place.exists():  # else another process was first, with the same graph
            reason = getattr(error, "strerror", None) or type(error).__name__
            log.warning("the converted network can't be kept in %s (%s); it is converted each time", place, reason)
    return graph


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
    described = "\n".join(map(str, [*parts, method.name, *method.inputs.items()]))
    return kept(hashlib.sha256(described.encode()).hexdigest()[:32], lambda: converted(lambda: kind(config), method))


@cache
def _source() -> str:
    """A hash of the code that a graph is made by: stricter than our version."""
    rooms = (Path(room.__path__[0]) for room in (models, kernels))
    files = [Path(__file__), *(file for room in rooms for file in sorted(room.glob("*.py")))]
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
