"""`darkroom evaluate`: do a model's pictures show what the prompts say?"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli import new_app, options
from darkroom.errors import RequestError
from darkroom.request import MAX_IMAGES, real, whole

if TYPE_CHECKING:
    from darkroom.cli.display import Display
    from darkroom.engine.engine import Progress

app = new_app()
COLUMNS = ("background", "objects", "layout", "right")


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A model (folder, file, ORG/NAME). [default: embedded]")
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", metavar="N", parser=options.whole_number, help="Pictures a category.")
    ] = 100,
    object_: Annotated[
        str | None,
        typer.Option("--object", metavar="NOUN", help="Judge a new object instead, and what it cost the old ones."),
    ] = None,
    glyph: Annotated[
        str | None,
        typer.Option(metavar="EMOJI|FILE", help="How it looks. [default: the emoji that Unicode calls by the noun]"),
    ] = None,
    word: Annotated[str | None, typer.Option(metavar="W", help="What prompts call it. [default: the noun]")] = None,
    before: Annotated[
        str | None,
        typer.Option(metavar="M", help="The model before it learned. [default: MODEL without --lora and --embedding]"),
    ] = None,
    lora: options.Loras = None,
    embedding: options.Embeddings = None,
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
    if object_ is None and (given := [n for n, v in (("--glyph", glyph), ("--word", word), ("--before", before)) if v]):
        raise RequestError(f"{given[0]} tells of a new object; name it with --object")
    from darkroom.cli.display import Display

    files = options.loras(lora)
    with Display("loading the model") as display:
        from darkroom.adapters import Lora

        asked: dict[str, Any] = {"steps": steps, "guidance_scale": guidance, "sampler": sampler}
        asked |= {"loras": [Lora(file, scale) for file, scale in files], "embeddings": embedding or []}
        if object_ is not None:
            from darkroom.evaluate.objects import NewObject, evaluate_object
            from darkroom.training.card import score_as_json

            new = NewObject.of(object_, word, glyph)
            pipe = options.load(model, device, dtype, False, threads)
            earlier = None if before is None else options.load(before, device, dtype, False, threads)
            stages = 4 if files or earlier is not None else 3
            stage, step = watching(display, count, stages)
            rows = evaluate_object(pipe, new, count, before=earlier, progress=stage, on_progress=step, **asked)
            scores: dict[str, Any] = {"object": object_, "word": new.word, "pictures_a_row": count}
            scores["rows"] = {name: score_as_json(row) for name, row in rows.items()}
        else:
            from darkroom.data.objects import CANVAS
            from darkroom.data.scenes import KINDS
            from darkroom.evaluate.scenes import evaluate as judge_all
            from darkroom.training.card import scores_as_json

            pipe = options.load(model, device, dtype, False, threads)
            stage, step = watching(display, count, 2 * len(KINDS))
            table = judge_all(pipe, count, stage, width=CANVAS, height=CANVAS, on_progress=step, **asked)
            scores = scores_as_json(table)
    told = object_as_text if object_ is not None else as_text
    print(json.dumps(scores, indent=2) if as_json else told(scores))


def watching(display: Display, count: int, stages: int) -> tuple[Callable[[str], None], Callable[[Progress], None]]:
    """What shows each stage by its name, and each step of its `count` pictures."""
    now, begun, done = "", -1, 0

    def stage(text: str) -> None:
        nonlocal now, begun, done
        now, begun, done = text, begun + 1, 0

    def step(event: Progress) -> None:
        nonlocal done
        done += 1
        total = event.steps * count
        display.steps(begun * total + done, stages * total, now)

    return stage, step


def as_text(scores: dict[str, Any]) -> str:
    """The scores as a table: a row a category and kind of picture, per cent."""
    lines = [f"{'':26}" + "".join(f"{name:>12}" for name in COLUMNS)]
    for kind, rows in scores["categories"].items():
        for row, score in rows.items():
            lines.append(f"{kind:10}{row:16}" + _per_cent(score))
        lines.append("")
    count, psnr = scores["pictures_a_category"], scores["autoencoder_psnr"]
    lines.append(f"{count} pictures a row; the autoencoder reconstructs with {psnr:.2f} dB PSNR")
    return "\n".join(lines)


def object_as_text(scores: dict[str, Any]) -> str:
    """The scores of a new object as a table, per cent."""
    lines = [f"{'':26}" + "".join(f"{name:>12}" for name in COLUMNS)]
    lines += [f"{row:26}" + _per_cent(score) for row, score in scores["rows"].items()]
    return "\n".join([*lines, "", f"{scores['pictures_a_row']} pictures a row; new: {scores['word']}"])


def _per_cent(score: dict[str, float]) -> str:
    return "".join(f"{100 * score[name]:11.1f}%" for name in COLUMNS)
