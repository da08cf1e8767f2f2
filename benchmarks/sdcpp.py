"""One guided step and one decode, ours beside stable-diffusion.cpp's, with weights of Stable Diffusion 1.5's size.

    python benchmarks/sdcpp.py --binary path/to/sd-cli [--size 256] [--weights f16] [--steps 4] [--rounds 3]

stable-diffusion.cpp is built by hand: its sources come with `pip download --no-binary :all: --no-deps
stable-diffusion-cpp-python` (in vendor/stable-diffusion.cpp), and

    cmake -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DSD_WEBP=OFF -DSD_WEBM=OFF
    cmake --build build --target sd-cli

makes build/bin/sd-cli. Each of its runs is a process that reads a single file of meaningless weights, written by us
(2.1 GB, deleted in the end), and its seconds are what it says itself of sampling and of decoding, so that reading is
not counted. `--weights` is the type it keeps them in. Ours run between, in float32 and, where it is fast, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import machine, report
from load import meaningless

from darkroom.bench.networks import AUTOENCODERS, DTYPES, UNETS, decode_run, guided_step
from darkroom.bench.table import alternate, ceilings
from darkroom.formats.save import save_single_file

SAID = {"step": "sampling completed", "decode": "decode_first_stage completed"}


def theirs(binary: str, model: Path, given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds of a guided step (the mean of a run's) and of the decode, as stable-diffusion.cpp tells them."""
    command = [
        binary, "-m", str(model), "-p", "a large fox on a yellow background", "-W", str(given.size), "-H",
        str(given.size), "--steps", str(given.steps), "--cfg-scale", "7.5", "--sampling-method", "euler", "--seed", "1",
        "-t", str(torch.get_num_threads()), "--type", given.weights, "-o", str(folder / "out.png"), "-v",
        *(["--diffusion-fa"] if given.flash else []),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    told = {name: re.search(rf"{words}, taking ([0-9.]+)s", done.stdout + done.stderr) for name, words in SAID.items()}
    if done.returncode or not all(told.values()):
        sys.exit(f"{binary} did not draw: {(done.stderr or done.stdout).strip()[-1000:]}")
    seconds = {name: float(match[1]) for name, match in told.items() if match}
    return {"step": seconds["step"] / given.steps, "decode": seconds["decode"]}


def compare(binary: str, model: Path, given: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of each contestant in each round, for the step and for the decode."""
    names = list(ceilings([], "cpu"))
    ours: dict[str, dict[str, Any]] = {
        "step": {d: guided_step(UNETS["sd15"], given.size, "cpu", DTYPES[d])[0] for d in names},
        "decode": {d: decode_run(AUTOENCODERS["sd15"], given.size, "cpu", DTYPES[d])[0] for d in names},
    }
    label = f"stable-diffusion.cpp {given.weights}" + (" flash" if given.flash else "")
    found: dict[str, dict[str, list[float]]] = {part: {} for part in SAID}
    for number in range(given.rounds):
        for part, value in theirs(binary, model, given, folder).items():
            found[part].setdefault(label, []).append(value)
        for part, runs in ours.items():
            for name, values in alternate(runs, rounds=1, warm_up=1 if number == 0 else 0).items():
                found[part].setdefault(f"darkroom {name}", []).extend(values)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="A guided step and a decode beside stable-diffusion.cpp's.")
    parser.add_argument("--binary", help="its command-line program [default: sd-cli, where the shell finds it]")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--weights", default="f16", help="the type it keeps its weights in: f32, f16, q8_0, ...")
    parser.add_argument("--flash", action="store_true", help="its flash attention")
    parser.add_argument("--steps", type=int, default=4, help="of one of its runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="one round of one step; only if the program is there")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.smoke:
        given.steps, given.rounds, given.size = 1, 1, 64
    binary = shutil.which(given.binary or "sd-cli")
    if binary is None:
        what = repr(given.binary) if given.binary else "sd-cli"
        sentence = f"stable-diffusion.cpp's program {what} is not here: build it as {Path(__file__).name} says"
        print(f"{sentence}, and name it with --binary")
        sys.exit(2 if given.binary else 0)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "sd15.safetensors")
        save_single_file(model, meaningless("sd15"))
        found = compare(binary, model, given, Path(folder))
    if given.json:
        medians = {part: {n: statistics.median(v) for n, v in rows.items()} for part, rows in found.items()}
        print(json.dumps({**vars(given), "machine": machine(), "seconds": medians}, indent=2))
        return
    print(f"sd15, {given.size} px, {torch.get_num_threads()} threads, torch {torch.__version__}, {machine()}")
    for part, rows in found.items():
        print(f"{'guided step' if part == 'step' else part}\n{report(rows)}")


if __name__ == "__main__":
    main()
