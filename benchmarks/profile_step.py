"""Where a guided step of the U-Net, or a decode of the autoencoder, spends its time, by type of layer.

    python benchmarks/profile_step.py [--network unet|decoder] [--architecture sd15] [--size 256] [--dtype float32]

torch's profiler times every operation; one belongs to the first of its callers that has a type (a convolution's
reordering of its weights counts for the convolution), and what an attention computes outside of its linear layers is
attention. The work is counted by torch's FlopCounterMode on a network without weights, so that it is that of the
architecture, whatever the layers were replaced by. Seconds are the mean of `--rounds` runs under the profiler; the
median without it is printed beside them. `--shapes 12` adds the layers of the same type and size that take longest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from darkroom.bench.networks import AUTOENCODERS, DTYPES, UNETS, decode_run, guided_step
from darkroom.bench.table import alternate, machine

KINDS = ("3x3 convolution", "1x1 convolution", "linear", "attention", "normalisation", "activation", "the rest")
# What operations are called, plain or in oneDNN's dress; the outermost that is found gives the type.
NAMES = {
    "convolution": ("aten::conv2d", "aten::convolution", "_convolution_pointwise", "mkldnn_convolution"),
    "linear": ("aten::linear", "_linear_pointwise", "mkldnn_linear", "mkl_linear", "aten::addmm", "aten::mm"),
    "attention": ("scaled_dot_product", "aten::softmax", "aten::_softmax", "aten::bmm", "aten::baddbmm"),
    "normalisation": ("group_norm", "layer_norm"),
    "activation": ("aten::silu", "aten::gelu"),
}
PRODUCTS = ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")  # what attention may multiply by, besides bmm
MODULE = "module: "


def kind_of(operation: str, module: nn.Module | None, shapes: list[Any]) -> str | None:
    """The type of an operation that is called in `module` (the innermost around it), or None if its name says none.

    All that a convolution or a linear layer does is of its type, whatever operations it is made of.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        return "linear" if isinstance(module, nn.Linear) else _convolution(module.kernel_size)
    found = next((kind for kind, names in NAMES.items() if any(name in operation for name in names)), None)
    if found == "convolution":
        return _convolution(next((s[2:] for s in shapes[1:] if len(s) == 4), (3, 3)))
    if "Attention" in type(module).__name__ and (found is None or operation in PRODUCTS):
        return "attention"  # its products and what is done with them; its projections are modules, or aten::linear
    return found


def _convolution(kernel: Any) -> str:
    return "1x1 convolution" if tuple(kernel) == (1, 1) else "3x3 convolution"


@contextmanager
def named_modules(network: nn.Module) -> Iterator[None]:
    """Each module's run is a region of the profile that bears its name."""
    handles: list[Any] = []
    regions: list[tuple[str, record_function]] = []  # those that are open

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            regions.append((name, record_function(MODULE + name)))
            regions[-1][1].__enter__()

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if regions and regions[-1][0] == name:  # a doubling convolution tells its hooks without being entered
                regions.pop()[1].__exit__(None, None, None)

        return hook

    for name, module in network.named_modules():
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave(name))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def times(run: Callable[[], object], network: nn.Module, rounds: int) -> dict[tuple[str, str], float]:
    """Seconds of a run by (type, module), the mean of `rounds`."""
    modules = dict(network.named_modules())
    with named_modules(network), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as watched:
        for _ in range(rounds):
            run()
    seconds: dict[tuple[str, str], float] = defaultdict(float)

    def walk(event: Any, module: str) -> None:
        if event.name.startswith(MODULE):
            module = event.name.removeprefix(MODULE)
        else:
            kind = kind_of(event.name, modules.get(module), event.input_shapes or [])
            if kind is not None:
                seconds[kind, module] += event.cpu_time_total / 1e6 / rounds
                return
        seconds["the rest", module] += event.self_cpu_time_total / 1e6 / rounds
        for child in event.cpu_children:
            walk(child, module)

    for event in watched.events() or []:
        if event.cpu_parent is None:
            walk(event, "")
    return seconds


