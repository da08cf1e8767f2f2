"""`darkroom gallery`: a folder's pictures and their recipes as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from ..errors import ImageError, RequestError
from ..files import whole_file
from ..request import whole
from . import note, options
from .command import App, Argument, Option
from .display import Display
from .folders import Found, command_of, picture_paths, read_all

app = App()
TEMPLATE = Path(__file__).with_name("gallery.html")
MARK = "<!-- a gallery by darkroom -->"
_TELL = ("model", "sampler", "schedule", "steps", "guidance_scale", "seed", "strength", "clip_skip", "vae")


@app.command()
def gallery(
    folder: Annotated[str, Argument("FOLDER", "The pictures, in it and in the folders in it.")],
    output: Annotated[
        str | None, Option("-o", "--output", metavar="FILE", help="FILE.html. [default: FOLDER/gallery.html]")
    ] = None,
    limit: Annotated[int, Option(metavar="N", parser=options.whole_number, help="The newest N pictures.")] = 1000,
    size: Annotated[int, Option(metavar="N", parser=options.whole_number, help="Of a thumbnail, in pixels.")] = 256,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a file that is no gallery of ours.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write one HTML file of a folder's pictures: thumbnails, recipes, search, and a command that draws each again.

    darkroom gallery out/

    Pictures of A1111, ComfyUI and the other tools whose recipes darkroom reads are told of as well. The file needs no
    server and no network; full pictures are opened from where they lie.
    """
    with options.named_as_options():
        whole("--limit", limit, 1, 20_000)
        whole("--size", size, 32, 1024)
    place = Path(options.path(folder))
    if not place.is_dir():
        raise RequestError(f"{folder[:200]!r} is no folder; give one that holds pictures")
    target = place / "gallery.html" if output is None else Path(options.path(output))
    if target.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"-o is {str(target)[:200]!r}; give a file that ends in .html")
    if not target.parent.is_dir():
        raise RequestError(f"there is no folder {str(target.parent)[:200]!r}: create it first, or choose another place")
    if os.path.lexists(target) and not overwrite and not _ours(target):
        raise RequestError(f"{str(target)[:200]!r} is there, and no gallery: choose another name, or add --overwrite")
    paths = picture_paths(place)
    if not paths:
        raise RequestError(f"{folder[:200]!r} holds no pictures; give another folder")
    newest = sorted(paths, key=lambda path: path.stat().st_mtime if path.exists() else 0.0, reverse=True)[:limit]
    rows: list[dict[str, Any]] = []
    with Display("looking at pictures") as display:
        for i, found in enumerate(read_all(newest)):
            rows.append(row(found, target.parent, size))
            display.steps(i + 1, len(newest), "pictures")
    text = page(rows, place.resolve().name or str(place))
    try:
        with whole_file(target.absolute()) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{str(target)[:200]!r} can't be written: {str(error.strerror).lower()}") from error
    size_of = len(text.encode("utf-8", "replace"))
    broken = sum(1 for each in rows if each["fault"])
    if len(paths) > limit:
        note(f"the newest {limit:,} of {len(paths):,} pictures are in it; --limit takes more")
    if broken:
        note(f"{broken:,} of them can't be read, and the gallery says why")
    if as_json:
        told = {"path": str(target), "pictures": len(rows), "of": len(paths), "broken": broken}
        print(json.dumps(told | {"bytes": size_of}))
        return
    print(target)
    note(
        f"{len(rows):,} pictures, {size_of / 1e6:.1f} MB"
        if size_of >= 1e6
        else f"{len(rows):,} pictures, {size_of // 1000} KB"
    )


def _ours(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return MARK in file.read(200)
    except OSError:
        return False


def row(found: Found, beside: Path, size: int) -> dict[str, Any]:
    """What the page is told of a picture; `beside`: the folder where the page lies."""
    recipe, thumbnail, fault = dict(found.recipe), "", found.fault
    try:
        thumbnail = _thumbnail(found.path, size) if not fault else ""
    except ImageError as error:
        fault = str(error)
    extra, ignored = recipe.pop("extra", None), found.told.ignored if found.told is not None else {}
    recipe.pop("schema", None)
    return {
        "name": _clean(found.path.name),
        "link": _link(found.path, beside),
        "thumbnail": thumbnail,
        "width": found.told.width if found.told else 0,
        "height": found.told.height if found.told else 0,
        "tool": (found.told.source or "") if found.told else "",
        "prompt": _clean(str(recipe.pop("prompt", ""))),
        "negative": _clean(str(recipe.pop("negative_prompt", ""))),
        "recipe": _rows({**{k: recipe[k] for k in _TELL if k in recipe}, **recipe}),
        "extra": _rows({**(extra if isinstance(extra, Mapping) else {}), **ignored}),
        "command": command_of(found),
        "fault": _clean(fault),
    }


def _thumbnail(path: Path, size: int) -> str:
    """A picture, no larger than `size`, as a WebP's address."""
    from ..images import open_picture

    small = open_picture(path).convert("RGB")
    small.thumbnail((size, size))
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _link(path: Path, beside: Path) -> str:
    """Where a picture lies, from the page. It begins with a dot, so that no name is taken for a scheme."""
    try:
        relative = os.path.relpath(path.absolute(), beside.absolute())
    except ValueError:  # on another drive
        return path.absolute().as_uri()
    return "./" + quote(Path(relative).as_posix().encode("utf-8", "surrogateescape"))


def _rows(values: Mapping[str, Any]) -> list[list[str]]:
    """Names and values, as texts."""
    told = [(key, value) for key, value in values.items() if value not in (None, "", [], {}, False)]
    return [
        [_clean(str(key)[:80]).replace("_", " "), _clean(value if isinstance(value, str) else json.dumps(value))[:4000]]
        for key, value in told
    ]


def _clean(text: str) -> str:
    """Text that UTF-8 can hold, without the marks that turn the direction of what follows."""
    text = text[:20_000].encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def page(rows: list[dict[str, Any]], title: str) -> str:
    """The page. What it tells lies in it as JSON, and is shown as text alone; its policy lets no other script run."""
    import html

    template = TEMPLATE.read_text(encoding="utf-8")
    data = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    script = template.split("<script>", 1)[1].split("</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    head, tail = template.split("@DATA@", 1)
    head = head.replace("@TITLE@", html.escape(_clean(title))).replace("@HASH@", digest)
    return f"{head}{data}{tail}"
