"""How far a picture in progress is, as bytes: what moves in a job, and nothing that can be prepared again. No pickle.

A job is made anew from its request and inputs, and takes over where the bytes say it was. Whatever doesn't fit exactly
(another version, model, sampler, request, processor; bytes that are cut or changed) is no error: the job starts over,
which gives the same picture.

[8 bytes: FORM] [4 bytes: N, little-endian] [N bytes of JSON] [the tensors' bytes, without gaps] [SHA-256 of all before]
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..samplers.state import SamplerState
from .decode import finish
from .job import Job
from .prepare import LoadedModel, prepare_next

FORM = b"darkjob1"
DIGEST = 32  # bytes
EQUAL = (1, 2, 4)  # threads that were seen to give the same bits (docs/determinism.md)
DEEP = 8  # tuples in each other that a sampler's memory may have
TYPES = {"float32": torch.float32, "float64": torch.float64}


def bit_class(device: torch.device, exact: bool) -> str:
    """Where a picture has the same bytes: jobs don't go on between places of unlike names.

    Args:
        device: where the U-Net is.
        exact: `Engine.bit_exact`.
    """
    if device.type != "cpu":
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return f"{device.type} {where}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    told = "/".join(map(str, EQUAL)) if exact and threads in EQUAL else str(threads)
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{_processor()}, {kernels}, torch {torch.__version__}, {told} threads, {'exact' if exact else 'plain'}"


@cache
def _processor() -> str:
    """The processor's kind, as far as libraries choose kernels by it."""
    wanted, found = ("vendor_id", "cpu family", "model", "model name"), dict[str, str]()
    info = Path("/proc/cpuinfo")
    for line in info.read_text(errors="replace").splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            found.setdefault(name.strip(), value.strip())
    return " ".join([platform.machine(), *found.values()]) if found else platform.processor() or platform.machine()


def dump(job: Job, bits: str) -> bytes | None:
    """How far a job is; None where it has to start over in any case: it carries cached features.

    `bits` is the `bit_class` of where it was drawn.
    """
    if job.kept or job.request.cache_interval > 1:
        return None
    tensors: list[Tensor] = []
    state = job.state
    moved = [state.sigma, state.interval, state.evaluations, _plain(state.memory, tensors)]
    held = [state.x, *([] if job.first is None else [job.first])]
    tensors = [tensor.detach().cpu().contiguous() for tensor in (*held, *tensors)]
    header = {
        **_facts(job, bits),
        "state": moved,
        "second": job.first is not None,
        "tensors": [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    body = b"".join(tensor.numpy().tobytes() for tensor in tensors)
    data = FORM + len(text).to_bytes(4, "little") + text + body
    return data + hashlib.sha256(data).digest()


@torch.no_grad()
def restore(model: LoadedModel, job: Job, data: bytes, bits: str) -> Job | None:
    """The job of a request, prepared anew, at the place that the bytes tell; None: it starts over.

    Where that is a second pass, the first one's result is decoded again. Whatever the bytes are, nothing is raised.
    """
    try:
        header, tensors = _read(data)
        if any(header.get(name) != value for name, value in _facts(job, bits).items()):
            return None
        given = iter(tensors)
        sigma, interval, evaluations, memory = header["state"]
        x, first = next(given), next(given) if header["second"] else None
        state = _checked(SamplerState(x, sigma, interval, evaluations, _filled(memory, given)))
        if next(given, None) is not None:
            return None
        if first is not None:
            job = _second(model, job, first)
        if x.shape != job.state.x.shape or not job.start <= state.interval <= job.start + job.steps:
            return None
        job.state = _on(state, job.state.x.device)
        return job
    except Exception:  # of any kind: the bytes are nobody's promise, and starting over is always right
        return None


def _facts(job: Job, bits: str) -> dict[str, Any]:
    """What has to be the same for a job to go on."""
    request = json.dumps(job.request.to_dict(), sort_keys=True).encode()
    return {
        "version": __version__,
        "model": job.request.model_hash,
        "sampler": job.request.sampler,
        "request": hashlib.sha256(request).hexdigest(),
        "bits": bits,
    }


def _plain(value: Any, tensors: list[Tensor]) -> Any:
    """A sampler's memory as JSON, its tensors put aside; floats are written so that they come back exactly."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, tuple):
        return [_plain(part, tensors) for part in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    kind = type(value).__name__
    raise TypeError(f"a sampler remembers a {kind}; a snapshot holds tensors, numbers, words and tuples")


def _filled(value: Any, tensors: Iterator[Tensor], depth: int = 0) -> Any:
    """The inverse, tensors coming in their order."""
    if depth > DEEP:
        raise ValueError("too deep")
    if isinstance(value, dict):
        return next(tensors)
    return tuple(_filled(part, tensors, depth + 1) for part in value) if isinstance(value, list) else value


def _read(data: bytes) -> tuple[Mapping[str, Any], list[Tensor]]:
    """Header and tensors; an exception for bytes that are not whole."""
    if data[: len(FORM)] != FORM or hashlib.sha256(data[:-DIGEST]).digest() != data[-DIGEST:]:
        raise ValueError("not a whole snapshot")
    begin = len(FORM) + 4
    end = begin + int.from_bytes(data[len(FORM) : begin], "little")
    header, body, at = json.loads(data[begin:end]), data[end:-DIGEST], 0
    tensors = []
    for kind, shape in header["tensors"]:
        dtype, count = TYPES[kind], math.prod(shape)
        size = count * dtype.itemsize
        tensor = torch.frombuffer(bytearray(body[at : at + size]), dtype=dtype, count=count).view(shape)
        if not bool(tensor.isfinite().all()):
            raise ValueError("numbers that are not finite")
        tensors.append(tensor)
        at += size
    if at != len(body):
        raise ValueError("too many bytes")
    return header, tensors


def _checked(state: SamplerState) -> SamplerState:
    whole = all(type(number) is int and number >= 0 for number in (state.interval, state.evaluations))
    if not whole or type(state.sigma) is not float or not math.isfinite(state.sigma):
        raise ValueError("no state")
    if state.x.dtype != torch.float32 or not isinstance(state.memory, tuple):
        raise ValueError("no state")
    return state


def _second(model: LoadedModel, job: Job, first: Tensor) -> Job:
    """The second pass of a job whose first one ended at `first`."""
    if first.shape != job.state.x.shape or job.next is None:
        raise ValueError("no second pass")
    job.state = SamplerState(first.to(job.state.x.device), job.sigmas[-1], job.start + job.steps)
    return prepare_next(model, job, finish(model.autoencoder, job))


def _on(state: SamplerState, device: torch.device) -> SamplerState:
    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        return tuple(map(moved, value)) if isinstance(value, tuple) else value

    return SamplerState(moved(state.x), state.sigma, state.interval, state.evaluations, moved(state.memory))
