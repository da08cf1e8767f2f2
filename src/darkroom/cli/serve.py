"""`darkroom serve`: the image server."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from ..errors import RequestError
from . import new_app

app = new_app()

NEEDED = "the server needs more packages; install them with: pip install 'darkroom-diffusion[serve]'"


@app.command()
def serve(
    host: str = typer.Option("127.0.0.1", help="The address to listen on; any other than this needs API keys."),
    port: int = typer.Option(7860, min=0, max=65535, help="0: any that is free."),
    data: Path = typer.Option(Path("darkroom-data"), help="The server's folder: queue, gallery, inputs."),
    model: str = typer.Option(None, help="The model: a folder, a file or a hub id. [default: the embedded one]"),
    models: Path = typer.Option(None, help="A folder of models, LoRAs, VAEs, words and ControlNets, as A1111 has it."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1 or mps."),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16."),
    engines: int = typer.Option(None, min=1, max=64, help="Engine processes. [default: what suits model and device]"),
    max_rows: int = typer.Option(None, min=1, max=1024, help="U-Net rows that move together."),
    model_memory: float = typer.Option(None, min=0.1, help="Gigabytes for models. [default: 60% of what is free]"),
    snapshot_every: float = typer.Option(5.0, min=0.1, help="Seconds between snapshots of a picture in progress."),
    api_key_file: Path = typer.Option(None, help="Who may use it: see `darkroom keys`."),
    allow_host: list[str] = typer.Option([], help="A host name that it answers to, beside localhost."),
    public_url: str = typer.Option(None, help="How it is reached from outside, such as https://pictures.example."),
    behind_proxy: bool = typer.Option(False, help="Believe a proxy's X-Forwarded headers."),
    cors: list[str] = typer.Option([], help="An origin whose pages may use it."),
    cancel_when_client_goes: bool = typer.Option(False, help="End a job when whoever waits for it goes."),
    keep_days: float = typer.Option(None, min=0, help="Let pictures' files go after so many days."),
    keep_gb: float = typer.Option(None, min=0, help="Let the oldest go beyond so many gigabytes."),
    log_prompts: bool = typer.Option(False, "--log-prompts", help="Write prompts into the log, too."),
    max_cost: float = typer.Option(2000.0, min=0.001, help="Of a job: rows x megapixels x steps."),
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

    options = ServeOptions(
        data=data,
        host=host,
        port=port,
        model=model,
        models=models,
        device=device,
        dtype=dtype,
        engines=engines,
        max_rows=max_rows,
        model_memory=(model_memory or 0.0) * 1e9,
        snapshot_every=snapshot_every,
        keys=api_key_file,
        allow_hosts=tuple(allow_host),
        public_url=public_url,
        behind_proxy=behind_proxy,
        cors=tuple(cors),
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
