"""The table of `darkroom bench`: how fast this machine runs our networks, and what share of its best that is.

Time is taken of contestants in turns; a line has the median, and the table the name of the machine.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import Error
from ..kernels.packed import ready
from .networks import AUTOENCODERS, DTYPES, UNETS, decode_run, encode_text, finished, guided_step

SIZES = {"embedded": 128, "sd15": 256, "sd2": 256, "tiny": 64}  # pixels a side, where no size is asked for
PARTS = ("U-Net step", "decode", "text encoder")
PROMPT = "a large fox on a yellow background"
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is the ceiling
PATIENCE = 2.0  # seconds, for a product that this machine is bad at

Show = Callable[[int, int, str], object]


def alternate(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    on_turn: Callable[[int, int], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round.

    In every round each runs once, in an order that turns from round to round, so that a machine that slows down or
    speeds up does so for all of them. The first `warm_up` rounds are not counted. `on_turn` is called after each turn
    with the turns done and all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(warm_up + rounds):
        for turn, name in enumerate(names[number % len(names) :] + names[: number % len(names)], 1):
            began = time.perf_counter()
            contestants[name]()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - began)
            if on_turn is not None:
                on_turn(number * len(names) + turn, (warm_up + rounds) * len(names))
    return seconds


def report(seconds: Mapping[str, list[float]], unit: str = "s") -> str:
    """A line for each contestant: median, least and most, and the ratio to the first one's median."""
    scale = {"s": 1.0, "ms": 1000.0}[unit]
    first = statistics.median(next(iter(seconds.values())))
    lines = []
    for name, values in seconds.items():
        median = statistics.median(values)
        span = f"{min(values) * scale:.3g} to {max(values) * scale:.3g}"
        lines.append(
            f"  {name:28} {median * scale:8.3g} {unit}   ({span}, {len(values)} rounds)   x {median / first:.2f}"
        )
    return "\n".join(lines)


def machine() -> str:
    """The processor, its cores, and how busy it was before we came."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        model = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), model
        )
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{model}, {os.cpu_count()} cores{load}, Python {platform.python_version()}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what ran, and the seconds of each round."""

    what: str
    seconds: tuple[float, ...]
    dtype: str = ""
    gflop: float = 0.0  # the work of one run
    ceiling: float = 0.0  # GFLOP/s of a large product in this dtype

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def share(self) -> float:
        """Of the ceiling, 0..1; 0 where there is no work to count."""
        return self.gflop / self.median / self.ceiling if self.ceiling else 0.0

    def as_json(self) -> dict[str, str | float | None]:
        """For JSON: None where there is nothing to say."""
        return {
            "what": self.what,
            "dtype": self.dtype or None,
            "seconds": self.median,
            "least": min(self.seconds),
            "most": max(self.seconds),
            "rounds": len(self.seconds),
            "gflop": self.gflop or None,
            "share": self.share or None,
        }


def ceiling(dtype: str, device: str) -> float:
    """GFLOP/s of a large product: the fastest run, as a linear layer or as a 3x3 convolution.

    Both are as the networks' are, packed where that is possible: neither is always the faster on a processor.
    """
    side = SIDE.get(device.split(":")[0], 2048)
    channels = side * 5 // 8  # too wide for `models.winograd`, which does with fewer products
    layers = (nn.Linear(side, side, bias=False), nn.Conv2d(channels, channels, 3, padding=1, bias=False))
    inputs = (torch.randn(side, side), torch.randn(1, channels, 32, 32).contiguous(memory_format=torch.channels_last))
    work = (2 * side**3, 2 * 9 * channels**2 * 32 * 32)
    best = 0.0
    with torch.no_grad():
        for layer, x, flop in zip(layers, inputs, work, strict=True):
            layer.to(device=device, dtype=DTYPES[dtype]).eval().requires_grad_(False)
            x = x.to(device=device, dtype=DTYPES[dtype])
            ready(layer, x)
            best = max(best, flop / 1e9 / _fastest(lambda layer=layer, x=x: finished(layer(x))))  # type: ignore[misc]
    return best


