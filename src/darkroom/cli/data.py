"""`darkroom data`: training pictures, looked at, packed, encoded, rendered."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..data.examples import fault_of
from ..errors import Error, RequestError, TrainingError, clip, visible
from ..files import whole_file
from ..request import choice, whole
from . import INTERRUPTED, complain, completion, options
from .command import App, Argument, Option

if TYPE_CHECKING:
    from ..data.dataset import Dataset, FileDataset

app = App("Training pictures: look at your own, pack and encode them; render the built-in scenes.")

KINDS = ("single", "count", "relation")
METADATA = "metadata.jsonl"
SHARDS = "shards.json"
_MOST = 1_000_000
_SHOWN = 8  # groups of like pictures, and pictures of one


@app.command()
def scan(
    data: Annotated[str, Argument(metavar="DATA", help="A folder of pictures, or WebDataset shards.")],
    model: Annotated[
        str | None,
        Option(metavar="M", help="What will be tuned. [default: the embedded model]", complete=completion.models),
    ] = None,
    size: Annotated[
        int | None,
        Option(metavar="N", parser=options.whole_number, help="Side in pixels to train at. [default: the model's own]"),
    ] = None,
    buckets: Annotated[bool, Option("--buckets", help="Several sizes, by the pictures' shapes.")] = False,
    grid: Annotated[
        int | None,
        Option(
            metavar="N",
            parser=options.whole_number,
            help="Sides of buckets are multiples of it. [default: the model's]",
        ),
    ] = None,
    aspect: Annotated[float, Option(metavar="X", help="The longest side of a bucket, in its shortest.")] = 2.0,
    enlarge: Annotated[bool, Option("--enlarge/--no-enlarge", help="Without: pictures are never made larger.")] = True,
    captions: Annotated[
        bool,
        Option("--captions", help="Write the prompts that pictures without a caption were made from beside them."),
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Say what there is to learn from, at which size, what would be left out and why, which captions are missing, and
    which pictures are nearly the same.

    darkroom data scan my-pictures/

    darkroom data scan my-pictures/ --model v1-5/ --buckets
    """
    with options.named_as_options():
        if size is not None:
            whole("--size", size, 16, 8192)
        if grid is not None:
            whole("--grid", grid, 1, 1024)
    from ..data.buckets import Cut
    from ..data.dataset import FileDataset, open_dataset
    from ..data.duplicates import MOST, groups, miniatures

    if size is None or grid is None:
        from ..training.finetune import picture_sides

        side, step = picture_sides(model)
        size, grid = size or side, grid or step
    dataset = open_dataset(data, (size, size), Cut(buckets=buckets, grid=grid, aspect=aspect, enlarge=enlarge))
    assert isinstance(dataset, FileDataset)
    alike = [[dataset.name(i) for i in group] for group in groups(miniatures(dataset.examples[:MOST]))]
    offered = _prompts(dataset)
    if as_json:
        print(json.dumps({**_told(data, dataset), "size": size, "alike": alike, "prompts": offered}, indent=2))
    else:
        _print(dataset, size, alike, offered, captions)
    if captions:
        for name, prompt in offered.items():
            with whole_file(Path(name).with_suffix(".txt"), TrainingError) as draft:
                draft.write_text(prompt + "\n", encoding="utf-8")


def _print(dataset: FileDataset, size: int, alike: list[list[str]], offered: dict[str, str], captions: bool) -> None:
    """What `scan` says to people."""
    draws, n = sum(dataset.repeats), len(dataset)
    print(f"{n:,} pictures to learn from" + (f", {draws:,} in a round" if draws > n else ""))
    small = sum((e.width < w or e.height < h) for e, (w, h) in zip(dataset.examples, dataset.sizes, strict=True))
    larger = f"; {small:,} smaller ones are enlarged" if small else ""
    print(f"learned at {size} pixels" + (" squared, in buckets" if dataset.cut.buckets else " a side") + larger)
    bar = max(Counter(dataset.sizes).values())
    for (width, height), count in sorted(Counter(dataset.sizes).items()):
        print(f"  {width:>5} x {height:<5} {count:>7,}  {'#' * -(-40 * count // bar)}")
    without = [dataset.name(i) for i in range(n) if not dataset.captions[i]]
    if without:
        print(f"{len(without):,} without a caption, {visible(without[0])} the first")
    if offered:
        name, prompt = next(iter(offered.items()))
        done = "their prompts are written beside them" if captions else "--captions writes it beside them"
        print(f"{len(offered):,} of those hold the prompt that they were made from; {done}:")
        print(f"  {visible(name)}: {visible(clip(prompt, 100))}")
    if alike:
        print(f"{sum(map(len, alike)):,} are nearly the same as another:")
    for names in alike[:_SHOWN]:
        print(f"  {', '.join(visible(name) for name in names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}")
    if len(alike) > _SHOWN:
        print(f"  and {len(alike) - _SHOWN:,} more groups; --json has them all")
    if dataset.left_out:
        print(f"{len(dataset.left_out):,} left out:")
    for path, why in dataset.left_out:
        print(f"  {visible(str(path))}: {visible(why)}")


