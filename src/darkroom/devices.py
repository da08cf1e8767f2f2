"""Devices and numbers by the names that users give them."""

from __future__ import annotations

import torch

from .errors import RequestError
from .kernels.packed import available
from .models.config import AutoencoderConfig, TinyAutoencoderConfig, UNetConfig
from .request import choice

WIDE = 512  # channels from which on bfloat16 pays on a CPU; in smaller networks calls cost more than products
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_named(name: str) -> torch.device:
    """The device that a user means. Raises RequestError."""
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise RequestError(
            f"device is {name!r}; it must be auto, cpu, cuda, cuda:1 (or another number) or mps"
        ) from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise RequestError(f"device is {name!r}, and this machine (with this build of torch) has none; use cpu or auto")
    return device


def check_dtype(name: str, device: torch.device) -> None:
    """Raise RequestError where the networks can't be had in what a user asks for."""
    choice("dtype", name, ("auto", *DTYPES))
    if name == "float16" and device.type == "cpu":
        raise RequestError(
            'dtype is "float16", which a CPU computes a hundred times slower; use "bfloat16" or "float32"'
        )


def dtype_named(name: str, device: torch.device, config: UNetConfig) -> torch.dtype:
    """What a user means, for a model with this U-Net."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        large = max(config.block_out_channels) >= WIDE
        return torch.bfloat16 if large and available(torch.bfloat16) else torch.float32
    return torch.float16


def dtype_within(config: object, dtype: torch.dtype) -> torch.dtype:
    """What a network of this configuration computes in, in a model of `dtype`.

    The published autoencoders overflow in float16 (black pictures); they say so by force_upcast.
    """
    upcast = isinstance(config, AutoencoderConfig | TinyAutoencoderConfig) and config.force_upcast
    return torch.float32 if dtype == torch.float16 and upcast else dtype