def work(run: Callable[[], object], network: nn.Module) -> tuple[dict[tuple[str, str], float], dict[str, str]]:
    """GFLOP by (type, module) of a run on the meta device, and each such module's shapes in words."""
    counter = FlopCounterMode(display=False)
    done: dict[tuple[str, str], float] = {}
    shapes: dict[str, str] = {}
    open_counts: list[float] = []  # of the modules we are in: the total when they began, and what their parts did

    def enter(*_: object) -> None:
        open_counts.append(counter.get_total_flops())

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            flop = counter.get_total_flops() - open_counts.pop()
            for i in range(len(open_counts)):
                open_counts[i] += flop  # counted here, not in what is around
            if flop:
                kind = kind_of("", module, []) or "attention"  # what layers do not account for
                done[kind, name] = done.get((kind, name), 0.0) + flop / 1e9
                tensors = [str(list(x.shape)) for x in inputs if isinstance(x, Tensor)]
                shapes[name] = f"{' and '.join(tensors)} -> {list(output.shape)}"

        return hook

    for name, module in network.named_modules():
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave(name))
    with counter:
        run()
    return done, shapes


def by_kind(values: dict[tuple[str, str], float]) -> dict[str, float]:
    totals = dict.fromkeys(KINDS, 0.0)
    for (kind, _), value in values.items():
        totals[kind] += value
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description="Where a U-Net step or a decode spends its time.")
    parser.add_argument("--network", choices=("unet", "decoder"), default="unet")
    parser.add_argument("--architecture", choices=UNETS, default="sd15")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", type=int, default=0, help="how many rows of single shapes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    def made(device: str, dtype: torch.dtype) -> tuple[Callable[[], Tensor], nn.Module]:
        if arguments.network == "unet":
            return guided_step(UNETS[arguments.architecture], arguments.size, device, dtype)
        return decode_run(AUTOENCODERS[arguments.architecture], arguments.size, device, dtype)

    done, shapes = work(*made("meta", torch.float32))
    run, network = made("cpu", DTYPES[arguments.dtype])
    plain = statistics.median(alternate({"plain": run}, arguments.rounds)["plain"])
    seconds = times(run, network, arguments.rounds)
    totals, gflop = by_kind(seconds), by_kind(done)
    whole = sum(totals.values())
    rows = {
        kind: {"seconds": s, "share": s / whole, "gflop": gflop[kind], "gflop_per_s": gflop[kind] / s if s else 0.0}
        for kind, s in totals.items()
    }
    if arguments.json:
        print(json.dumps({**vars(arguments), "machine": machine(), "step": plain, "rows": rows}, indent=2))
        return
    what = f"{arguments.architecture} {arguments.network}, {arguments.size} px, {arguments.dtype}"
    print(f"{what}, {torch.get_num_threads()} threads, torch {torch.__version__}, {machine()}")
    print(f"{plain:.3f} s a run ({sum(gflop.values()) / plain:.0f} GFLOP/s), {whole:.3f} s under the profiler")
    print(f"  {'':34} {'seconds':>8} {'share':>6} {'GFLOP':>8} {'GFLOP/s':>8}")
    for kind, row in rows.items():
        print(line(kind, row["seconds"], row["share"], row["gflop"]))
    groups: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for (kind, name), flop in done.items():
        group = groups[kind, shapes[name]]
        group[0] += seconds.get((kind, name), 0.0)
        group[1] += flop
        group[2] += 1
    for (kind, shape), (s, flop, count) in sorted(groups.items(), key=lambda g: -g[1][0])[: arguments.shapes]:
        print(line(f"{count:.0f} x {kind} {shape}", s, s / whole, flop))


def line(name: str, seconds: float, share: float, gflop: float) -> str:
    speed = f"{gflop:8.1f} {gflop / seconds if seconds else 0.0:8.0f}" if gflop else ""
    return f"  {name:34} {seconds:8.4f} {share:6.1%} {speed}".rstrip()


if __name__ == "__main__":
    main()
