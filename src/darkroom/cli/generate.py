"""`darkroom generate`: pictures from texts."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import RequestError
from ..formats.picture import PictureExists, file_stem, write_into, write_picture
from ..recipe import read_recipe
from ..request import MAX_IMAGES, Request, whole
from ..settings import changed
from . import INTERRUPTED, USER_ERROR, complain, note, options
from .command import OUTPUT, App, Argument, Option
from .display import Display, uninterrupted
from .drawing import DrawingOptions, drawing
from .terminal import shower

if TYPE_CHECKING:
    from PIL import Image

    from ..engine import Engine, Inputs

app = App()

_MAX_PROMPT_FILE = 64 * 2**20  # bytes


@app.command()
@options.taking(drawing)
def generate(
    prompts: Annotated[
        list[str] | None,
        Argument(metavar="PROMPT", help='What to draw; "-" reads prompts from stdin, one a line.'),
    ] = None,
    output: options.Output = ".",
    prompts_file: Annotated[
        str | None,
        Option(
            "--prompts",
            aliases=options.also("prompts"),
            metavar="FILE",
            help="Read prompts from a file, one a line; # begins a comment.",
        ),
    ] = None,
    more: Annotated[list[str] | None, Option("--prompt", "-p", hidden=True)] = None,
    count: Annotated[
        int,
        Option(
            "-n",
            "--num-images",
            aliases=options.also("num_images"),
            metavar="N",
            parser=options.whole_number,
            help="Pictures of each prompt.",
        ),
    ] = 1,
    recipe: Annotated[
        str | None,
        Option(metavar="FILE", help="Begin with the recipe of this picture (or JSON); options change it."),
    ] = None,
    strict: Annotated[bool, Option("--strict", help="Refuse a recipe that can't be followed in full.")] = False,
    *,
    asked: DrawingOptions,
    sheet: Annotated[
        bool, Option("--sheet", panel=OUTPUT, help="Also all of them on one labelled sheet; with -o FILE that alone.")
    ] = False,
    in_terminal: options.Preview = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Draw pictures from texts, and print the paths of their files.

    darkroom generate "a fox on a yellow background" -n 4 --seed 1 -o out/
    """
    if recipe is not None:
        found = read_recipe(recipe, strict=strict)
        for sentence in found.warnings:
            note(sentence)
        asked = replace(asked, request=_changed(found.request, asked.request))
    texts = _prompts([*(prompts or []), *(more or [])], prompts_file, None if recipe is None else asked.request.prompt)
    with options.named_as_options():
        whole("num_images", count, 1, MAX_IMAGES)
    first = asked.request.seeded()
    with options.named_as_options():
        requests = [
            first.numbered(number, prompt=text)
            for number, text in enumerate(text for text in texts for _ in range(count))
        ]
    alone = sheet and options.is_file_name(options.path(output))
    write = writer(output, 1 if alone else len(requests), overwrite)
    gathered: list[tuple[Image.Image, dict[str, Any]]] = []

    def written(image: Image.Image, recipe: dict[str, Any]) -> Path | None:
        gathered.append((image, recipe))
        return None if alone else write(image, recipe)

    show = shower(in_terminal)
    with Display(f"loading {asked.model or 'the model'}") as display:
        pipe = asked.load()
        from ..engine import Engine

        if strict and first.hires is not None and first.hires.network is not None:
            pipe.find_upscaler(first.hires.network, first.hires.upscaler_hash)  # else Lanczos takes its place

        # On a CPU a wider batch gains nothing, and alone each picture has the same bits as when it is drawn again.
        on_cpu = pipe.device.type == "cpu"
        engine = Engine(pipe, deterministic=on_cpu)
        together = 1 if on_cpu else max(1, engine.max_rows // 2)
        display.now("opening what the pictures are made from")
        inputs = asked.inputs(pipe, requests)

        def lay() -> dict[str, Any]:
            if not gathered:
                return {}
            image, path = _write_sheet(gathered, output, alone, texts, overwrite)
            if not as_json:
                display.answer(str(path))
            display.hide()
            show(image)
            return {"sheet": str(path)}

        return draw(engine, requests, inputs, written if sheet else write, display, as_json, together, show, lay)


def _write_sheet(
    drawn: Sequence[tuple[Image.Image, dict[str, Any]]], output: str, file: bool, texts: Sequence[str], overwrite: bool
) -> tuple[Image.Image, Path]:
    """Lay what was drawn out on a sheet, and write it: as the file `output`, or into that folder."""
    from ..sweeps.sheet import overview

    title = texts[0] if len(texts) == 1 else ""
    made = overview([image for image, _ in drawn], [_label(recipe, not title) for _, recipe in drawn], title)
    recipes = [told for _, told in drawn]
    recipe = {key: value for key, value in recipes[0].items() if all(told.get(key) == value for told in recipes)}
    varied = [name for name in ("prompt", "seed") if name not in recipe]
    recipe["prompt"] = title or " | ".join(texts)[:1000]
    recipe["sweep"] = [{"name": name, "values": [told.get(name) for told in recipes]} for name in varied]
    recipe["extra"] = {"Script": "darkroom generate --sheet"}
    stem = f"sheet-{file_stem(drawn[0][1])}"
    if file:
        return made, write_picture(made, output, recipe, overwrite=overwrite)
    if overwrite:
        return made, write_picture(made, Path(output) / f"{stem}.png", recipe, overwrite=True)
    return made, write_into(output, made, recipe, stem)


def _label(recipe: Mapping[str, Any], whole: bool) -> str:
    """What the sheet says of a picture."""
    seed = f"seed {recipe.get('seed')}"
    return f"{recipe.get('prompt')}, {seed}" if whole else seed


def draw(
    engine: Engine,
    requests: Sequence[Request],
    inputs: Inputs,
    write: Callable[[Image.Image, dict[str, Any]], Path | None],
    display: Display,
    as_json: bool,
    together: int,
    show: Callable[[Image.Image], None],
    after: Callable[[], dict[str, Any]] = dict,
) -> int:
    """Draw the requests, at most `together` at a time, and write each picture as soon as it is finished.

    `show` is given each picture; `after` makes something of them all, and what it tells goes into the JSON.
    """
    from ..engine import Failed, Finished, Progress

    waiting = deque(requests)
    written: list[dict[str, Any]] = []
    crossed, per_picture, failed, code = 0, 0, 0, 0
    told = set[str]()

    def refill() -> None:
        nonlocal per_picture
        while waiting and len(engine.jobs) < together:
            display.now("encoding the picture and the prompt" if inputs.image is not None else "encoding the prompt")
            job = engine.jobs[engine.add(waiting.popleft(), inputs)]
            per_picture = job.total
            for sentence in job.warnings:
                if sentence not in told:
                    told.add(sentence)
                    display.note(sentence)

    try:
        for event in engine.run(refill):
            if isinstance(event, Progress):
                crossed += 1
                now = f"picture {len(written) + failed + 1} of {len(requests)}" if len(requests) > 1 else "drawing"
                display.steps(crossed, max(crossed, per_picture * len(requests)), now)
                if event.step == event.steps:
                    display.now(f"{now}, decoding")
            elif isinstance(event, Failed):
                failed += 1
                code = USER_ERROR
                display.complain(str(event.error))
            elif isinstance(event, Finished):
                recipe = event.request.to_dict()
                with uninterrupted():
                    path = write(event.image, recipe)
                    written.append({"path": None if path is None else str(path), "recipe": recipe})
                    if not as_json and path is not None:
                        display.answer(str(path))
                if path is not None:
                    display.hide()
                    show(event.image)
    except KeyboardInterrupt:
        display.close()
        complain(f"interrupted; {len(written)} of {len(requests)} pictures are written")
        code = INTERRUPTED
    finally:
        more = after()
        if as_json:
            display.answer(json.dumps({"images": written, **more}, indent=2))
    return code


def _changed(recipe: Request, asked: Request) -> Request:
    """A recipe with what the options say in place of its own; what they leave at the default stays."""
    return replace(recipe, **{name: value for name, value in changed(asked).items() if name != "prompt"})


def _prompts(arguments: list[str], file: str | None, otherwise: str | None = None) -> list[str]:
    """The prompts of the arguments and the file, in this order; else the recipe's. Raises `RequestError`."""
    texts: list[str] = []
    for argument in arguments:
        texts += _lines("-") if argument == "-" else [argument]
    if file is not None:
        texts += _lines(file)
    if not texts and otherwise is not None:
        return [otherwise]
    if not texts:
        raise RequestError('no prompt was given: darkroom generate "a fox on a yellow background"')
    return texts


def _lines(file: str) -> list[str]:
    """The lines of a UTF-8 file, or of stdin for "-", without empty ones and comments. Raises `RequestError`."""
    name = "stdin" if file == "-" else repr(file)
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_MAX_PROMPT_FILE + 1)
        else:
            if not stat.S_ISREG(os.stat(file).st_mode) and not stat.S_ISFIFO(os.stat(file).st_mode):
                raise RequestError(f"can't read prompts from {name}: it is not a file")
            with open(file, "rb") as stream:
                data = stream.read(_MAX_PROMPT_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"can't read prompts from {name}: {reason.lower()}") from error
    if len(data) > _MAX_PROMPT_FILE:
        raise RequestError(f"{name} is larger than {_MAX_PROMPT_FILE // 2**20} MB: split it into several files")
    try:
        texts = [line.strip() for line in data.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    texts = [text for text in texts if text and not text.startswith("#")]
    if not texts:
        raise RequestError(f"{name} holds no prompts: write one a line")
    return texts


def writer(
    output: str, pictures: int, overwrite: bool, name: Callable[[dict[str, Any]], str] = file_stem
) -> Callable[[Image.Image, dict[str, Any]], Path]:
    """How finished pictures are written: into a folder under the `name` of their recipe. What can be known to fail
    fails now, before a model is loaded."""
    if options.is_file_name(options.path(output)):
        file = Path(output)
        if pictures > 1:
            raise RequestError(f"{pictures} pictures don't fit into one file {output!r}: give a folder, or add --sheet")
        if os.path.lexists(file) and not overwrite:
            raise PictureExists(f"{output!r} exists already: choose another name, or add --overwrite")
        if not file.parent.is_dir():
            raise RequestError(f"there is no folder {str(file.parent)!r}: create it first, or choose another place")
        options.check_folder(file.parent)
        return lambda image, recipe: write_picture(image, file, recipe, overwrite=overwrite)
    folder = Path(output)
    options.check_folder(folder)

    def write(image: Image.Image, recipe: dict[str, Any]) -> Path:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"can't create the folder {output!r}: {str(error.strerror).lower()}") from error
        if overwrite:
            return write_picture(image, folder / f"{name(recipe)}.png", recipe, overwrite=True)
        return write_into(folder, image, recipe, name(recipe))

    return write
