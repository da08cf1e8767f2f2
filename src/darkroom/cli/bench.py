"""`darkroom bench`: how fast this machine is."""

from __future__ import annotations

import json
from typing import Annotated

from ..errors import RequestError, did_you_mean
from ..request import whole
from . import complain
from .command import App, Option
from .display import Display
from .options import Device, Json, Threads, named_as_options, whole_number

app = App()
ARCHITECTURES = ("embedded", "sd15", "sd2", "tiny")


@app.command()
def bench(
    size: Annotated[
        int | None,
        Option(metavar="N", parser=whole_number, help="Pixels a side. [default: 128 for embedded, else 256]"),
    ] = None,
    dtype: Annotated[
        str | None,
        Option(metavar="T", help="float32, bfloat16 or float16. [default: float32, and bfloat16 if it is fast]"),
    ] = None,
    device: Device = "auto",
    architecture: Annotated[
        str | None,
        Option(metavar="A", help="embedded, sd15, sd2 or tiny. [default: embedded, and sd15 if memory allows]"),
    ] = None,
    rounds: Annotated[int, Option(metavar="N", parser=whole_number, help="Of each measurement.")] = 3,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: a U-Net step, decoding, the text encoder, a cold start.

    Networks have random weights, so nothing is downloaded; two dtypes run in turns. Each line gives the median and, in
    brackets, the least and the most. The ceiling is the fastest large product in that dtype, measured first. About a
    minute on two cores. Beside other programs: benchmarks/ in the sources.
    """
    with named_as_options():
        whole("rounds", rounds, 1, 1000)
        if threads is not None:
            whole("threads", threads, 1, 4096)
    if size is not None and not (64 <= size <= 2048 and size % 8 == 0):
        raise RequestError(f"--size is {size}; give a multiple of 8 from 64 to 2048")
    if architecture is not None and architecture not in ARCHITECTURES:
        raise RequestError(f"--architecture is {architecture[:40]!r}{did_you_mean(architecture, ARCHITECTURES)}")
    with Display("measuring the ceiling") as display:
        import torch

        from ..bench import table
        from ..bench.networks import DTYPES
        from ..bench.table import machine
        from ..devices import device_named

        if dtype is not None and dtype not in DTYPES:
            raise RequestError(f"--dtype is {dtype[:40]!r}{did_you_mean(dtype, list(DTYPES))}")
        with named_as_options():
            place = str(device_named(device))
        if threads is not None:
            torch.set_num_threads(threads)
        name = torch.cuda.get_device_name() if place.startswith("cuda") else machine()
        head = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        tops = table.ceilings([dtype] if dtype else [], place)
        wanted = [architecture] if architecture else ["embedded", "sd15"]
        free = table.memory_free()
        for one in list(wanted) if place == "cpu" and architecture is None and free is not None else ():
            if (needed := table.memory_needed(one, size, list(tops))) > (free or 0):
                complain(f"{one} is left out: it needs about {needed / 1e9:.1f} GB, {(free or 0) / 1e9:.1f} are free")
                wanted.remove(one)
        found = []

        def say(text: str) -> None:
            if not as_json:
                display.answer(text)

        say(head)
        for kind, speed in tops.items():
            say(f"{'ceiling: a large product':50} {kind:9} {speed:.0f} GFLOP/s")
        for row in table.rows(wanted, size, place, tops, rounds, display.steps):
            found.append(row)
            say(table.line(row))
        if "embedded" in wanted:
            found.append(table.cold_start(rounds, place, display.steps))
            say(table.line(found[-1]))
    if as_json:
        print(
            json.dumps(
                {"machine": head, "device": place, "ceilings": tops, "rows": [row.as_json() for row in found]}, indent=2
            )
        )
