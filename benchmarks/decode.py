"""The autoencoder's decoding of one picture, ours beside diffusers' and OpenVINO's, with the same random weights.

    python benchmarks/decode.py [--architecture sd15] [--size 512] [--dtype bfloat16] [--yardstick] [--peers all]

All run in one process, in turns, on the same weights; how far each answer is from the first one's is printed with the
times. "darkroom whole" are the same layers, each over the whole picture; "darkroom tiled" is "darkroom" with no more
memory than `--memory` names. Printed besides: by how much a decode makes the process grow at most (Linux alone says),
as a multiple of the largest activation, which is the largest answer of a layer. Needs diffusers (the extra `test`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import arguments, channels_last, compare, in_float32, networks, openvino
from torch import Tensor, nn

from darkroom.bench.networks import AUTOENCODERS, DTYPES, decode_input, decode_run, finished
from darkroom.kernels.heap import return_freed_memory
from darkroom.kernels.packed import ready
from darkroom.kernels.strips import KEPT
from darkroom.models.autoencoder import Autoencoder


class _Decoder(nn.Module):
    """diffusers' decoder as a network of its own."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.post_quant, self.decoder = autoencoder.post_quant_conv, autoencoder.decoder

    def forward(self, z: Tensor) -> Tensor:
        answer: Tensor = self.decoder(z if self.post_quant is None else self.post_quant(z))
        return answer


def largest_activation(autoencoder: Autoencoder, size: int, dtype: torch.dtype) -> int:
    """Bytes of the largest answer of a layer while a picture of `size` x `size` pixels is decoded; nothing is run."""
    largest = 0

    def note(_module: nn.Module, _inputs: object, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel())

    run, network = decode_run(autoencoder.config, size, "meta", dtype)
    for module in network.modules():
        module.register_forward_hook(note)
    run()
    return largest * dtype.itemsize


def growth(run: Callable[[], object]) -> int:
    """By how many bytes the process grows at most while `run` runs; 0 where the system does not say."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return 0

    def resident(name: str) -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(name))

    run()  # what is built once is built
    return_freed_memory(0)  # a packed network's is kept for the next call, and would not show
    reset.write_text("5")  # proc(5): the largest resident size begins anew
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoding one picture, ours beside its peers'.")
    parser.add_argument(
        "--memory",
        type=float,
        default=0,
        help="bytes for tiles [default: the least with which nothing is computed twice]",
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny network and picture: that it runs")
    given = arguments(parser, AUTOENCODERS, rounds=5)
    if given.smoke:
        given.architecture, given.size, given.rounds = "tiny", 128, 2
    config, dtype = AUTOENCODERS[given.architecture], DTYPES[given.dtype]
    ours, theirs = networks(config, given.device, dtype)
    assert isinstance(ours, Autoencoder)
    decoder, z = _Decoder(theirs), decode_input(config, given.size, given.device, dtype)

    def diffusers_run(network: nn.Module, z: Tensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode():
                return finished(network(z))

        return run

    contestants: dict[str, Callable[[], Tensor]] = {}
    if given.yardstick:
        contestants["diffusers float32"] = diffusers_run(in_float32(decoder), z.float())
    if "diffusers" in given.peers:
        contestants["diffusers"] = diffusers_run(decoder, z)
    if "diffusers-channels-last" in given.peers:
        z_last = z.contiguous(memory_format=torch.channels_last)
        contestants["diffusers channels-last"] = diffusers_run(channels_last(decoder), z_last)
    if "openvino" in given.peers:
        contestants["openvino by hand"] = openvino(decoder, (z,), dtype)
    contestants["darkroom"] = decode_run(config, given.size, given.device, dtype, ours)[0]
    widest = config.block_out_channels[min(1, len(config.block_out_channels) - 1)]
    memory = given.memory or widest * given.size**2 * dtype.itemsize / KEPT

    @torch.no_grad()
    def whole() -> Tensor:
        latents = ready(ours.decoder, z)
        return finished(ours.decoder(latents if ours.post_quant is None else ours.post_quant(latents)))

    @torch.no_grad()
    def tiles() -> Tensor:
        return finished(ours.decode(z, memory))

    contestants["darkroom whole"] = whole
    contestants["darkroom tiled"] = tiles
    more = {}
    if given.device == "cpu":
        largest = largest_activation(ours, given.size, dtype)
        more["largest_activation_bytes"] = largest
        for name in ("diffusers", "darkroom", "darkroom whole", "darkroom tiled"):
            if name in contestants:
                more[f"peak_of_{name}".replace(" ", "_")] = round(growth(contestants[name]) / largest, 2)
    compare("decode", contestants, given, **more)


if __name__ == "__main__":
    main()
