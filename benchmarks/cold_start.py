"""From nothing to an answer: fresh processes, in turns.

    python benchmarks/cold_start.py [--rounds 5]

What counts for a command line: how long `import darkroom` and `darkroom --help` take, and a whole picture by the
embedded model, beside what importing torch and diffusers alone takes. The first round, which fills the disk cache,
isn't counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import alternate, machine, report

PROMPT = "a large fox on a yellow background"


def process(*arguments: str) -> Callable[[], object]:
    """A contestant: this Python with some arguments, which must succeed."""

    def run() -> None:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"python {' '.join(arguments)}\n{done.stderr}")

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="How long fresh processes take to their answers.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"cold start, {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        contestants = {
            "python": process("-c", "pass"),
            "import darkroom": process("-c", "import darkroom"),
            "darkroom --help": process("-m", "darkroom", "--help"),
            "import torch": process("-c", "import torch"),
            "import a diffusers pipeline": process("-c", "from diffusers import StableDiffusionPipeline"),
            "darkroom generate": process(
                "-m", "darkroom", "generate", PROMPT, "--seed", "1", "--overwrite", "-o", str(Path(folder) / "fox.png")
            ),
        }
        print(report(alternate(contestants, rounds)))


if __name__ == "__main__":
    main()
