"""From a model on disk to the first step: fresh processes, diffusers' and ours in turns.

    python benchmarks/load.py [--folder MODEL] [--dtype float32 bfloat16] [--rounds 5] [--uncached] [--smoke]

Writes a Stable Diffusion 1.5 folder of meaningless float16 weights (2.1 GB; `--folder` keeps it, and uses it again).
A contestant's time runs from the start of its process until it is ready for the first step: imports, weights, and the
prompt encoded. The files are read once before, so they lie in the system's cache; `--uncached` drops them from it
before each process. Printed beside it: what loading alone took, as bytes of the files a second, against reading those
files plainly into one small buffer, and into memory of their own as they lie; and by how much the process grew at most
while it loaded (resident, `VmHWM`), as a multiple of the weights in the precision loaded. Needs diffusers (the extra
`test`) and Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from common import machine
from torch import Tensor, nn

from darkroom.formats.save import Contents, save_folder
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.presets import SD15_AUTOENCODER, SD15_TEXT_ENCODER, SD15_UNET
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet
from darkroom.prompts.tokenizer import Tokenizer

SHAPES = {
    "sd15": (SD15_UNET, SD15_AUTOENCODER, SD15_TEXT_ENCODER),
    "tiny": (
        replace(SD15_UNET, block_out_channels=(32, 32, 64, 64), cross_attention_dim=32),
        replace(SD15_AUTOENCODER, block_out_channels=(32, 32, 32, 32)),
        replace(SD15_TEXT_ENCODER, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
    ),
}
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
PROMPT = "a large fox on a yellow background"

# Each is run as `python -c CODE start folder dtype`, start being the clock when its parent began it.
HEAD = """
import json, os, sys, time
def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
def tell(imported, before, loaded):
    print(json.dumps({"seconds": time.monotonic() - float(sys.argv[1]), "load": loaded - imported,
                      "grown": memory("VmHWM") - before}))
start, folder, dtype = sys.argv[1:]
"""
PROCESSES = {
    "plain read": HEAD
    + """
imported, before, buffer = time.monotonic(), memory("VmRSS"), memoryview(bytearray(1 << 20))
for place, _, names in os.walk(folder):
    for name in names:
        if name.endswith(".safetensors"):
            with open(os.path.join(place, name), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
tell(imported, before, time.monotonic())
""",
    "read to keep": HEAD
    + """
import mmap
imported, before, kept = time.monotonic(), memory("VmRSS"), []
for place, _, names in os.walk(folder):
    for name in names:
        if name.endswith(".safetensors"):
            with open(os.path.join(place, name), "rb", buffering=0) as file:
                kept.append(mmap.mmap(-1, os.path.getsize(file.name)))
                room, done = memoryview(kept[-1]), 0
                while count := file.readinto(room[done:done + (1 << 20)]):
                    done += count
tell(imported, before, time.monotonic())
""",
    "diffusers": HEAD
    + """
import torch
from diffusers import StableDiffusionPipeline
import diffusers.models.autoencoders.autoencoder_kl, diffusers.models.unets.unet_2d_condition, transformers
transformers.CLIPTextModel, transformers.CLIPTokenizer
imported, before = time.monotonic(), memory("VmRSS")
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), local_files_only=True)
pipe.set_progress_bar_config(disable=True)
loaded = time.monotonic()
with torch.no_grad():
    pipe.encode_prompt(PROMPT, "cpu", 1, True)
tell(imported, before, loaded)
""".replace("PROMPT", repr(PROMPT)),
    "darkroom": HEAD
    + """
