"""`darkroom info`: what a model is and holds, or how a picture was made."""

from __future__ import annotations

import dataclasses
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from ..errors import RequestError, visible
from ..formats.picture import Metadata, read_metadata
from ..picture_headers import format_of
from ..request import Enlarge, Hires, UsedControl, UsedLora
from . import USER_ERROR, complain, folders, options
from .command import App, Argument, Option
from .verify import TOOLS

app = App()

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
_TOOLS = TOOLS | {"darkroom": "Darkroom", "a1111": "A1111 infotext"}


@app.command()
def info(
    source: Annotated[
        str | None,
        Argument(
            metavar="MODEL|IMAGE|FOLDER",
            help="A model (folder, file, ORG/NAME), LoRA, picture, folder of pictures, or a training's run. "
            "[default: embedded]",
        ),
    ] = None,
    with_hash: Annotated[bool, Option("--hash", help="Also a model's hash (reads the whole file).")] = False,
    config: Annotated[
        bool, Option("--config", help="Instead: the defaults of darkroom.toml and the environment, and where they lie.")
    ] = False,
    as_json: options.Json = False,
) -> int:
    """Say what a model is and holds, without loading its weights; or how a picture was made, by its metadata.

    Of a folder of pictures the recipes are a table; of a training's run it is told what it did, and how its result is
    used.
    """
    if config:
        _config(as_json)
        return 0
    if source is not None and os.path.isdir(source) and _folder(Path(source), as_json):
        return 0
    if source is not None and is_picture(source):
        _picture(source, as_json)
        return 0
    from ..embedded import MODEL
    from ..formats.artifact import describe

    found = describe(MODEL if source is None else source, with_hash=with_hash)
    print(json.dumps(found, indent=2) if as_json else _lines(found))
    if found.get("fault"):
        complain(found["fault"])
        return USER_ERROR
    return 0


def is_picture(source: str) -> bool:
    """Whether a name is a picture's rather than a model's: by its first bytes, or by its ending if there is no file."""
    try:
        path = Path(source)
        if path.is_dir():
            return False
        if path.is_file():
            with open(path, "rb") as file:
                head = file.read(16)
            if format_of(head) is not None and head[:2] != b"BM":  # two letters are too few to tell a BMP by
                return True
    except (OSError, ValueError):
        pass
    return Path(source).suffix.lower() in _PICTURES


def _config(as_json: bool) -> None:
    """What is taken where the command line says nothing, and who says so."""
    from .config import places, table

    rows = table()
    if as_json:
        print(json.dumps({"files": [str(place) for place in places()], "defaults": rows}, indent=2))
        return
    for row in rows:
        value = "-" if row["value"] is None else str(row["value"])
        print(f"  {row['key']:14}  {visible(value):30}  {visible(row['source'] or row['help'])}".rstrip())
    files = ", then ".join(f"{place} ({'read' if place.is_file() else 'not there'})" for place in places())
    print(f"first comes the command line, then the environment (DARKROOM_MODEL, ...), then {visible(files)}")


def _folder(folder: Path, as_json: bool) -> bool:
    """Tell of a folder's pictures, or of a run; False where it is neither, but perhaps a model."""
    if (folder / "model_index.json").is_file() or (folder / "config.json").is_file():
        return False
    if folders.is_run(folder):
        told = folders.run_told(folder)
        print(json.dumps(told, indent=2) if as_json else visible("\n".join(folders.run_lines(told)), newlines=True))
        return True
    paths = folders.picture_paths(folder)
    if not paths:
        return False
    found = list(folders.read_all(paths))
    if as_json:
        every = [
            {"path": str(one.path), **(dataclasses.asdict(one.told) if one.told else {}), "fault": one.fault or None}
            for one in found
        ]
        print(json.dumps({"pictures": every}, indent=2))
        return True
    print("\n".join(_recipes(folder, found)))
    return True


# Of the table of a folder: heading, field of the recipe, characters at most.
_COLUMNS = (
    ("seed", "seed", 12),
    ("steps", "steps", 5),
    ("guidance", "guidance_scale", 8),
    ("sampler", "sampler", 20),
    ("schedule", "schedule", 16),
    ("model", "model", 24),
    ("prompt", "prompt", 80),
)


