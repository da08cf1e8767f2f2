"""`darkroom serve`: the image server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from ..errors import RequestError
from .command import App, Option

app = App()

DATABASE = "DARKROOM_DATABASE"  # the address in the environment: a command line is seen by everybody on the machine

NEEDED = "the server needs more packages; install them with: pip install 'darkroom-diffusion[serve]'"


Model = Annotated[str | None, Option(help="The model: a folder, a file or a hub id. [default: the embedded one]")]
Models = Annotated[Path | None, Option(help="A folder of models, LoRAs, VAEs, words and ControlNets, as A1111 has it.")]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, Option(help="auto, float32, bfloat16 or float16.")]
MaxRows = Annotated[int | None, Option(min=1, max=1024, help="U-Net rows that move together.")]
ModelMemory = Annotated[float | None, Option(min=0.1, help="Gigabytes for models. [default: 60% of what is free]")]
SnapshotEvery = Annotated[float, Option(min=0.1, help="Seconds between snapshots of a picture in progress.")]


@app.command()
def serve(
    host: Annotated[str, Option(help="The address to listen on; any other than this needs API keys.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: any that is free.")] = 7860,
    data: Annotated[Path, Option(help="The server's folder: queue, gallery, inputs.")] = Path("darkroom-data"),
    model: Model = None,
    models: Models = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    database: Annotated[
        str | None,
        Option(metavar="URL", help=f"A PostgreSQL that several share. [default: ${DATABASE}, else SQLite in --data]"),
    ] = None,
    lease: Annotated[float, Option(min=1.0, help="With --database: seconds after which others take over.")] = 30.0,
    engines: Annotated[
        int | None,
        Option(min=0, max=64, help="Engine processes; 0: workers draw. [default: what suits model and device]"),
    ] = None,
    max_rows: MaxRows = None,
    model_memory: ModelMemory = None,
    snapshot_every: SnapshotEvery = 5.0,
    api_key_file: Annotated[Path | None, Option(help="Who may use it: see `darkroom keys`.")] = None,
    allow_host: Annotated[list[str] | None, Option(help="A host name that it answers to, beside localhost.")] = None,
    public_url: Annotated[
        str | None, Option(help="How it is reached from outside, such as https://pictures.example.")
    ] = None,
    behind_proxy: Annotated[bool, Option(help="Believe a proxy's X-Forwarded headers.")] = False,
    cors: Annotated[list[str] | None, Option(help="An origin whose pages may use it.")] = None,
    cancel_when_client_goes: Annotated[bool, Option(help="End a job when whoever waits for it goes.")] = False,
    keep_days: Annotated[float | None, Option(min=0, help="Let pictures' files go after so many days.")] = None,
    keep_gb: Annotated[float | None, Option(min=0, help="Let the oldest go beyond so many gigabytes.")] = None,
    log_prompts: Annotated[bool, Option(help="Write prompts into the log, too.")] = False,
    max_cost: Annotated[float, Option(min=0.001, help="Of a job: rows x megapixels x steps.")] = 2000.0,
) -> None:
    """Serve pictures over HTTP: a web page, OpenAI's and A1111's dialects, and Darkroom's own (docs/serve.md).

    Many requests move through one model together, and what was acknowledged survives a restart.
    """
    try:
        from ..serve.options import ServeOptions
        from ..serve.run import run
        from ..serve.server import Server
    except ModuleNotFoundError as error:
        raise RequestError(f"{NEEDED} ({error.name} is missing)") from None

    database = database or os.environ.get(DATABASE)
    if engines == 0 and database is None:
        raise RequestError("--engines 0 needs --database, where workers find the jobs; see docs/cluster.md")
    options = ServeOptions(
        data=data,
        host=host,
        port=port,
        model=model,
        models=models,
        device=device,
        dtype=dtype,
        database=database,
        lease=lease,
        engines=engines,
        max_rows=max_rows,
        model_memory=(model_memory or 0.0) * 1e9,
        snapshot_every=snapshot_every,
        keys=api_key_file,
        allow_hosts=tuple(allow_host or ()),
        public_url=public_url,
        behind_proxy=behind_proxy,
        cors=tuple(cors or ()),
        cancel_when_client_goes=cancel_when_client_goes,
        keep_days=keep_days,
        keep_gb=keep_gb,
        log_prompts=log_prompts,
        max_cost=max_cost,
    )

    def announce(server: Server) -> None:
        at = f"[{host}]" if ":" in host else host
        print(f"Darkroom serves at {public_url or f'http://{at}:{options.port}'}/", flush=True)
        if server.keys.made is not None:
            print(
                f"This address is open to others, so a key is needed; for this run it is: {server.keys.made}",
                flush=True,
            )

    sys.exit(run(options, announce))
