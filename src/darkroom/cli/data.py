"""`darkroom data`: training pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from darkroom.cli import new_app, options
from darkroom.errors import RequestError
from darkroom.request import choice, whole

app = new_app()

KINDS = ("single", "count", "relation")
METADATA = "metadata.jsonl"
_MOST = 1_000_000


@app.callback()
def _data() -> None:
    """Make training pictures: the built-in scenes and their captions."""


@app.command()
def render(
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="A new folder for the pictures.")],
    count: Annotated[
        int, typer.Option("--count", "-n", metavar="N", parser=options.whole_number, help="How many.")
    ] = 100,
    seed: Annotated[
        int, typer.Option(metavar="N", parser=options.whole_number, help="Another seed, other scenes.")
    ] = 0,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help=f"Only these: {', '.join(KINDS)}.")] = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="Only combinations that training never shows.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace pictures rendered before.")] = False,
) -> None:
    """Render built-in scenes: 000000.png, 000000.txt with its caption, ..., and metadata.jsonl with all of it.

    darkroom data render --count 1000 -o scenes/
    """
    with options.named_as_options():
        whole("--count", count, 1, _MOST)
        whole("--seed", seed, 0, 2**63 - 1)
        if kind is not None:
            choice("--kind", kind, KINDS)
    folder = Path(options.path(output))
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{output[:200]!r} is not a folder: choose another output")
    if folder.is_dir() and any(folder.iterdir()) and not (overwrite and (folder / METADATA).is_file()):
        hint = ", or add --overwrite" if (folder / METADATA).is_file() else ""
        raise RequestError(f"{output[:200]!r} is not empty: choose another folder{hint}")
    from dataclasses import asdict

    from PIL import Image

    from darkroom.cli.display import Display
    from darkroom.data.scenes import draw_scene, render_scene
    from darkroom.formats.writer import whole_folder

    with Display("rendering") as display, whole_folder(folder.absolute(), METADATA) as draft:
        rows = []
        for i in range(count):
            scene = draw_scene(seed, i, kind, held_out)
            name = f"{i:06d}"
            Image.fromarray(render_scene(scene)).save(draft / f"{name}.png")
            (draft / f"{name}.txt").write_text(scene.caption + "\n", encoding="utf-8")
            rows.append({"file_name": f"{name}.png", "text": scene.caption, **asdict(scene)})
            del rows[-1]["caption"]
            display.steps(i + 1, count, "rendering")
        (draft / METADATA).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        display.close()
        display.answer(str(folder))


@app.command()
def glyphs(
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="A .webp file.")] = "glyphs.webp",
    font: Annotated[
        str | None, typer.Option(metavar="FILE", help="NotoColorEmoji.ttf. [default: the system's]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Render the sheet of all objects from the emoji font, as the package ships it."""
    path = Path(options.path(output))
    if path.suffix.lower() != ".webp":
        raise RequestError(f"{output[:200]!r} must end in .webp: the sheet is lossless WebP")
    if path.exists() and not overwrite:
        raise RequestError(f"{output[:200]!r} exists already: choose another name, or add --overwrite")
    if font is not None and not Path(font).is_file():
        raise RequestError(f"there is no font {font[:200]!r}; name the file NotoColorEmoji.ttf")
    from darkroom.data.glyphs import find_font, write_sheet
    from darkroom.formats.writer import whole_file

    where = find_font() if font is None else Path(font)
    with whole_file(path.absolute()) as draft:
        try:
            write_sheet(draft, where)
        except OSError as error:
            if error.errno is not None:
                raise
            raise RequestError(f"{str(where)[:200]!r} is no font with colour emoji of {109} pixels: {error}") from error
    print(path)