import darkroom
darkroom.load, darkroom.Engine
import torch
imported, before = time.monotonic(), memory("VmRSS")
pipe = darkroom.load(folder, dtype=dtype)
loaded = time.monotonic()
darkroom.Engine(pipe).add(darkroom.Request(prompt=PROMPT, seed=1))
tell(imported, before, loaded)
""".replace("PROMPT", repr(PROMPT)),
}


class Meaningless:
    """A network's tensors, small random numbers in float16, made as they are written."""

    def __init__(self, network: nn.Module) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        self.block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float16

    def load(self, name: str) -> Tensor:
        count = torch.Size(self.shapes[name]).numel()
        return self.block.repeat(-(-count // len(self.block)))[:count].reshape(self.shapes[name])


def meaningless(architecture: str) -> Contents:
    """A model in float16."""
    configs = dict(zip(("unet", "autoencoder", "text_encoder"), SHAPES[architecture], strict=True))
    with torch.device("meta"):
        networks = UNet(configs["unet"]), Autoencoder(configs["autoencoder"]), TextEncoder(configs["text_encoder"])
    states = {part: Meaningless(network) for part, network in zip(configs, networks, strict=True)}
    tokenizers = {"text_encoder": Tokenizer.default()}
    return Contents(configs=configs, states=states, tokenizers=tokenizers, scheduler_config=SCHEDULER)


def weights(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def run(name: str, folder: Path, dtype: str, uncached: bool) -> dict[str, float]:
    """One fresh process of a contestant."""
    for path in weights(folder) if uncached else ():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROCESSES[name], str(time.monotonic()), str(folder), dtype],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        sys.exit(f"{name}, {dtype}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def report(rounds: Mapping[str, list[dict[str, float]]], size: int, loaded: int) -> str:
    """A line for each contestant; `size`: bytes of the files, `loaded`: of the weights in the precision loaded."""

    def middle(name: str, key: str) -> float:
        return statistics.median(told[key] for told in rounds[name])

    lines = []
    for name in rounds:
        seconds = sorted(told["seconds"] for told in rounds[name])
        lines.append(
            f"  {name:12} ready after {middle(name, 'seconds'):6.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f})   "
            f"loading {middle(name, 'load'):6.2f} s, {size / middle(name, 'load') / 1e9:5.2f} GB/s   "
            f"grown by {middle(name, 'grown') / 1e9:5.2f} GB, x {middle(name, 'grown') / loaded:.2f}"
        )
    ratio = middle("diffusers", "seconds") / middle("darkroom", "seconds")
    plain, keep = (middle(name, "load") / middle("darkroom", "load") for name in ("plain read", "read to keep"))
    told = f"loading at {plain:.0%} of a plain read's bandwidth, {keep:.0%} of a read's to new memory"
    return "\n".join([*lines, f"  ready {ratio:.1f} times faster; {told}"])


def main() -> None:
    parser = argparse.ArgumentParser(description="From a model on disk to the first step, ours beside diffusers'.")
    parser.add_argument("--folder", type=Path, help="the model's, written where it is not there yet, and kept")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--uncached", action="store_true", help="drop the files from the system's cache every time")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    count = 1 if arguments.smoke else arguments.rounds
    with tempfile.TemporaryDirectory(prefix="darkroom-load-") as scratch:
        folder = arguments.folder or Path(scratch) / "model"
        if not weights(folder):
            save_folder(folder, meaningless("tiny" if arguments.smoke else "sd15"))
            os.sync()  # what is not yet on disk can't be dropped from the cache
        size = sum(path.stat().st_size for path in weights(folder))
        answer = {}
        for dtype in arguments.dtype:
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in PROCESSES}
            names = list(PROCESSES)
            for number in range(count + 1):  # the first round fills the cache, and isn't counted
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    told = run(name, folder, dtype, arguments.uncached)
                    if number:
                        rounds[name].append(told)
            answer[dtype] = rounds
            if not arguments.json:
                where = "from the disk" if arguments.uncached else "from the system's cache"
                print(f"float16 files of {size / 1e9:.2f} GB {where}, loaded in {dtype}, {count} rounds, {machine()}")
                print(report(rounds, size, size * (2 if dtype == "float32" else 1)))
    if arguments.json:
        print(json.dumps({"machine": machine(), "bytes": size, "rounds": answer}, indent=2))


if __name__ == "__main__":
    main()
