"""What the benchmarks share: the peers, with the very weights of our networks."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from darkroom.bench.networks import DTYPES, with_random_weights
from darkroom.bench.table import alternate, machine, report
from darkroom.formats.layouts import Part, table
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig, UNetConfig
from darkroom.models.unet import UNet

__all__ = ["alternate", "machine", "report"]

PEERS = ("diffusers", "diffusers-channels-last", "openvino")


def networks(
    config: UNetConfig | AutoencoderConfig, device: str, dtype: torch.dtype
) -> tuple[UNet | Autoencoder, nn.Module]:
    """Our network with random weights in memory, and diffusers' on the same tensors."""
    part: Part
    if isinstance(config, UNetConfig):
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as Theirs

        part, ours = "unet", with_random_weights(lambda: UNet(config), device, dtype)
    else:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as Theirs

        part, ours = "autoencoder", with_random_weights(lambda: Autoencoder(config), device, dtype)
    state = ours.state_dict()
    places = table(part, "diffusers", {name: tuple(t.shape) for name, t in state.items()}, config)
    with torch.device("meta"):
        theirs = Theirs.from_config(config.to_diffusers())
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    shared = {place.name: state[name].view(shapes[place.name]) for name, place in places.items()}
    theirs.load_state_dict(shared, strict=True, assign=True)
    return ours, theirs.eval().requires_grad_(False)


def in_float32(network: nn.Module) -> nn.Module:
    """A copy with the same values in float32; the network itself where it is that."""
    return network if next(network.parameters()).dtype == torch.float32 else copy.deepcopy(network).float()


def channels_last(network: nn.Module) -> nn.Module:
    """A copy whose convolutions' weights, and so their answers, lie with the channels last."""
    return copy.deepcopy(network).to(memory_format=torch.channels_last)


def openvino(network: nn.Module, example: tuple[Tensor, ...], dtype: torch.dtype) -> Callable[[], Tensor]:
    """OpenVINO called by hand: the network converted for the example's shapes, compiled for a CPU, run on the example.

    dtype is what it computes in (its INFERENCE_PRECISION_HINT); it is given float32 weights and rounds them itself.
    """
    import openvino as ov

    inputs = tuple(x.float() if x.is_floating_point() else x for x in example)
    model = ov.convert_model(in_float32(network), example_input=inputs, input=[tuple(x.shape) for x in inputs])
    settings = {
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    arrays = [x.numpy() for x in inputs]

    def run() -> Tensor:
        answer = request.infer(arrays, share_inputs=True)
        return torch.from_numpy(answer[0])

    return run


def peers(text: str, device: str) -> tuple[str, ...]:
    """The peers that were asked for, as "diffusers,openvino"; what "all" means is what is installed and runs there."""
    if text != "all":
        wrong = [name for name in text.split(",") if name not in PEERS]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is no peer; there are {', '.join(PEERS)}, and all")
        return tuple(text.split(","))
    there = importlib.util.find_spec("openvino") is not None and device == "cpu"
    return PEERS if there else PEERS[:2]


def arguments(parser: argparse.ArgumentParser, architectures: Mapping[str, Any], rounds: int) -> argparse.Namespace:
    """The options of a comparison of networks, read; `peers` becomes a tuple."""
    parser.add_argument("--architecture", choices=architectures, default="sd15")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--peers", default="all", help=f"all that are installed, or some of {','.join(PEERS)}")
    parser.add_argument("--yardstick", action="store_true", help="diffusers in float32 first, on the same values")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        given.peers = peers(given.peers, given.device)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def compare(what: str, contestants: Mapping[str, Callable[[], Tensor]], given: argparse.Namespace, **more: Any) -> None:
    """Run the contestants in turns and print their times, and how far each answer is from the first one's."""
    answers = {name: contestant().float().cpu() for name, contestant in contestants.items()}
    first = next(iter(answers.values()))
    apart = {name: float((answer - first).norm() / first.norm()) for name, answer in answers.items()}
    place = torch.cuda.get_device_name() if given.device.startswith("cuda") else machine()
    seconds = alternate(contestants, given.rounds)
    if given.json:
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        spread = {name: [min(values), max(values)] for name, values in seconds.items()}
        answer = {"machine": place, "seconds": medians, "spread": spread, "relative_difference": apart, **more}
        print(json.dumps({**vars(given), **answer}, indent=2))
        return
    print(f"{what}, {given.architecture}, {given.size} px, {given.dtype}, {place}")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; the last column: how far from the first answer"
    )
    for line, difference in zip(report(seconds, "ms").splitlines(), apart.values(), strict=True):
        print(f"{line}   {difference:.1e}")
    for name, value in more.items():
        print(f"  {name.replace('_', ' ')}: {value}")
