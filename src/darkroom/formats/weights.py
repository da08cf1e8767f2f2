"""The weights of one network in a checkpoint, under native names and strictly."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from ..errors import CheckpointError
from ..models.config import TextEncoderConfig
from . import single
from .layouts import TITLES, Layout, Part, is_ignored, table
from .rules import Config, Place
from .tensors import TensorFile, open_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor


READERS = 2  # threads that read tensors; more would wait for the same memory


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a part's tensors lie."""

    path: Path  # a weights file, or the index of its shards
    layout: Layout
    ema: bool = False  # take the moving average: there is nothing else
    start: str | None = None  # what the part's keys begin with, where that is not what the layout says
    second: Path | None = None  # the rest of the tensors; layout "taesd": the decoder's, where `path` has the encoder's

    def open(self) -> TensorFile:
        """The tensors; those of a tiny autoencoder's two files as `encoder.` and `decoder.`"""
        first = open_tensors(self.path)
        if self.second is None:
            return first
        try:
            starts = ("encoder.", "decoder.") if self.layout == "taesd" else ("", "")
            return first.renamed(starts[0]).joined(open_tensors(self.second).renamed(starts[1]))
        except BaseException:
            first.close()
            raise

    def keys(self, names: list[str], part: Part) -> dict[str, str]:
        """The canonical key of each of the part's tensors -> the key among `names`."""
        return single.part_keys(names, part, self.layout, self.ema, self.start)


class Holder(Protocol):
    """What networks' weights are read of (`checkpoint.Checkpoint`, `control.ControlNetFile`)."""

    @property
    def weights(self) -> Mapping[Part, Weights]: ...
    def config(self, part: Part) -> Config: ...


class PartTensors:
    """The tensors of one network under their native names, one at a time. A context manager.

    `expected` is native name -> shape. Opening raises CheckpointError, naming the first few keys and their number, if
    any is missing, extra, wrongly shaped or no floating-point tensor.
    """

    def __init__(self, checkpoint: Holder, part: Part, expected: Mapping[str, tuple[int, ...]]) -> None:
        weights = checkpoint.weights[part]
        self._places = table(part, weights.layout, expected, checkpoint.config(part))
        self._expected = expected
        self._fused: tuple[str, Tensor] | None = None
        self._file = weights.open()
        try:
            names = self._file.names()
            self._keys = weights.keys(names, part)
            problems = self._problems(part, weights.layout, checkpoint)
            if problems:
                raise CheckpointError(
                    f"{weights.path}: the {TITLES[part]} does not fit its configuration: {'; '.join(problems)}."
                )
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        """All native names, in an order in which fused tensors are read once."""
        return sorted(self._places, key=lambda name: self._places[name].name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._expected[name])

    def dtype(self, name: str) -> torch.dtype:
        """The type in which `load` gives it."""
        return self._file.dtype(self._keys[self._places[name].name])

    def stored(self, name: str) -> str:
        """The type it is stored in, as torch names it."""
        return self._file.dtype_name(self._keys[self._places[name].name])

    def load(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor, in memory of its own, converted to `dtype` if given. CheckpointError if it is not finite."""
        place = self._places[name]
        key = self._keys[place.name]
        if place.transposed:
            return self._file.load(key, dtype).T.contiguous()
        if place.third is None:
            return self._file.load(key, dtype).reshape(self.shape(name))
        fused = self._fused  # another thread may change it
        if fused is None or fused[0] != key:
            fused = self._fused = (key, self._file.load(key, dtype))
        return fused[1].chunk(3)[place.third].clone()

    def close(self) -> None:
        self._fused = None
        self._file.close()

    def __enter__(self) -> PartTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _problems(self, part: Part, layout: Layout, checkpoint: Holder) -> list[str]:
        """What is wrong with the file's keys: at most one clause each for missing, unknown, misshapen, not numbers."""
        wanted = {place.name: (name, place) for name, place in self._places.items()}
        missing = [key for key in wanted if key not in self._keys]
        unknown = [
            self._keys[key]
            for key in self._keys
            if key not in wanted
            and not is_ignored(part, layout, key)
            and not self._is_dropped(part, layout, key, checkpoint)
        ]
        misshapen, whole = [], []
        for key, (name, place) in wanted.items():
            if key not in self._keys:
                continue
            own = self._keys[key]
            shape, expected = self._file.shape(own), in_file_shape(tuple(self._expected[name]), place)
            if shape != expected and not (place.pointwise and _squeezed(shape) == _squeezed(expected)):
                misshapen.append(f"{own} is {list(shape)} where {list(expected)} is expected")
            elif not self._file.dtype(own).is_floating_point:
                whole.append(f"{own} is {str(self._file.dtype(own)).removeprefix('torch.')}")
        return [
            *_clause(missing, "key is missing", "keys are missing"),
            *_clause(unknown, "key is unknown", "keys are unknown"),
            *_clause(misshapen, "tensor has a wrong shape", "tensors have a wrong shape"),
            *_clause(whole, "tensor has no floating-point numbers", "tensors have no floating-point numbers"),
        ]

    def _is_dropped(self, part: Part, layout: Layout, key: str, checkpoint: Holder) -> bool:
        """Whether a key is of SD 2.x's last OpenCLIP layer, which is never used."""
        config = checkpoint.config(part)
        if layout != "openclip" or not isinstance(config, TextEncoderConfig) or config.num_hidden_layers != 23:
            return False
        return key.startswith("cond_stage_model.model.transformer.resblocks.23.")


def native_state(
    checkpoint: Holder, part: Part, expected: Mapping[str, torch.Size], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """All tensors of a network under their native names, for `load_state_dict(assign=True)` on `meta`.

    `expected`: native name -> shape, from that network's `state_dict()`. Tensors are converted to `dtype` piece by
    piece while they are read, so that memory holds each once. Strict: see `PartTensors`.
    """
    with PartTensors(checkpoint, part, expected) as tensors, ThreadPoolExecutor(READERS) as readers:
        names = tensors.names()
        return dict(zip(names, readers.map(lambda name: tensors.load(name, dtype), names), strict=True))


def in_file_shape(shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
    """The shape of the file's tensor that holds a native tensor of `shape` at `place`."""
    if place.third is not None:
        shape = (3 * shape[0], *shape[1:])
    if place.transposed:
        shape = shape[::-1]
    return (*shape, 1, 1) if place.as_convolution and len(shape) == 2 else shape


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A pointwise layer's [out, in], whether or not it is written as a convolution of one pixel."""
    return shape[:2] if len(shape) > 2 and set(shape[2:]) == {1} else shape


def _clause(items: list[str], one: str, many: str) -> list[str]:
    if not items:
        return []
    return [f"{len(items)} {one if len(items) == 1 else many} ({', '.join(items[:3])}{', ...' * (len(items) > 3)})"]