def _recipes(folder: Path, found: list[folders.Found]) -> Iterator[str]:
    """A table: a line a picture."""
    rows = [["file", "size", *(heading for heading, _, _ in _COLUMNS)]]
    for one in found:
        size = f"{one.told.width}x{one.told.height}" if one.told else "-"
        cells = [_cell(one.recipe.get(name))[:most] for _, name, most in _COLUMNS]
        if not one.recipe:
            cells[-1] = one.fault or "(no recipe)"
        rows.append([visible(str(one.path.relative_to(folder)))[:60], size, *cells])
    widths = [max(map(_columns, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell + " " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()
    yield f"{len(found):,} pictures, {sum(1 for one in found if one.recipe):,} with a recipe"


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:g}" if isinstance(value, float) else visible(" ".join(str(value).split()))


def _picture(source: str, as_json: bool) -> None:
    found = read_metadata(source)
    if as_json:
        print(json.dumps({"path": source, **dataclasses.asdict(found)}, indent=2))
        return
    print(_picture_lines(source, found))


def _picture_lines(source: str, found: Metadata) -> str:
    frames = f", the first of {found.frames} frames" if found.frames > 1 else ""
    lines = [f"{visible(source)}: {found.format}, {found.width} x {found.height} pixels{frames}"]
    if found.source is None:
        return "\n".join([*lines, "no recipe found"])
    lines.append(f"recipe: by {_TOOLS[found.source]}")
    if not found.recipe:
        lines.append("  (nothing in it could be understood)")
    extra = found.recipe.get("extra")
    recipe = {key: value for key, value in found.recipe.items() if key not in ("extra", "schema")}
    lines += _table({key: _in_words(key, value) for key, value in recipe.items()})
    if isinstance(extra, dict):
        lines += ["also:", *_table(extra)]
    if found.ignored:
        lines += ["not followed:", *_table(found.ignored)]
    lines += [f"warning: {visible(sentence)}" for sentence in found.warnings]
    return "\n".join(lines)


def _in_words(key: str, value: Any) -> Any:
    """What a recipe says of LoRAs, controls and a second pass for people; as it is, where it can't be that."""
    try:
        if key in ("hires", "enlarge"):
            return (Hires if key == "hires" else Enlarge).checked(value).words
        if key in ("loras", "controls") and isinstance(value, list):
            return "\n".join((UsedLora if key == "loras" else UsedControl).checked(one).words for one in value)
        if key == "embeddings" and isinstance(value, list) and all(isinstance(one, str) for one in value):
            return "\n".join(value)
    except RequestError:
        pass
    return value


def _table(values: dict[str, Any]) -> list[str]:
    """One line a value, further lines of a text indented under the first; made safe for a terminal."""
    shown = {visible(str(key)[:60]).replace("_", " "): value for key, value in values.items()}
    width = max((len(key) for key in shown), default=0)
    lines = []
    for key, value in shown.items():
        text = value if isinstance(value, str) else json.dumps(value)
        text = visible(text, newlines=True).replace("\n", "\n" + " " * (width + 4))
        lines.append(f"  {key:{width}}  {text}".rstrip())
    return lines


def _lines(found: dict[str, Any]) -> str:
    """What `artifact.describe` found, for people."""
    if "parts" in found and "family" in found:
        return _model_lines(found)
    if "ranks" in found:
        return _lora_lines(found)
    if "runs" in found or ("parameters" not in found and "fault" in found):
        return _other_lines(found)
    return "\n".join(_table(found)) if "words" in found else _network_lines(found)


def _model_lines(found: dict[str, Any]) -> str:
    side = found["picture_size"]
    values = {
        "path": found["path"],
        "kind": f"{found['kind']}, {_bytes(found['size'])}",
        "family": f"{found['family']}, {found['task']}",
        "picture": f"{side} x {side} pixels",
        "prediction": found["prediction_type"],
        "scheduler": found["scheduler"],
        "text": f"width {found['text_width']}, vocabulary {found['vocabulary']}",
        "parameters": _millions(found["parameters"]),
    }
    for part, content in found["parts"].items():
        dtypes = ", ".join(content["dtypes"]) or "no tensors"
        values[f"  {part}"] = f"{_millions(content['parameters'])}, {dtypes}"
    if "hash" in found:
        values["hash"] = found["hash"]
    return "\n".join([visible(str(found["name"])), *_table(values)])


def _lora_lines(found: dict[str, Any]) -> str:
    values = {
        "path": found["path"],
        "kind": f"LoRA, {_bytes(found['size'])}, {found['form']} names",
        "layers": ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items()),
        "rank": ", ".join(f"{rank} ({count} layers)" for rank, count in found["ranks"].items()) or "none",
        "made for": found["base"] or "unknown (it changes no attention to a text)",
        "numbers": ", ".join(found["dtypes"]),
        "hash": found["hash"],
        **({"words": ", ".join(found["words"])} if found["words"] else {}),
        **({"unknown keys": len(found["unknown"])} if found["unknown"] else {}),
        **{key: text if len(text) <= 200 else text[:197] + "..." for key, text in found["metadata"].items()},
    }
    return "\n".join([visible(str(found["name"])), *_table(values)])


def _other_lines(found: dict[str, Any]) -> str:
    """A file that Darkroom doesn't load, or one that is damaged."""
    values = {"path": found["path"], "kind": f"{found['kind']}, {_bytes(found['size'])}"}
    if "runs" in found:
        values |= {"made for": found["base"]} if found["base"] else {}
        values |= {"runs in": f"{found['runs']}; not in Darkroom"}
    if found.get("tensors"):
        values["parameters"] = f"{_millions(found['parameters'])}, {', '.join(found['dtypes'])}"
    return "\n".join([visible(str(found["name"])), *_table(values)])


def _network_lines(found: dict[str, Any]) -> str:
    parts = found.get("parts", {"": found}).values()
    dtypes = ", ".join(dict.fromkeys(dtype for part in parts for dtype in part["dtypes"]))
    made_for = {"made for": f"{found['family']}, text of width {found['text_width']}"} if "family" in found else {}
    told = {"name", "path", "kind", "size", "parameters", "parts", "dtypes", "fault", "hash"}
    told |= {"family", "text_width", "hint_channels"} if made_for else set()
    values = {
        "path": found["path"],
        "kind": f"{found['kind']}, {_bytes(found['size'])}",
        **made_for,
        **{key: value for key, value in found.items() if key not in told},
        "parameters": f"{_millions(found['parameters'])}, {dtypes or 'no tensors'}",
        **({"hash": found["hash"]} if "hash" in found else {}),
    }
    return "\n".join([visible(str(found["name"])), *_table(values)])


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e5 else f"{count:,}"


def _bytes(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