def _fastest(run: Callable[[], object], rounds: int = 10) -> float:
    best, began = float("inf"), time.perf_counter()
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > PATIENCE:
            break
    return best


def ceilings(dtypes: Sequence[str], device: str) -> dict[str, float]:
    """Of each dtype; with none asked for, of float32, and of bfloat16 where this device is not slower with it."""
    if dtypes:
        return {dtype: ceiling(dtype, device) for dtype in dtypes}
    found = {dtype: ceiling(dtype, device) for dtype in ("float32", "bfloat16")}
    if found["bfloat16"] < found["float32"]:
        del found["bfloat16"]
    return found


def rows(
    architectures: Sequence[str], size: int | None, device: str, tops: dict[str, float], rounds: int, show: Show
) -> Iterator[Row]:
    """Measure: for each part of each architecture, the dtypes of `tops` (their ceilings) in turns.

    `show` is called with turns done, all turns and what is measured. Networks lie in memory one part at a time.
    """
    for architecture in architectures:
        side = size or SIZES[architecture]
        for part in PARTS[: 3 if architecture == "sd15" else 2]:
            title = f"{architecture} {part}" + ("" if part == "text encoder" else f", {side} px")
            show(0, 1, title)
            gflop = work(part, architecture, side)
            runs = {dtype: _run(part, architecture, side, device, DTYPES[dtype]) for dtype in tops}
            seconds = alternate(runs, rounds, on_turn=_named(show, title))
            del runs
            gc.collect()
            for dtype, values in seconds.items():
                yield Row(title, tuple(values), dtype, gflop, tops[dtype])


def work(part: str, architecture: str, size: int) -> float:
    """GFLOP of one run; nothing is computed."""
    run = _run(part, architecture, size, "meta", torch.float32)
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9


def memory_needed(architecture: str, size: int | None, dtypes: Sequence[str]) -> int:
    """Bytes, about: the U-Net in each dtype with its weights a second time (packed), and a decode's widest answers."""
    from ..models.layers import parameter_count
    from ..models.unet import UNet

    with torch.device("meta"):
        weights = parameter_count(UNet(UNETS[architecture]))
    side = size or SIZES[architecture]
    widest = AUTOENCODERS[architecture].block_out_channels[1] * side**2
    return sum(DTYPES[dtype].itemsize * (2 * weights + 3 * widest) for dtype in dtypes)


def memory_free() -> int | None:
    """Bytes of main memory that a new process could have; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def cold_start(rounds: int, device: str, show: Show) -> Row:
    """One picture by the embedded model, from the start of a process to the file. Raises `Error` if it fails."""
    title = "embedded, darkroom generate, process start to PNG"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "darkroom",
            "generate",
            PROMPT,
            "--seed",
            "1",
            "--device",
            device,
            "-o",
            folder,
        ]

        def run() -> None:
            ended = subprocess.run(command, capture_output=True, text=True, env=os.environ)
            if ended.returncode:
                raise Error(f"'darkroom generate' failed: {ended.stderr.strip()[-300:] or ended.returncode}")

        show(0, 1, title)
        seconds = alternate({title: run}, rounds, on_turn=_named(show, title))[title]
    return Row(title, tuple(seconds))


def line(row: Row) -> str:
    """A row in words: the median, least and most, and the share of the ceiling."""
    spread = f"{_seconds(row.median)}  ({_seconds(min(row.seconds))} to {_seconds(max(row.seconds))})"
    speed = f"{row.gflop / row.median:7.0f} GFLOP/s {row.share:5.0%} of the ceiling" if row.gflop else ""
    return f"{row.what:50} {row.dtype:9} {spread:32} {speed}".rstrip()


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _named(show: Show, title: str) -> Callable[[int, int], object]:
    return lambda done, total: show(done, total, title)


def _run(part: str, architecture: str, size: int, device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    if part == "U-Net step":
        return guided_step(UNETS[architecture], size, device, dtype)[0]
    if part == "decode":
        return decode_run(AUTOENCODERS[architecture], size, device, dtype)[0]
    return encode_text(device, dtype)[0]
