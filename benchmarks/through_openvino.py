"""The networks through `backend="openvino"` beside OpenVINO called by hand, on the same random weights.

    python benchmarks/through_openvino.py [--architecture sd15] [--size 256] [--dtype bfloat16] [--rounds 7]

By hand: `openvino.convert_model` of the very torch network, `compile_model` with the same precision and threads, and
its infer request called directly. Measured are one guided step of the U-Net (two rows), and the decoding of a picture.
Needs the extra `openvino`; sd15 takes about 8 GB of memory in float32.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import alternate, machine, report
from torch import Tensor, nn

from darkroom.backends import classes
from darkroom.backends.convert import core, openvino
from darkroom.bench.networks import AUTOENCODERS, UNETS
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.unet import UNet

HINTS = {"float32": "f32", "bfloat16": "bf16"}


class Plain(nn.Module):
    """A network's call as the `forward` that the converter asks for, without the layers torch has for its own speed."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, x: Tensor, timesteps: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        with torch.enable_grad():
            call = getattr(self.network, self.name)
            answer: Tensor = call(x) if timesteps is None else call(x, timesteps, text)
        return answer


def by_hand(network: nn.Module, given: tuple[Tensor, ...], hint: str) -> Callable[[], Tensor]:
    """A call of a float32 network by OpenVINO alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks of shapes become constants of the trace, which is as it should be
        graph = openvino().convert_model(network, example_input=given)
    options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    options |= {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = core().compile_model(graph, "CPU", options).create_infer_request()
    arrays = [tensor.numpy() for tensor in given]
    return lambda: torch.from_numpy(np.array(request.infer(arrays, share_inputs=True)[0]))


def ours_of(native: nn.Module, kind: type[Any], dtype: torch.dtype) -> Any:
    """The same network and weights as a backend's class."""
    with torch.device("meta"):
        network = kind(native.config)
    network.load_state_dict({name: tensor.to(dtype) for name, tensor in native.state_dict().items()}, assign=True)
    return network.eval().requires_grad_(False)


def measure(title: str, contestants: dict[str, Callable[[], Tensor]], exact: Tensor, rounds: int) -> None:
    answers = {name: contestant().float() for name, contestant in contestants.items()}
    print(title)
    print(report(alternate(contestants, rounds), "ms"))
    for name, answer in answers.items():
        print(
            f"  {name} differs from torch in float32 by {float((answer - exact).norm() / exact.norm()):.1e} (relative)"
        )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="backend='openvino' beside OpenVINO called by hand.")
    parser.add_argument("--architecture", choices=AUTOENCODERS, default="sd15")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--dtype", choices=HINTS, default="bfloat16")
    parser.add_argument("--only", choices=("unet", "decode"))
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="seconds: that it runs, not what it says")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.architecture, arguments.size, arguments.rounds = "tiny", 64, 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dtype, hint, side = getattr(torch, arguments.dtype), HINTS[arguments.dtype], arguments.size // 8
    kinds = classes("openvino")
    print(f"{arguments.architecture}, {arguments.size} px, {arguments.dtype}, {machine()}")
    print(f"OpenVINO {openvino().__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    torch.manual_seed(0)
    if arguments.only != "decode":
        config = UNETS[arguments.architecture]
        native = UNet(config).eval().requires_grad_(False)
        given = (torch.randn(2, 4, side, side), torch.full((2,), 477.5), torch.randn(2, 77, config.cross_attention_dim))
        hand = by_hand(Plain(native, "forward"), given, hint)
        exact = native(*given)
        ours = ours_of(native, kinds.unet, dtype)
        del native
        measure("one guided step", {"by hand": hand, "darkroom": lambda: ours(*given)}, exact, arguments.rounds)
        del hand, ours
    if arguments.only != "unet":
        autoencoder = Autoencoder(AUTOENCODERS[arguments.architecture]).eval().requires_grad_(False)
        latents = torch.randn(1, 4, side, side)
        decode = by_hand(Plain(autoencoder, "decode"), (latents,), hint)
        exact = autoencoder.decode(latents)
        decoder = ours_of(autoencoder, kinds.autoencoder, dtype)
        contestants = {"by hand": decode, "darkroom": lambda: decoder.decode(latents)}
        measure("decoding a picture", contestants, exact, arguments.rounds)


if __name__ == "__main__":
    main()
