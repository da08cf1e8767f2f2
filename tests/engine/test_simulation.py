"""The simulation of many engines: its arithmetic, and the bound on waiting that it checks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "simulate.py"


@pytest.fixture(scope="module")
def simulation() -> Any:
    spec = importlib.util.spec_from_file_location("simulate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_it_needs_no_torch() -> None:
    code = f"import sys, runpy; runpy.run_path({str(SCRIPT)!r}); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "False"


def test_a_job_alone_takes_what_it_takes(simulation: Any) -> None:
    machine = simulation.Machine(curve=((1, 1.0), (2, 1.5), (4, 2.0)), decode=0.25, budget=4)
    assert machine.tick(3) == 1.75
    assert machine.tick(6) == 2.5
    (job,) = simulation.simulate([simulation.Job(10.0, 0, 2, 3)], 1, machine)
    assert job.finish == pytest.approx(10 + 3 * 1.5 + 0.25)
    assert job.rank == pytest.approx(10 + 2 * 4.75)


def test_two_share_ticks_and_decode_in_turn(simulation: Any) -> None:
    machine = simulation.Machine(curve=((1, 1.0), (2, 1.5), (4, 2.0)), decode=0.25, budget=4)
    first, second = simulation.simulate([simulation.Job(0.0, 0, 2, 2), simulation.Job(0.0, 0, 2, 2)], 1, machine)
    # The second comes when the first's tick has begun: 1.5 alone, 2.0 together and a decode, 1.5 alone and a decode.
    assert first.finish == pytest.approx(1.5 + 2.0 + 0.25)
    assert second.finish == pytest.approx(1.5 + 2.0 + 0.25 + 1.5 + 0.25)


@pytest.mark.parametrize("bursty", [False, True])
@pytest.mark.parametrize("engines", [1, 6])
def test_nobody_waits_longer_than_the_bound(simulation: Any, engines: int, bursty: bool) -> None:
    machine = simulation.Machine()
    jobs = simulation.arrivals(1.05, engines, 1.0, bursty, machine, seed=engines)
    assert len(jobs) > 30
    for job in simulation.simulate(jobs, engines, machine):
        assert job.arrival < job.finish <= job.bound


def test_an_order_that_starves_breaks_the_bound(simulation: Any) -> None:
    machine = simulation.Machine(budget=2)
    jobs = [simulation.Job(0.05 * i, i, 2, 10) for i in range(400)]
    late = [j for j in simulation.simulate(jobs, 1, machine, lambda now, own, unfinished: -now) if j.finish > j.bound]
    assert late
