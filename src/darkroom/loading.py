"""load(): from a checkpoint to a Pipeline on a device."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import torch

from .accelerate.compiled import compile_blocks
from .accelerate.fp8 import fp8_problem, to_fp8
from .accelerate.graphs import record_calls
from .accelerate.int8 import int8_problem, to_int8
from .backends import BACKENDS, Networks, classes
from .devices import check_dtype, device_named, dtype_named, dtype_within
from .embedded import HOME, MODEL
from .engine.decode import Previewer
from .errors import CheckpointError, RequestError, check_room, out_of_memory
from .files import cache_folder
from .formats.checkpoint import Checkpoint, open_checkpoint
from .formats.layouts import Part
from .formats.vae import with_vae
from .model import Model
from .models.autoencoder import TinyAutoencoder
from .models.config import AutoencoderConfig, TinyAutoencoderConfig
from .names import Backend, DType, Quantization
from .pieces import Changes, Origin
from .pipeline import Pipeline
from .request import choice

log = logging.getLogger(__name__)
QUANTIZED = get_args(Quantization)


def load(
    source: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: DType = "auto",
    compile: bool = False,
    backend: Backend = "auto",
    quantize: Quantization | None = None,
    lora_dir: str | Path | None = None,
    vae: str | Path | None = None,
    preview: str | Path | None = None,
) -> Pipeline:
    """Load a model.

    Args:
        source: a diffusers folder, a .safetensors or .ckpt file, or "org/name[@revision]" on the hub (its cache and
            HF_HUB_OFFLINE obeyed); None: the embedded model, offline and at once.
        device: "auto" (CUDA or MPS if there is one), "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32", "bfloat16", "float16", or "auto": float16 on a GPU; on a CPU bfloat16 if the processor
            multiplies such numbers by itself and the model is large (Stable Diffusion's size), else float32.
        compile: let torch.compile have the blocks of the U-Net and of the autoencoder when they are first used, and
            record the U-Net's calls as CUDA graphs on a GPU: a slow start, faster steps (docs/gpu.md).
        quantize: faster and lossy: "int8" lets the U-Net multiply in 8 bits on a CPU (docs/faster.md), "fp8" its large
            linear layers on GPUs that multiply such numbers (docs/gpu.md). None: nothing is rounded.
        backend: what runs the networks: "native" (torch), "openvino" (on a CPU, docs/openvino.md), "auto": native.
        lora_dir: a folder of LoRA files, for prompts that name them: <lora:name:weight>. None: the embedded model's own
            for that model, none for others.
        vae: another autoencoder in place of the model's own: a diffusers folder, a diffusers, LDM or TAESD file, or a
            name on the hub (docs/models.md).
        preview: an autoencoder for previews, best a tiny one; None: previews are made without a network.

    Raises CheckpointError for a model that is missing, broken or of an architecture we don't know, RequestError for a
    device, dtype or backend that can't be.
    """
    asked = {
        "source": source, "device": device, "dtype": dtype, "compile": compile, "backend": backend,
        "quantize": quantize, "lora_dir": lora_dir, "vae": vae, "preview": preview,
    }  # fmt: skip
    choice("backend", backend, BACKENDS)
    place = device_named("cpu" if backend == "openvino" and device == "auto" else device)
    _check_quantize(quantize, place, compile, backend)
    kinds = _networks(backend, place, compile)
    check_dtype(dtype, place)
    if source is None and not MODEL.exists():
        raise CheckpointError(
            f"the embedded model is missing from this installation ({MODEL}); install the package again, "
            f"or name a model: a diffusers folder, a .safetensors file or a hub id"
        )
    checkpoint = open_checkpoint(MODEL if source is None else source)
    numbers = dtype_named(dtype, place, checkpoint.unet_config)
    previewing = None if preview is None else with_vae(checkpoint, preview)
    checkpoint = checkpoint if vae is None else with_vae(checkpoint, vae)
    try:
        pipe = _build(checkpoint, place, numbers, kinds)
        if previewing is not None:
            pipe.previewer = _previewer(pipe, previewing, numbers)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise CheckpointError(
            f"memory ran out while loading {checkpoint.name!r} to {place}; free some, or load it in a smaller dtype"
        ) from error
    checkpoint.hash_ahead()  # every picture's recipe tells it
    if quantize is not None:
        {"int8": to_int8, "fp8": to_fp8}[quantize](pipe.unet)
    if compile:
        _compile(pipe)
    own = HOME / "lora" if source is None and (HOME / "lora").is_dir() else None
    pipe.loras.folder = own if lora_dir is None else Path(lora_dir)
    pipe.origin = Origin(again=load_again, arguments={name: _anywhere(value) for name, value in asked.items()})
    log.info("%s", _chosen(pipe, backend, quantize, compile))
    return pipe


def load_again(arguments: Mapping[str, Any], changes: Changes) -> Pipeline:
    """What a pickle of a pipeline becomes. Raises as `load` does, and CheckpointError where its file is another one."""
    pipe = load(**arguments)
    if changes.model_hash != pipe.model_hash:
        raise CheckpointError(
            f"the pipeline was pickled with the model {changes.model_hash}, and {pipe.name!r} is {pipe.model_hash}; "
            "bring that file back, or load and pickle anew"
        )
    pipe.change(changes)
    return pipe


def _anywhere(value: Any) -> Any:
    """An argument that means the same in another folder; what is not there is a name on the hub."""
    if isinstance(value, str | Path) and (os.sep in str(value) or isinstance(value, Path)) and os.path.exists(value):
        return os.path.abspath(value)
    return value


def _chosen(pipe: Pipeline, backend: str, quantize: str | None, compile: bool) -> str:
    """What "auto" has come to, for the log."""
    library = "openvino" if backend == "openvino" else "torch"
    threads = f", {torch.get_num_threads()} threads" if pipe.device.type == "cpu" else ""
    more = [*([f"rounded to {quantize}"] if quantize else []), *(["compiled"] if compile else [])]
    size = f"{pipe.size[0]}x{pipe.size[1]}"
    return ", ".join([f"{pipe.name} ({size}) on {pipe.device} in {str(pipe.dtype)[6:]}, by {library}{threads}", *more])


def _check_quantize(quantize: str | None, device: torch.device, compile: bool, backend: str) -> None:
    """Raise RequestError where the networks can't be rounded in this way."""
    if quantize is None:
        return
    choice("quantize", quantize, QUANTIZED)
    takes = "a CUDA GPU of compute capability 8.9 or more" if quantize == "fp8" else "a CPU, and no torch.compile"
    reason = fp8_problem(device) if quantize == "fp8" else int8_problem(device, compile)
    reason = "the backend is 'openvino'" if backend == "openvino" else reason
    if reason is not None:
        raise RequestError(f"quantize is {quantize!r}, which takes {takes}, and {reason}; leave it out")


def _compile(pipe: Pipeline) -> None:
    """Compile a pipeline's networks, with the code kept on disk from one process to the next.

    torch keeps it in /tmp unless it is told where: it is put beside our other caches, where nobody has said otherwise.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    compile_blocks(pipe.unet)
    compile_blocks(pipe.autoencoder)
    if pipe.device.type == "cuda":
        record_calls(pipe.unet)


def _build(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, kinds: Networks) -> Pipeline:
    check_room()
    # Weights are read, by threads that need no interpreter, while the next networks and the tokenizers are made.
    with ThreadPoolExecutor(1, "darkroom-load") as aside:
        filling: list[Future[None]] = []

        def filled(part: Part) -> Any:
            network, numbers = _empty(checkpoint, part, dtype, kinds)
            filling.append(aside.submit(checkpoint.fill, network, part, device, numbers))
            return network

        networks = {part: filled(part) for part in checkpoint.parts}
        tokenizers = {part: checkpoint.tokenizer(part) for part in checkpoint.parts if part.startswith("text_encoder")}
        for part in filling:
            part.result()
    model = Model(
        unet=networks["unet"],
        autoencoder=networks["autoencoder"],
        text_encoder=networks["text_encoder"],
        tokenizer=tokenizers["text_encoder"],
        text_encoder_2=networks.get("text_encoder_2"),
        tokenizer_2=tokenizers.get("text_encoder_2"),
        zero_negative=checkpoint.zero_negative,
        scheduler_config=checkpoint.scheduler_config,
        checkpoint=checkpoint,
        name="embedded" if checkpoint.path == MODEL else "",
    )
    return Pipeline(model)


def _empty(checkpoint: Checkpoint, part: Part, dtype: torch.dtype, kinds: Networks) -> tuple[Any, torch.dtype]:
    """A network of a checkpoint on `meta`, and what it computes in."""
    config: Any = checkpoint.config(part)
    with torch.device("meta"):
        if isinstance(config, AutoencoderConfig):
            kind: Any = TinyAutoencoder if isinstance(config, TinyAutoencoderConfig) else kinds.autoencoder
            return kind(config), dtype_within(config, dtype)
        return kinds.unet(config) if part == "unet" else kinds.text_encoder(config), dtype


def _previewer(pipe: Pipeline, checkpoint: Checkpoint, dtype: torch.dtype) -> Previewer:
    """Previews by a checkpoint's autoencoder."""
    network, numbers = _empty(checkpoint, "autoencoder", dtype, Networks())
    checkpoint.fill(network, "autoencoder", pipe.device, numbers)
    return Previewer(pipe.autoencoder, network.eval().requires_grad_(False))


def _networks(backend: str, device: torch.device, compile: bool) -> Networks:
    """The classes of a backend. Raises RequestError where it can't be."""
    if backend == "openvino" and device.type != "cpu":
        raise RequestError(f"backend is 'openvino', which runs on the CPU, and device is '{device}'; leave one of them")
    if backend == "openvino" and compile:
        raise RequestError("backend is 'openvino', which compiles the networks itself, and compile is true; leave one")
    return classes(backend)
