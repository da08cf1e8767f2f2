"""`darkroom worker`: engines that draw what servers on one database take in."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from ..errors import RequestError
from .command import App, Option
from .serve import DATABASE, NEEDED, Device, Dtype, MaxRows, Model, ModelMemory, Models, SnapshotEvery

app = App()


@app.command()
def worker(
    database: Annotated[
        str | None, Option(metavar="URL", help=f"postgresql://USER@HOST/NAME. [default: ${DATABASE}]")
    ] = None,
    data: Annotated[Path, Option(help="The servers' folder, which all machines see.")] = Path("darkroom-data"),
    model: Model = None,
    models: Models = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engines: Annotated[
        int | None, Option(min=1, max=64, help="Engine processes. [default: what suits model and device]")
    ] = None,
    max_rows: MaxRows = None,
    model_memory: ModelMemory = None,
    snapshot_every: SnapshotEvery = 5.0,
    lease: Annotated[float, Option(min=1.0, help="Seconds without a word after which others take over.")] = 30.0,
) -> None:
    """Draw what servers on the same database take in, without HTTP (docs/cluster.md).

    As many as there are machines; each may come and go. `darkroom serve --database URL --engines 0` takes jobs in.
    """
    try:
        from ..serve.options import ServeOptions
        from ..serve.worker import Worker, run
    except ModuleNotFoundError as error:
        raise RequestError(f"{NEEDED} ({error.name} is missing)") from None

    options = ServeOptions(
        data=data,
        database=database or os.environ.get(DATABASE),
        model=model,
        models=models,
        device=device,
        dtype=dtype,
        engines=engines,
        max_rows=max_rows,
        model_memory=(model_memory or 0.0) * 1e9,
        snapshot_every=snapshot_every,
        lease=lease,
    )

    def announce(worker: Worker) -> None:
        assert worker.dispatcher.together is not None
        print(f"Darkroom draws as {worker.dispatcher.together.id}", flush=True)

    sys.exit(run(options, announce))