def _prompts(dataset: FileDataset) -> dict[str, str]:
    """The prompts in the recipes of pictures that have no caption, by the pictures' files."""
    from ..formats.picture import read_metadata

    found = {}
    for example in dataset.examples:
        if not example.caption and not example.member:
            try:
                prompt = read_metadata(example.path).recipe.get("prompt")
            except Error:
                continue  # it is decoded all the same: what it carries is damaged
            if isinstance(prompt, str) and prompt.strip() and fault_of(prompt) is None:
                found[example.name] = " ".join(prompt.split())
    return found


def _told(data: str, dataset: Dataset) -> dict[str, Any]:
    """What `scan --json` prints."""
    return {
        "data": data,
        "pictures": len(dataset),
        "draws_in_a_round": sum(dataset.repeats),
        "without_caption": [dataset.name(i) for i in range(len(dataset)) if not dataset.captions[i]],
        "sizes": [{"width": w, "height": h, "pictures": n} for (w, h), n in sorted(Counter(dataset.sizes).items())],
        "left_out": [{"path": str(path), "reason": why} for path, why in dataset.left_out],
    }


@app.command()
def pack(
    data: Annotated[str, Argument(metavar="DATA", help="A folder of pictures, or shards to pack anew.")],
    output: Annotated[str, Option("--output", "-o", metavar="DIR", help="A new folder for the shards.")],
    megabytes: Annotated[int, Option(metavar="N", parser=options.whole_number, help="Size of a shard, about.")] = 1000,
    count: Annotated[
        int,
        Option("--count", "-n", metavar="N", parser=options.whole_number, help="Pictures in a shard, at most."),
    ] = 10_000,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace shards packed before.")] = False,
) -> None:
    """Pack pictures and their captions into WebDataset shards: 000000.tar, 000001.tar, ..., and shards.json.

    darkroom data pack my-pictures/ -o shards/
    """
    with options.named_as_options():
        whole("--megabytes", megabytes, 1, 1_000_000)
        whole("--count", count, 1, _MOST)
    folder = _new_folder(output, SHARDS, overwrite)
    from ..data.dataset import scan_any
    from ..data.shards import write_shards
    from ..files import whole_folder
    from .display import Display

    with Display("looking at pictures") as display:
        found = scan_any(data)
        with whole_folder(folder.absolute(), SHARDS) as draft:
            written = write_shards(found.examples, draft, megabytes * 1_000_000, count)
            about = {
                "shards": [path.name for path in written],
                "pictures": len(found.examples),
                "left_out": [{"path": str(path), "reason": why} for path, why in found.left_out],
            }
            (draft / SHARDS).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        display.close()
        display.answer(str(folder))
        if found.left_out:
            complain(f"{len(found.left_out):,} left out; {SHARDS} says which and why")


@app.command()
def encode(
    data: Annotated[str, Argument(metavar="DATA", help="A folder of pictures, or WebDataset shards.")],
    output: Annotated[
        str | None, Option("--output", "-o", metavar="DIR", help="Where the run will live. [default: runs/KIND-DATA]")
    ] = None,
    kind: Annotated[str, Option("--for", metavar="KIND", help="What will be trained.")] = "lora",
    model: Annotated[str | None, Option(metavar="M", help="What will be tuned. [default: the embedded model]")] = None,
    settings: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="The settings that training will have; may be repeated."),
    ] = None,
    workers: Annotated[
        int, Option(metavar="N", parser=options.whole_number, help="Processes that share the work.")
    ] = 1,
) -> int:
    """Encode pictures ahead: all that `darkroom train KIND` with the same arguments would do before its first step.

    darkroom data encode my-pictures/ --for lora -o runs/my-style --workers 2
    """
    from ..training.kinds import KINDS as TRAININGS
    from ..training.kinds import Source, default_output

    with options.named_as_options():
        choice("--for", kind, tuple(TRAININGS))
        whole("--workers", workers, 1, 256)
    from ..training.cache import Cache
    from ..training.latents import place
    from ..training.loop import Stopped
    from ..training.recipe import override
    from ..training.run import CACHE, prepare

    recipe: Any = override(TRAININGS[kind].recipe_of(model=model), settings or [])
    if not getattr(getattr(recipe, "stage", None), "encoding", ""):
        raise RequestError(f"{kind} trains on no latents of pictures; nothing is to be encoded for it")
    folder = Path(options.path(output)) if output is not None else default_output(kind, data)
    try:
        stage: Any = prepare(recipe, Source(model, data), folder, workers)
        stage.take(folder / CACHE, ahead=True)
    except Stopped as stop:
        complain(str(stop))
        return INTERRUPTED
    except OSError as error:
        raise TrainingError(f"{str(error.filename or folder)!r} can't be used: {error.strerror or error}") from error
    print(f"{len(Cache(place(folder / CACHE, stage.pipe.autoencoder))):,} latents in {folder / CACHE}")
    return 0


