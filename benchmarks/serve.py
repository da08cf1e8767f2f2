"""What the server costs beside the engine: the same jobs by `Engine` in this process, and over HTTP to files.

    python benchmarks/serve.py [--jobs 64] [--steps 8] [--rounds 3] [--smoke]

CPU seconds of all processes, in turns; one engine of one thread on both sides, byte-exact. The engine alone is given
all jobs at once, and so is the server, whose client watches them one after another. Loading is left out on both sides.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx

import darkroom
from darkroom import Request
from darkroom.engine import Engine

FIELDS = {"width": 128, "height": 128}
START = """
import sys
from pathlib import Path
from darkroom.serve.options import ServeOptions
from darkroom.serve.run import run
options = ServeOptions(data=Path(sys.argv[1]), port=0, engines=1, cores=1)
sys.exit(run(options, lambda server: print(options.port, flush=True)))
"""


def cpu(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> float:
    """CPU seconds of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu(pid) + sum(cpu(int(child)) for child in children)


def alone(pipe: darkroom.Pipeline, jobs: int, steps: int) -> float:
    """CPU seconds of the engine for the jobs."""
    engine = Engine(pipe, deterministic=True)
    began = time.process_time()
    for seed in range(jobs):
        engine.add(Request(prompt="a large fox on a yellow background", seed=seed, steps=steps, **FIELDS))
    for _ in engine.run():
        pass
    return time.process_time() - began


def served(url: str, pid: int, jobs: int, steps: int) -> float:
    """CPU seconds of the server and its engine for the same jobs."""
    began = tree(pid)
    with httpx.Client(base_url=url, timeout=3600) as http:
        ids = []
        for seed in range(jobs):
            fields = {"prompt": "a large fox on a yellow background", "seed": seed, "steps": steps, **FIELDS}
            ids.append(http.post("/api/jobs", json=fields).json()["id"])
        for job in ids:
            with http.stream("GET", f"/api/jobs/{job}/events") as events:
                for _ in events.iter_lines():
                    pass
    return tree(pid) - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="seconds, figures without meaning")
    options = parser.parse_args()
    if options.smoke:
        options.jobs, options.steps, options.rounds = 4, 2, 1
    pipe = darkroom.load(None, device="cpu")
    alone(pipe, 2, 1)
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([sys.executable, "-c", START, folder], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        try:
            while httpx.get(f"{url}/readyz").status_code != 200:
                time.sleep(0.2)
            served(url, process.pid, 2, 1)
            pairs = [
                (alone(pipe, options.jobs, options.steps), served(url, process.pid, options.jobs, options.steps))
                for _ in range(options.rounds)
            ]
        finally:
            process.terminate()
            process.wait(20)
    ratios = [over / by for by, over in pairs]
    print(f"{options.jobs} jobs of {options.steps} steps, CPU seconds: engine alone / server, by round")
    for by, over in pairs:
        print(f"  {by:7.2f} / {over:7.2f} = {over / by:.3f}")
    print(f"median {statistics.median(ratios):.3f} of the engine alone")


if __name__ == "__main__":
    main()
