"""`darkroom evaluate`: do a model's pictures show what the prompts say?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli import new_app, options
from darkroom.request import MAX_IMAGES, real, whole

if TYPE_CHECKING:
    from darkroom.engine.engine import Progress

app = new_app()


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A model (folder, file, ORG/NAME). [default: embedded]")
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", metavar="N", parser=options.whole_number, help="Pictures a category.")
    ] = 100,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", parser=options.whole_number, help="Sampling steps. [default: the model's]"),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(metavar="X", parser=options.real_number, help="Guidance scale. [default: the model's]"),
    ] = None,
    sampler: Annotated[str | None, typer.Option(metavar="NAME", help="See `darkroom samplers`.")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Judge pictures of the built-in scenes: seen and held-out combinations, beside the ceiling and chance.

    A picture is right when its background, its objects, their number, size and places are all as the caption says.
    """
    with options.named_as_options():
        whole("--count", count, 1, MAX_IMAGES)
        if steps is not None:
            whole("--steps", steps, 1, 1000)
        if guidance is not None:
            real("--guidance", guidance, 0, 100)
    from darkroom.cli.display import Display
    from darkroom.data.objects import CANVAS
    from darkroom.data.scenes import KINDS

    with Display("loading the model") as display:
        pipe = options.load(model, device, dtype, False, threads)
        from darkroom.evaluate.scenes import evaluate as judge_all
        from darkroom.training.card import scores_as_json

        now, begun, done = "", -1, 0

        def stage(text: str) -> None:
            nonlocal now, begun, done
            now, begun, done = text, begun + 1, 0

        def step(event: Progress) -> None:
            nonlocal done
            done += 1
            total = event.steps * count
            display.steps(begun * total + done, 2 * len(KINDS) * total, now)

        table = judge_all(
            pipe,
            count,
            stage,
            steps=steps,
            guidance_scale=guidance,
            sampler=sampler,
            width=CANVAS,
            height=CANVAS,
            on_progress=step,
        )
    scores = scores_as_json(table)
    print(json.dumps(scores, indent=2) if as_json else as_text(scores))


def as_text(scores: dict[str, Any]) -> str:
    """The scores as a table: a row a category and kind of picture, per cent."""
    columns = ("background", "objects", "layout", "right")
    lines = [f"{'':26}" + "".join(f"{name:>12}" for name in columns)]
    for kind, rows in scores["categories"].items():
        for row, score in rows.items():
            lines.append(f"{kind:10}{row:16}" + "".join(f"{100 * score[name]:11.1f}%" for name in columns))
        lines.append("")
    count, psnr = scores["pictures_a_category"], scores["autoencoder_psnr"]
    lines.append(f"{count} pictures a row; the autoencoder reconstructs with {psnr:.2f} dB PSNR")
    return "\n".join(lines)