def _new_folder(output: str, marker: str, overwrite: bool) -> Path:
    """A folder to write to: a new or empty one, or with --overwrite one that we wrote. Raises RequestError."""
    folder = Path(options.path(output))
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{output[:200]!r} is not a folder: choose another output")
    if folder.is_dir() and any(folder.iterdir()) and not (overwrite and (folder / marker).is_file()):
        hint = ", or add --overwrite" if (folder / marker).is_file() else ""
        raise RequestError(f"{output[:200]!r} is not empty: choose another folder{hint}")
    return folder


@app.command()
def render(
    output: Annotated[str, Option("--output", "-o", metavar="DIR", help="A new folder for the pictures.")],
    count: Annotated[int, Option("--count", "-n", metavar="N", parser=options.whole_number, help="How many.")] = 100,
    seed: Annotated[int, Option(metavar="N", parser=options.whole_number, help="Another seed, other scenes.")] = 0,
    kind: Annotated[str | None, Option(metavar="KIND", help=f"Only these: {', '.join(KINDS)}.")] = None,
    held_out: Annotated[bool, Option("--held-out", help="Only combinations that training never shows.")] = False,
    object_: Annotated[
        str | None,
        Option("--object", metavar="NOUN", help="Instead: a new object alone, small and large, on all grounds."),
    ] = None,
    glyph: options.NewGlyph = None,
    word: options.NewWord = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace pictures rendered before.")] = False,
) -> None:
    """Render built-in scenes: 000000.png, 000000.txt with its caption, ..., and metadata.jsonl with all of it.

    darkroom data render --count 1000 -o scenes/

    darkroom data render --object tiger --count 20 -o tiger/
    """
    with options.named_as_options():
        whole("--count", count, 1, _MOST)
        whole("--seed", seed, 0, 2**63 - 1)
        if kind is not None:
            choice("--kind", kind, KINDS)
    if object_ is None and (glyph or word):
        raise RequestError(f"{'--glyph' if glyph else '--word'} tells of a new object; name it with --object")
    if object_ is not None and (kind or held_out):
        raise RequestError(f"{'--kind' if kind else '--held-out'} is of the built-in scenes; leave it or --object out")
    folder = _new_folder(output, METADATA, overwrite)
    from dataclasses import asdict

    from PIL import Image

    from ..evaluate.judge import NewObject
    from ..files import whole_folder
    from ..toy.scenes import draw_scene, render_scene
    from .display import Display

    new = None if object_ is None else NewObject.of(object_, word, glyph)
    scenes = new.samples(count, seed) if new else (draw_scene(seed, i, kind, held_out) for i in range(count))
    with Display("rendering") as display, whole_folder(folder.absolute(), METADATA) as draft:
        rows = []
        for i, scene in enumerate(scenes):
            name = f"{i:06d}"
            Image.fromarray(render_scene(scene, new.glyphs if new else None)).save(draft / f"{name}.png")
            (draft / f"{name}.txt").write_text(scene.caption + "\n", encoding="utf-8")
            rows.append({"file_name": f"{name}.png", "text": scene.caption, **asdict(scene)})
            del rows[-1]["caption"]
            display.steps(i + 1, count, "rendering")
        (draft / METADATA).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        display.close()
        display.answer(str(folder))


@app.command()
def glyphs(
    output: Annotated[str, Option("--output", "-o", metavar="FILE", help="A .webp file.")] = "glyphs.webp",
    font: Annotated[str | None, Option(metavar="FILE", help="NotoColorEmoji.ttf. [default: the system's]")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Render the sheet of all objects from the emoji font, as the package ships it."""
    path = Path(options.path(output))
    if path.suffix.lower() != ".webp":
        raise RequestError(f"{output[:200]!r} must end in .webp: the sheet is lossless WebP")
    if path.exists() and not overwrite:
        raise RequestError(f"{output[:200]!r} exists already: choose another name, or add --overwrite")
    if font is not None and not Path(font).is_file():
        raise RequestError(f"there is no font {font[:200]!r}; name the file NotoColorEmoji.ttf")
    from ..files import whole_file
    from ..toy.glyphs import find_font, write_sheet

    where = find_font() if font is None else Path(font)
    with whole_file(path.absolute()) as draft:
        try:
            write_sheet(draft, where)
        except OSError as error:
            if error.errno is not None:
                raise
            raise RequestError(f"{str(where)[:200]!r} is no font with colour emoji of {109} pixels: {error}") from error
    print(path)
