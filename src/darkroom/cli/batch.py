"""`darkroom batch`: a list of prompts, drawn to the end however often it is interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from ..errors import RequestError
from ..request import whole
from . import INTERRUPTED, complain, options
from .command import App, Argument, Option
from .display import Display

app = App()

SOME_FAILED, DISK_FULL = 1, 3


@app.command()
def batch(
    file: Annotated[str, Argument(metavar="FILE.jsonl", help='One request a line; "-": stdin.')],
    output: Annotated[Path, Option("-o", "--output", metavar="DIR", help="Where the pictures go.")],
    workers: Annotated[
        int | None,
        Option(metavar="N", parser=options.whole_number, help="Engines. [default: what suits model and device]"),
    ] = None,
    ray: Annotated[
        str | None, Option(metavar="HOST:PORT", help='Draw by the machines of a Ray cluster; "local": one made here.')
    ] = None,
    model: options.Model = None,
    vae: options.Vae = None,
    lora_dir: options.LoraDir = None,
    embedding_dir: options.EmbeddingDir = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    max_rows: Annotated[
        int | None, Option(metavar="N", parser=options.whole_number, help="U-Net rows that move together.")
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Draw a list of prompts (docs/batch.md).

    A line of the list is a JSON object, such as {"prompt": "a fox", "steps": 20, "id": "fox-1"}; its picture is
    DIR/ab/ID.png. The same command again goes on where it ended; what can't be drawn is told in DIR/failed.jsonl.
    """
    from ..cluster import batch as drawing

    with options.named_as_options():
        for name, count in (("workers", workers), ("max_rows", max_rows)):
            if count is not None:
                whole(name, count, 1, 1024)
    if embedding_dir is not None:
        from ..formats.embedding import scan_embeddings
    asked = drawing.Drawing(
        model=model,
        vae=vae,
        lora_dir=lora_dir,
        words={} if embedding_dir is None else {name: str(p) for name, p in scan_embeddings(embedding_dir).items()},
        device=device,
        dtype=dtype,
        max_rows=max_rows,
    )
    if output.exists() and not output.is_dir():
        raise RequestError(f"{str(output)!r} is no folder; name one for the pictures")
    code = 0
    with Display("reading the list") as display:
        whole_batch = drawing.Batch(file, output)
        summary = whole_batch.summary

        def moved(steps: int) -> None:
            done = summary.drawn + summary.failed + summary.found
            display.steps(done, whole_batch.total - summary.drawn, "pictures")

        import asyncio

        try:
            if ray is not None:
                from ..cluster.ray_batch import draw_through_ray

                draw_through_ray(whole_batch, asked, ray, workers, moved)
            else:
                asyncio.run(drawing.draw_here(whole_batch, asked, workers, moved))
        except drawing.DiskFull as error:
            display.complain(str(error))
            code = DISK_FULL
        except KeyboardInterrupt:
            display.close()
            complain(f"interrupted; {summary.drawn + summary.found} pictures are there, and the same command goes on")
            return INTERRUPTED
        finally:
            whole_batch.close()
        if as_json:
            told = {"drawn": summary.drawn, "found": summary.found, "failed": summary.failed}
            display.answer(json.dumps(told | {"folder": str(output)}))
        else:
            found = f", {summary.found} were there" if summary.found else ""
            failed = f", {summary.failed} failed (see {output / drawing.FAILED})" if summary.failed else ""
            display.answer(f"{summary.drawn} drawn{found}{failed}")
    return code or (SOME_FAILED if summary.failed else 0)
