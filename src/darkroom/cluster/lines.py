"""A batch's lines: a request each, with an id that names its file and a seed that no other line changes. No torch.

A line is a JSON object: a request's fields, and an `id` if it wants a name. What it leaves open of its seeds comes from
its own text, and from how many equal lines stand before it. So two runs of one file draw the same, and a line that is
put in between changes no other.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import Error, ImageError, RequestError, shown
from ..files import read_bytes
from ..formats.picture import dump_recipe, read_metadata
from ..request import Request
from ..samplers import canonical

MAX_FILE = 1 << 30  # bytes
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_KEPT = ("prompt", "negative_prompt", "seed", "steps", "width", "height", "guidance_scale")  # of a line, by a recipe


@dataclass(frozen=True, slots=True)
class Line:
    """One picture of a batch.

    Attributes:
        number: its line in the file, from 1.
        id: names its file; by its text where it gave none.
        request: plain, seeds filled in.
        named: it gave the id.
    """

    number: int
    id: str
    request: Mapping[str, Any]
    named: bool = False

    @property
    def place(self) -> str:
        """Its file below the batch's folder: "ab/ID.png", where ab is of the id's SHA-256."""
        return f"{hashlib.sha256(self.id.encode()).hexdigest()[:2]}/{self.id}.png"


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that can't be drawn, and why."""

    number: int
    id: str | None
    error: str


def read_lines(file: str) -> tuple[list[Line], list[Refused]]:
    """The lines of a UTF-8 file ("-": stdin), in order, empty ones left out, and those that are no requests.

    Raises RequestError for a file that can't be read, and for one without lines.
    """
    name = "stdin" if file == "-" else repr(file)
    data = sys.stdin.buffer.read() if file == "-" else read_bytes(Path(file), MAX_FILE, "a list", RequestError)
    try:
        texts = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    lines: list[Line] = []
    refused: list[Refused] = []
    equal: Counter[bytes] = Counter()
    taken: dict[str, int] = {}  # id, in one case: not every file system tells cases apart
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = _line(number, text, equal)
            first = taken.setdefault(line.id.casefold(), number)
            if first != number:
                raise RequestError(f"the id {line.id!r} is line {first}'s already (cases are one); give another")
            lines.append(line)
        except Error as error:
            refused.append(Refused(number, None, str(error)))
    if not lines and not refused:
        raise RequestError(f'{name} holds no lines: write one request each, such as {{"prompt": "a fox"}}')
    return lines, refused


def _line(number: int, text: str, equal: Counter[bytes]) -> Line:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise RequestError(f"it is not valid JSON: {fault}") from None
    if not isinstance(values, dict):
        raise RequestError(f'it holds {shown(values)}; give an object, such as {{"prompt": "a fox"}}')
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()
    which = equal[digest]
    equal[digest] += 1
    own = hashlib.sha256(digest + which.to_bytes(8, "big")).digest()
    id = values.pop("id", None)
    if id is not None and not (isinstance(id, str) and _ID.fullmatch(id)):
        raise RequestError(f"the id is {shown(id)}; give 1 to 80 letters, digits, _ or -")
    request = Request.from_dict(values)
    if request.sampler is not None:
        canonical(request.sampler)
    seed, varied = int.from_bytes(own[:4], "big"), int.from_bytes(own[4:8], "big")
    filled: dict[str, Any] = {} if request.seed is not None else {"seed": seed}
    if request.variation_strength and request.variation_seed is None:
        filled["variation_seed"] = varied
    plain = json.loads(dump_recipe(replace(request, **filled).to_dict()))
    return Line(number, id or own[8:18].hex(), plain, id is not None)


def drawn_already(line: Line, folder: Path) -> bool:
    """Whether a line's picture is there: a file that is there is whole (`files.replacing`).

    Raises RequestError where the line has a name, and the file of that name was drawn from something else.
    """
    path = folder / line.place
    if not path.exists():
        return False
    if line.named:
        try:
            recipe = read_metadata(path).recipe
        except ImageError as error:
            raise RequestError(f"its file can't be read: {error}; remove it, or give another id") from None
        given = Request.from_dict(line.request).to_dict()
        for name in _KEPT:
            if name in given and recipe.get(name) != given[name]:
                raise RequestError(
                    f"{line.place} was drawn with {name} {shown(recipe.get(name))}, and the line says "
                    f"{shown(given[name])}; remove the file, or give another id"
                )
    return True
