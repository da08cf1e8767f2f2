"""A batch through Ray Data: lines go to actors that each hold one engine; pictures stay on the disk that all share.

Ray places the actors and starts them again. What is promised rests on files: an actor that is given lines again, after
its machine was lost, looks which pictures are there. The engines are processes of their own here too, so that a line
that ends them is found out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, Error, RequestError
from .batch import Batch, Crew, DiskFull, Drawing
from .connect import check_folder, connected, nodes
from .lines import Line, drawn_already

MOST = 64  # lines that an actor is given at once, so that short ones make room for long ones
SHARE = 4  # times that each actor is given lines, at least, where there are enough
_FAULTS: Mapping[str, type[Error]] = {"DiskFull": DiskFull, "CheckpointError": CheckpointError}


def draw_through_ray(
    batch: Batch,
    drawing: Drawing,
    address: str,
    workers: int | None,
    stepped: Callable[[int], None] = lambda count: None,
) -> None:
    """Draw what is left of a batch by the machines of a Ray cluster.

    Raises ClusterError where there is none, or its machines don't share the batch's folder; DiskFull.
    """
    if batch.is_done(drawing):
        return
    with connected(address) as ray:
        from ray.data import ActorPoolStrategy, DataContext, from_items

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        check_folder(ray, batch.folder)
        here = nodes(ray)
        cpus, gpus = (int(sum(node["Resources"].get(name, 0) for node in here)) for name in ("CPU", "GPU"))
        if not cpus:
            raise RequestError("the cluster's machines have no processors for work; start them with --num-cpus")
        on_gpu = gpus > 0 and drawing.device != "cpu"
        most = min(workers or (gpus if on_gpu else cpus), max(cpus, 1), max(len(batch.left), 1))
        DataContext.get_current().enable_progress_bars = False
        size = max(1, min(MOST, ceil(len(batch.left) / (SHARE * most))))
        by_number = {line.number: line for line in batch.left}
        lines = from_items(
            [{"line": json.dumps(asdict(line))} for line in batch.left],
            override_num_blocks=max(1, ceil(len(batch.left) / size)),
        )
        told = lines.map_batches(
            Draw,
            fn_constructor_args=(asdict(drawing), str(batch.folder.absolute()), max(1, cpus // most)),
            batch_size=size,
            batch_format="numpy",
            # Where a machine is lost, actors and what they were at begin again, as often as it takes: Ray's default.
            compute=ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
            num_cpus=1,
            num_gpus=1 if on_gpu else None,
        )
        for row in told.iter_rows():
            batch.summary.steps += int(row["steps"])
            if row["fault"]:
                kind, _, sentence = row["fault"].partition(": ")
                raise _FAULTS.get(kind, RequestError)(sentence)
            batch.tell(by_number[int(row["number"])], row["error"] or None)
            stepped(int(row["steps"]))


class Draw:
    """An actor: one engine, kept for all that it is given.

    Args:
        drawing: of `Drawing`.
        folder: the batch's.
        threads: processor cores for the engine.
    """

    def __init__(self, drawing: Mapping[str, Any], folder: str, threads: int) -> None:
        self._folder = Path(folder)
        self._ended: dict[str, str | None] = {}
        self._steps = 0
        # A loop of its own: engines are listened to between the calls, too. Not of the kind that Ray has installed
        # (uvloop), which starts processes in the main thread only.
        asyncio.set_event_loop_policy(None)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()
        self._crew = Crew(Drawing(**drawing), self._folder, 1, self._tell, self._step, cores=threads)
        self._started = False

    def _tell(self, line: Line, error: str | None) -> None:
        self._ended[line.id] = error

    def _step(self, count: int) -> None:
        self._steps += count

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __call__(self, given: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Draw lines; what became of each: `{number, error, steps, fault}`."""
        lines = [Line(**json.loads(text)) for text in given["line"]]
        left, fault = [], ""
        self._steps = 0
        for line in lines:
            try:
                if drawn_already(line, self._folder):  # by one that was lost before it could say so
                    self._ended[line.id] = None
                else:
                    left.append(line)
            except RequestError as error:
                self._ended[line.id] = str(error)
        try:
            if left and not self._started:
                self._run(self._crew.start())
                self._started = True
            if left:
                self._run(self._crew.draw(left))
        except Error as error:
            fault = f"{type(error).__name__}: {error}"
        return {
            "number": [line.number for line in lines],
            "error": [self._ended.pop(line.id, None) or "" for line in lines],
            "steps": [self._steps if i == 0 else 0 for i in range(len(lines))],
            "fault": [fault] * len(lines),
        }
