"""Many engines and many people, simulated: who waits how long, by the scheduler's own code. No torch; seconds.

    python benchmarks/simulate.py [--engines 1,8,64] [--load 0.95] [--minutes 2] [--smoke]

An engine's tick takes what the measured curve says of its rows, and a decode what was measured. Jobs arrive singly
(Poisson) or in bursts of one key, from twenty keys of which few send most; their sizes are heavy-tailed: most take 10
to 30 evaluations, some a hundred times as many. They are ordered by `darkroom.engine.scheduler.rank`, and beside it by
arrival alone; each engine holds two ticks' worth and fills its ticks by `scheduler.pick`.

The bound: whoever arrives after a job's rank goes behind it. So what is before it at that moment is all that can be: it
is done by then plus that work's seconds over the engines, plus its own evaluations and those of the longest before it,
at a full tick each. `late` counts the jobs that took longer; there must be none.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from darkroom.engine.scheduler import ADMITTED, CPU_ROWS, pick, rank

# Seconds of a call of so many rows of the embedded model, one thread, and of a decode: AMD EPYC, AVX-512.
CURVE = ((1, 0.0215), (2, 0.0237), (4, 0.0348), (8, 0.0624), (16, 0.1096), (32, 0.2112), (48, 0.3024))
DECODE = 0.0335


@dataclass(slots=True)
class Job:
    arrival: float
    key: int
    rows: int  # of an evaluation
    evaluations: int
    burst: int = 1  # so many came together
    rank: float = 0.0
    number: int = 0
    left: int = 0
    finish: float = 0.0
    bound: float = 0.0

    def __lt__(self, other: Job) -> bool:
        return (self.rank, self.number) < (other.rank, other.number)


@dataclass(slots=True)
class Machine:
    """An engine's costs: a curve (rows, seconds), a decode's seconds, the rows of a tick."""

    curve: Sequence[tuple[int, float]] = CURVE
    decode: float = DECODE
    budget: int = CPU_ROWS

    def tick(self, rows: int) -> float:
        """Seconds of a call of so many rows, between and beyond the measured ones along straight lines."""
        at = min(max(bisect_right(self.curve, (rows, float("inf"))), 1), len(self.curve) - 1)
        (low, before), (high, after) = self.curve[at - 1], self.curve[at]
        return before + (after - before) * (rows - low) / (high - low)

    def seconds(self, job: Job) -> float:
        """What a job takes by itself."""
        return job.evaluations * self.tick(job.rows) + self.decode

    def work(self, job: Job) -> float:
        """What it takes of an engine that is full."""
        return job.evaluations * job.rows * self.tick(self.budget) / self.budget + self.decode


@dataclass(slots=True)
class _Engine:
    held: list[Job] = field(default_factory=list)
    done: list[Job] = field(default_factory=list)
    idle: bool = True


Order = Callable[[float, float, float], float]


def by_arrival(now: float, own: float, unfinished: float) -> float:
    """The order of most servers."""
    return now


def simulate(jobs: Sequence[Job], engines: int, machine: Machine, order: Order = rank) -> list[Job]:
    """Draw all jobs, sorted by arrival; the same jobs with their finish and their bound."""
    waiting: list[Job] = []
    workers = [_Engine() for _ in range(engines)]
    unfinished: dict[int, float] = {}
    events: list[tuple[float, int, int]] = [(job.arrival, 0, number) for number, job in enumerate(jobs)]
    heapq.heapify(events)
    alive: dict[int, Job] = {}
    room = ADMITTED * machine.budget

    def start(now: float, number: int) -> None:
        worker = workers[number]
        held = sum(job.rows for job in worker.held)
        while waiting and (not worker.held or held + waiting[0].rows <= room):
            job = heapq.heappop(waiting)
            worker.held.append(job)
            held += job.rows
        worker.held.sort()
        moving = pick(((job, job.rows) for job in worker.held), machine.budget)
        if not moving and not worker.done:
            worker.idle = True
            return
        worker.idle, took = False, 0.0
        if moving:
            took += machine.tick(sum(job.rows for job in moving))
            for job in moving:
                job.left -= 1
            worker.done += [job for job in moving if not job.left]
            worker.held = [job for job in worker.held if job.left]
        if worker.done:
            took += machine.decode
            job = worker.done.pop(0)
            job.finish = now + took
            unfinished[job.key] -= machine.seconds(job)
            del alive[job.number]
        heapq.heappush(events, (now + took, 2, number))

    while events:
        now, kind, number = heapq.heappop(events)
        if kind == 0:  # a job arrives
            job = jobs[number]
            own = machine.seconds(job)
            job.number, job.left = number, job.evaluations
            job.rank = order(now, own, unfinished.get(job.key, 0.0))
            unfinished[job.key] = unfinished.get(job.key, 0.0) + own
            alive[number] = job
            heapq.heappush(waiting, job)
            heapq.heappush(events, (max(job.rank, now), 1, number))
            if (idle := next((i for i, worker in enumerate(workers) if worker.idle), None)) is not None:
                start(now, idle)
        elif kind == 1:  # a job's rank is reached: nobody who comes later goes before it
            job = jobs[number]
            before = [other for other in alive.values() if other < job]
            full = machine.tick(machine.budget) + machine.decode
            longest = max((other.left for other in before), default=0)
            work = sum(machine.work(other) for other in before)
            # Decodes take turns with ticks, so that up to what an engine holds may be waiting for theirs.
            job.bound = now + work / engines + (longest + job.evaluations + 2 * room) * full
        else:
            start(now, number)
    return list(jobs)


def arrivals(load: float, engines: int, minutes: float, bursty: bool, machine: Machine, seed: int = 0) -> list[Job]:
    """Jobs that keep the engines busy for a share `load` of the time."""
    chance = random.Random(seed)

    def job(at: float, key: int = 0, burst: int = 1) -> Job:
        evaluations = min(int(chance.choice((4, 10, 20, 20, 30)) * chance.paretovariate(1.6)), 2000)
        return Job(at, key, chance.choice((1, 2, 2, 2, 3)), evaluations, burst)

    mean = statistics.fmean(machine.work(job(0.0)) for _ in range(2000)) / engines
    found, now = list[Job](), 0.0
    while now < 60 * minutes:
        together = chance.choice((1, 10, 100)) if bursty else 1
        now += chance.expovariate(load / (mean * together))
        key = min(int(chance.paretovariate(0.8)), 20)
        found += [job(now + 0.001 * i, key, together) for i in range(together)]
    return found


def told(jobs: Sequence[Job], machine: Machine) -> str:
    """Throughput, latencies of all, of those that came singly and of the shorter half of these, the late."""
    taken = [job.finish - job.arrival for job in jobs]
    middle = statistics.median(machine.seconds(job) for job in jobs)
    single = [job for job in jobs if job.burst == 1]
    short = [job.finish - job.arrival for job in single if machine.seconds(job) <= middle]
    alone = statistics.fmean(job.finish - job.arrival for job in single)
    late = sum(job.finish > job.bound for job in jobs)
    span = max(job.finish for job in jobs) - jobs[0].arrival
    p99 = sorted(short)[int(0.99 * (len(short) - 1))]
    return (
        f"{len(jobs):6} jobs {60 * len(jobs) / span:7.0f} a minute  mean {statistics.fmean(taken):6.1f} s"
        f"  single ones {alone:5.1f} s, short {statistics.fmean(short):5.1f} (99%: {p99:5.1f})"
        f"  longest {max(taken):4.0f} s  late {late}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Who waits how long, simulated.")
    parser.add_argument("--engines", default="1,8,64")
    parser.add_argument("--load", default="0.95")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--smoke", action="store_true", help="one short case")
    given = parser.parse_args()
    if given.smoke:
        given.engines, given.load, given.minutes = "2", "0.9", 0.5
    orders: dict[str, Order] = {
        "by arrival": by_arrival,
        "now + own": lambda now, own, unfinished: now + own,
        "now + 2 own + unfinished": rank,
        "now + 4 own + 2 unfinished": lambda now, own, unfinished: now + 4 * own + 2 * unfinished,
    }
    for engines in map(int, given.engines.split(",")):
        for load in map(float, given.load.split(",")):
            for bursty in (False, True):
                print(f"{engines} engines, load {load:g}, {'bursts' if bursty else 'Poisson'}")
                for name, order in orders.items():
                    machine = Machine()
                    jobs = arrivals(load, engines, given.minutes, bursty, machine)
                    print(f"  {name:27}{told(simulate(jobs, engines, machine, order), machine)}")
    print("rows of a tick, 2 engines at load 0.9 of 32 rows, bursts, now + 2 own + unfinished")
    jobs = arrivals(0.9, 2, given.minutes, True, Machine())
    for budget in (2, 8, 16, 32, 48):
        machine = Machine(budget=budget)
        again = [Job(job.arrival, job.key, job.rows, job.evaluations) for job in jobs]
        print(f"  {budget:3} rows {told(simulate(again, 2, machine), machine)}")


if __name__ == "__main__":
    main()
