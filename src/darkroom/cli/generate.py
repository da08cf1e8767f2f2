"""`darkroom generate`: pictures from texts."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import RequestError
from ..formats.picture import PictureExists, file_stem, write_into, write_picture
from ..recipe import read_recipe
from ..request import MAX_IMAGES, Request, whole
from ..settings import changed
from . import INTERRUPTED, USER_ERROR, complain, options
from .command import App, Argument, Option
from .display import Display, uninterrupted
from .drawing import DrawingOptions, drawing

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
        str | None, Option("--prompts", metavar="FILE", help="Read prompts from a file, one a line.")
    ] = None,
    count: Annotated[
        int,
        Option("-n", "--num-images", metavar="N", parser=options.whole_number, help="Pictures of each prompt."),
    ] = 1,
    recipe: Annotated[
        str | None,
        Option(metavar="FILE", help="Begin with the recipe of this picture (or JSON); options change it."),
    ] = None,
    strict: Annotated[bool, Option("--strict", help="Refuse a recipe that can't be followed in full.")] = False,
    *,
    asked: DrawingOptions,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Draw pictures from texts, and print the paths of their files.

    darkroom generate "a fox on a yellow background" -n 4 --seed 1 -o out/
    """
    if recipe is not None:
        found = read_recipe(recipe, strict=strict)
        for sentence in found.warnings:
            complain(sentence)
        asked = replace(asked, request=_changed(found.request, asked.request))
    texts = _prompts(prompts or [], prompts_file, None if recipe is None else asked.request.prompt)
    with options.named_as_options():
        whole("num_images", count, 1, MAX_IMAGES)
    first = asked.request.seeded()
    with options.named_as_options():
        requests = [
            first.numbered(number, prompt=text)
            for number, text in enumerate(text for text in texts for _ in range(count))
        ]
    write = writer(output, len(requests), overwrite)
    with Display("loading the model") as display:
        pipe = asked.load()
        from ..engine import Engine

        # On a CPU a wider batch gains nothing, and alone each picture has the same bits as when it is drawn again.
        on_cpu = pipe.device.type == "cpu"
        engine = Engine(pipe, deterministic=on_cpu)
        together = 1 if on_cpu else max(1, engine.max_rows // 2)
        return draw(engine, requests, asked.inputs(pipe, requests), write, display, as_json, together)


def draw(
    engine: Engine,
    requests: Sequence[Request],
    inputs: Inputs,
    write: Callable[[Image.Image, dict[str, Any]], Path],
    display: Display,
    as_json: bool,
    together: int,
) -> int:
    """Draw the requests, at most `together` at a time, and write each picture as soon as it is finished."""
    from ..engine import Failed, Finished, Progress

    waiting = deque(requests)
    written: list[dict[str, Any]] = []
    crossed, per_picture, failed, code = 0, 0, 0, 0
    told = set[str]()

    def refill() -> None:
        nonlocal per_picture
        while waiting and len(engine.jobs) < together:
            job = engine.jobs[engine.add(waiting.popleft(), inputs)]
            per_picture = job.total
            for sentence in job.warnings:
                if sentence not in told:
                    told.add(sentence)
                    display.complain(sentence)

    try:
        for event in engine.run(refill):
            if isinstance(event, Progress):
                crossed += 1
                now = f"picture {len(written) + failed + 1} of {len(requests)}" if len(requests) > 1 else "drawing"
                display.steps(crossed, max(crossed, per_picture * len(requests)), now)
            elif isinstance(event, Failed):
                failed += 1
                code = USER_ERROR
                display.complain(str(event.error))
            elif isinstance(event, Finished):
                recipe = event.request.to_dict()
                with uninterrupted():
                    path = write(event.image, recipe)
                    written.append({"path": str(path), "recipe": recipe})
                    if not as_json:
                        display.answer(str(path))
    except KeyboardInterrupt:
        display.close()
        complain(f"interrupted; {len(written)} of {len(requests)} pictures are written")
        code = INTERRUPTED
    finally:
        if as_json:
            display.answer(json.dumps({"images": written}, indent=2))
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
    """The lines of a UTF-8 file, or of stdin for "-", without the empty ones. Raises `RequestError`."""
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
    texts = [text for text in texts if text]
    if not texts:
        raise RequestError(f"{name} holds no prompts: write one a line")
    return texts


def writer(output: str, pictures: int, overwrite: bool) -> Callable[[Image.Image, dict[str, Any]], Path]:
    """How finished pictures are written. What can be known to fail fails now, before a model is loaded."""
    if options.is_file_name(options.path(output)):
        file = Path(output)
        if pictures > 1:
            raise RequestError(f"{pictures} pictures don't fit into one file {output!r}: give a folder")
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
            return write_picture(image, folder / f"{file_stem(recipe)}.png", recipe, overwrite=True)
        return write_into(folder, image, recipe)

    return write
