"""PyTorch's pickles (`.ckpt`, `.pt`, `.pth`, `.bin`), read without running anything in them.

`torch.load(weights_only=True)` in a child process would be the usual answer, but it refuses the many published
checkpoints in which a trainer left a callback object, it needs a second copy of the weights, in memory or on disk, to
hand them to this process, and seconds to start. So the child here has no torch at all. It is confined (`torchfile`), it
reads the pickle as a list of instructions that it does not follow (`unpickle`), and it answers where each tensor's
bytes lie; they are stored as they are in both of PyTorch's formats. This process checks the answer as it would a
header's and then reads the tensors straight from the file, one at a time: there is no copy beyond the tensors kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .storage import Slot, Source, check_finite, clip

TIMEOUT = 120.0  # seconds of wall-clock; the child allows itself 60 of computing

_CHILD = "import sys; sys.path.append(sys.argv.pop()); from darkroom.formats.torchfile import main; main()"


def is_pickle(head: bytes) -> bool:
    """Whether a file that starts with `head` may be of `torch.save`: a zip archive, or pickles in a row."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def pickled_slots(source: Source) -> list[Slot]:
    """Where the tensors directly in a PyTorch pickle, or in its `state_dict`, lie in the file; all else is left out.

    Raises CheckpointError if the file holds none, or is broken or hostile.
    """
    answer = _ask(source, "names")
    return [_slot(source, name, place) for name, *place in answer["tensors"]]


def read_pickle_tensors(path: Path | str, *, finite: bool = True) -> Any:
    """All that is plain in a PyTorch pickle: nested dicts, lists, numbers, texts, None, and tensors (contiguous, CPU).

    For small files of free form, such as textual-inversion embeddings. Anything that is no plain value is None; so is
    what lies deeper than twelve levels. Dicts keep keys that are texts or whole numbers. Raises CheckpointError if the
    file is no PyTorch pickle, is broken or hostile, or, if they must be `finite`, holds NaN or infinity in a tensor.
    """
    source = Source(Path(path))
    try:
        if not is_pickle(source.read(0, 8)):
            raise CheckpointError(f"{path} is no PyTorch pickle.")
        return _grown(source, _ask(source, "tree")["tree"], "", finite)
    finally:
        source.close()


def _grown(source: Source, value: Any, name: str, finite: bool) -> Any:
    """The value that the child's JSON stands for."""
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {key: _grown(source, item, f"{name}.{key}", finite) for key, item in value["dict"]}
    if "list" in value:
        return [_grown(source, item, f"{name}.{index}", finite) for index, item in enumerate(value["list"])]
    label = clip(name.removeprefix(".")) or "tensor"
    tensor = _slot(source, label, value["tensor"]).read()
    if finite:
        check_finite(label, tensor, source.path)
    return tensor


def _slot(source: Source, name: str, place: list[Any]) -> Slot:
    dtype, shape, stride, offset = place
    return Slot(
        source, name, dtype, offset=offset, shape=tuple(shape), stride=None if stride is None else tuple(stride)
    )


def _ask(source: Source, mode: str) -> dict[str, Any]:
    """The child's answer; a fresh interpreter, since a fork of a process with threads can hang."""
    package = str(Path(__file__).resolve().parents[2])
    keep = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # what an interpreter may need to start; no secrets
    try:
        source.file.seek(0)
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD, mode, package],
            stdin=source.file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT,
            env={name: os.environ[name] for name in keep if name in os.environ},
            check=False,
        )
        answer = json.loads(child.stdout)
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{source.path} took more than {TIMEOUT:.0f} s to look at: it is broken or hostile."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{source.path}: no process could be started to look at it ({error.strerror}).") from None
    except ValueError:
        raise CheckpointError(f"{source.path} is broken: looking at it ended with status {child.returncode}.") from None
    if "error" in answer:
        raise CheckpointError(f"{source.path} {answer['error']}.")
    return dict(answer)
