"""The texts inside picture files: PNG chunks and EXIF tags, read with bounds; nothing here decodes pixels.

A picture's complete recipe as JSON: plain ASCII, and every text exactly as it was, lone surrogates included.

Pictures with their recipe: PNG, JPEG and WebP files that say how they were made, and read back so.

Two copies of the recipe go into a file: A1111's infotext for other tools, and Darkroom's own JSON, complete and exact.

| file       | infotext                  | complete recipe                                            |
|------------|---------------------------|------------------------------------------------------------|
| PNG        | text chunk `parameters`   | text chunk `darkroom`                                      |
| JPEG, WebP | EXIF `UserComment`        | EXIF `ImageDescription`, the JSON after the word "darkroom:" |
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ..errors import ImageError
from ..files import replacing
from .foreign import read_comfyui, read_dream, read_invokeai
from .infotext import parse_infotext, to_infotext

USER_COMMENT, DESCRIPTION, EXIF_IFD, MAKE, MODEL = 0x9286, 0x010E, 0x8769, 0x010F, 0x0110  # EXIF's numbers

_MAX_TEXT = 4 * 2**20  # bytes of one text, after inflating
_MAX_TEXTS = 8 * 2**20  # bytes of all texts
_MAX_CHUNKS = 100_000
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def header_size(head: bytes) -> tuple[int, int]:
    """Width and height from the first 30 bytes of a PNG or WebP file, (0, 0) for others.

    Pillow's WebP reader allocates the whole picture, and warns on stderr, before it says how large it is.
    """
    head = head.ljust(30, b"\0")
    if head.startswith(_PNG_SIGNATURE):
        return struct.unpack(">II", head[16:24])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        if head[12:16] == b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        if head[12:16] == b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if head[12:16] == b"VP8 ":
            return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 0, 0


def read_png(file: BinaryIO) -> tuple[dict[str, str], bytes]:
    """The texts of a PNG file by their keys, and its EXIF block; bounded, and stopping where the file breaks off.

    Pillow finds the chunks after the pixels only by decoding them, and loses texts that aren't strict UTF-8.
    """
    texts: dict[str, str] = {}
    total, exif = 0, b""
    file.seek(len(_PNG_SIGNATURE))
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head)
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf") or length > _MAX_TEXT:
            if kind == b"IEND":
                break
            file.seek(length + 4, os.SEEK_CUR)
            continue
        data = file.read(length + 4)[:length]
        if len(data) < length:
            break
        if kind == b"eXIf":
            exif = exif or data
        elif (entry := _text_chunk(kind, data)) and entry[0] not in texts:
            total += len(entry[1])
            if total > _MAX_TEXTS:
                break
            texts[entry[0]] = entry[1]
    return texts, exif


def _text_chunk(kind: bytes, data: bytes) -> tuple[str, str] | None:
    key, found, value = data.partition(b"\0")
    if not found or not 1 <= len(key) <= 79:
        return None
    name = key.decode("latin-1")
    if kind == b"tEXt":
        return name, value.decode("latin-1")
    if kind == b"zTXt":
        inflated = _inflate(value[1:])
        return None if inflated is None else (name, inflated.decode("latin-1"))
    parts = value[2:].split(b"\0", 2)  # language, translated key, text
    if len(value) < 2 or len(parts) < 3:
        return None
    text = _inflate(parts[2]) if value[0] else parts[2]
    return None if text is None else (name, text.decode("utf-8", "replace"))


def _inflate(data: bytes) -> bytes | None:
    """Inflate at most `_MAX_TEXT` bytes; None for a bomb or a broken stream."""
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, _MAX_TEXT)
    except zlib.error:
        return None
    return text if inflater.eof else None


def read_exif(block: bytes) -> dict[str, str]:
    """The texts in an EXIF block, under the keys they would have in a PNG file.

    Pillow's reader warns on stderr about hostile blocks, hence this small one.
    """
    texts: dict[str, str] = {}
    block = block.removeprefix(b"Exif\0\0")[:_MAX_TEXTS]
    order: Literal["<", ">"] = "<" if block[:2] == b"II" else ">"
    main = _read_tags(block, int.from_bytes(block[4:8], "little" if order == "<" else "big"), order)
    for tag in (DESCRIPTION, MAKE, MODEL):
        name, colon, text = main.get(tag, b"").decode("utf-8", "replace").partition(":")
        if colon and name.lower() in ("darkroom", "prompt", "workflow"):  # ComfyUI writes the last two
            texts.setdefault(name.lower(), text.rstrip("\0"))
    if len(main.get(EXIF_IFD, b"")) == 4:
        inner = _read_tags(block, struct.unpack(order + "I", main[EXIF_IFD])[0], order)
        if USER_COMMENT in inner:
            texts["parameters"] = _user_comment(inner[USER_COMMENT])
    return texts


def _read_tags(block: bytes, at: int, order: Literal["<", ">"]) -> dict[int, bytes]:
    """The tags of one TIFF directory that hold bytes (types 1, 2, 7) or an offset (type 4, one value), raw."""
    tags: dict[int, bytes] = {}
    if at < 8 or at + 2 > len(block):
        return tags
    (count,) = struct.unpack_from(order + "H", block, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, size = struct.unpack_from(order + "HHI", block, entry)
        if kind == 4 and size == 1:
            tags.setdefault(tag, block[entry + 8 : entry + 12])
        elif kind in (1, 2, 7) and tag in (DESCRIPTION, MAKE, MODEL, USER_COMMENT):
            start = entry + 8 if size <= 4 else struct.unpack_from(order + "I", block, entry + 8)[0]
            tags.setdefault(tag, block[start : start + min(size, _MAX_TEXT)])
    return tags


def _user_comment(data: bytes) -> str:
    """EXIF's UserComment: eight bytes name the character code, and often lie about it."""
    code, text = data[:8], data[8:]
    if code == b"UNICODE\0":
        if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return text.decode("utf-16", "replace")
        # EXIF says "Unicode" and no more: infotext is mostly ASCII, whose zero bytes come first in big-endian order.
        big = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", "replace")
    if code == b"JIS\0\0\0\0\0":
        return text.decode("iso2022_jp", "replace")
    if code not in (b"ASCII\0\0\0", b"\0" * 8):
        text = data
    return text.decode("utf-8", "replace").rstrip("\0")


# --- recipe


SCHEMA = 1  # a change of meaning raises it; a reader takes every schema, and what it doesn't know it passes on


def dump_recipe(recipe: Mapping[str, Any]) -> str:
    """A recipe as JSON in plain ASCII. Raises `ImageError` for values JSON has no form for."""
    try:
        return json.dumps({"schema": SCHEMA, **_pack(recipe)}, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ImageError(f"the recipe can't be written as JSON: {error}") from error


def load_recipe(text: str) -> dict[str, Any]:
    """The recipe in our JSON; an empty dict if the text is anything else. Never raises."""
    recipe = load_json(text)
    try:
        return _unpack(recipe) if isinstance(recipe, dict) and isinstance(recipe.get("schema"), int) else {}
    except RecursionError:
        return {}


# JSON merges a high and a low surrogate that stand side by side, and has no infinity: such values are wrapped.
_PAIR = re.compile("(?<=[\ud800-\udbff])(?=[\udc00-\udfff])")


def _pack(value: Any) -> Any:
    if isinstance(value, str) and _PAIR.search(value):
        return {"$parts": _PAIR.split(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, Mapping):
        return {str(key): _pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(item) for item in value]
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if isinstance(value, dict):
        parts = value.get("$parts")
        if len(value) == 1 and isinstance(parts, list) and all(isinstance(part, str) for part in parts):
            return "".join(parts)
        if len(value) == 1 and value.get("$float") in ("inf", "-inf", "nan"):
            return float(value["$float"])
        return {key: _unpack(item) for key, item in value.items()}
    return value


def load_json(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


# --- picture


MAX_PIXELS = 64 * 2**20  # 8192 x 8192
MAX_FILE = 512 * 2**20  # bytes
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


class PictureExists(ImageError):
    """A picture's file name is taken, and overwriting was not asked for."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a picture file says about itself."""

    format: str  # "PNG", "JPEG" or "WEBP"
    width: int
    height: int
    source: str | None = None  # who wrote the recipe: "darkroom", "a1111", "comfyui", "invokeai"; None: there is none
    recipe: dict[str, Any] = field(default_factory=dict)  # our names: prompt, seed, steps, ...
    texts: dict[str, str] = field(default_factory=dict)  # the raw texts by their keys ("parameters", "darkroom", ...)


# Writing -------------------------------------------------------------------------------------------------------------


def write_png(
    image: Image.Image, path: str | os.PathLike[str], recipe: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Write a PNG file with its recipe; as `write_picture`, whatever the name's ending."""
    return _write(image, Path(path), "PNG", recipe, overwrite)


def write_picture(
    image: Image.Image, path: str | os.PathLike[str], recipe: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Write a picture with its recipe, as PNG, JPEG or WebP by the name's ending.

    recipe: our names to plain values (texts, numbers, lists, None); `schema` is added. Every text is kept exactly, also
    in JPEG and WebP.
    The file appears whole or not at all. Returns its path.
    Raises `PictureExists` (an `ImageError`) if there is such a file and `overwrite` is false;
    `ImageError` for another ending, a folder that can't be written,
    a recipe that isn't plain, and a JPEG whose recipe passes the 64 KB that the format has for it.
    """
    path = Path(path)
    format = _FORMATS.get(path.suffix.lower())
    if format is None:
        raise ImageError(f"can't write a picture as {str(path)!r}: its name must end in .png, .jpg, .jpeg or .webp")
    return _write(image, path, format, recipe, overwrite)


def _write(image: Image.Image, path: Path, format: str, recipe: Mapping[str, Any], overwrite: bool) -> Path:
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    buffer = BytesIO()
    if format == "PNG":
        image.save(buffer, format, pnginfo=_png_texts(recipe))
    else:
        options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {"lossless": True}
        if format == "JPEG" and image.mode == "RGBA":
            image = image.convert("RGB")
        exif = _exif(recipe)
        if format == "JPEG" and len(exif) > 65_527:
            raise ImageError(
                f"the recipe of {str(path)!r} takes {len(exif)} bytes and a JPEG has room for 65527: "
                "write a PNG or a WebP file"
            )
        image.save(buffer, format, exif=exif, **options)
    write_atomically(path, buffer.getvalue(), overwrite=overwrite)
    return path


def write_atomically(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write a file so that it appears whole or not at all.

    Raises `PictureExists` if the file exists and `overwrite` is false (even if it appeared a moment ago), and
    `ImageError` if it can't be written.
    """
    try:
        with replacing(path, overwrite) as draft, open(draft, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise PictureExists(f"{str(path)!r} exists already: choose another name, or ask to overwrite it") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"can't write {str(path)!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _png_texts(recipe: Mapping[str, Any]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    infotext = to_infotext(recipe)
    try:
        if "\0" in infotext:
            raise UnicodeError  # tEXt holds Latin-1 without NUL, and iTXt the rest
        info.add(b"tEXt", b"parameters\0" + infotext.encode("latin-1"))
    except UnicodeError:
        # A lone surrogate has no place in UTF-8: other tools see a question mark, our own JSON keeps it.
        info.add(b"iTXt", b"parameters\0\0\0\0\0" + infotext.encode("utf-8", "replace"))
    info.add(b"tEXt", b"darkroom\0" + dump_recipe(recipe).encode("ascii"))
    return info


def _exif(recipe: Mapping[str, Any]) -> bytes:
    exif = Image.Exif()
    exif[DESCRIPTION] = "darkroom:" + dump_recipe(recipe)
    comment = to_infotext(recipe).encode("utf-16-be", "replace")
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + comment
    return exif.tobytes()


def write_into(folder: str | os.PathLike[str], image: Image.Image, recipe: Mapping[str, Any]) -> Path:
    """Write a PNG picture into a folder, under a free name made from its prompt and seed. Returns its path.

    "a fox!" with seed 7 becomes `a-fox-7.png`, the next one `a-fox-7-2.png`. Raises `ImageError` as `write_picture`.
    """
    stem = file_stem(recipe)
    for count in range(1, 100_000):
        path = Path(folder) / (f"{stem}.png" if count == 1 else f"{stem}-{count}.png")
        if not os.path.lexists(path):
            with contextlib.suppress(PictureExists):  # somebody else took the name meanwhile
                return _write(image, path, "PNG", recipe, overwrite=False)
    raise ImageError(f"{str(folder)!r} holds too many pictures named {stem!r}: use another folder")


def file_stem(recipe: Mapping[str, Any]) -> str:
    """A file name without its ending, from a recipe's prompt and seed: a-z, 0-9 and "-" only, so safe everywhere."""
    words = re.findall(r"[a-z0-9]+", str(recipe.get("prompt") or "")[:1000].lower())
    text = "-".join(words)[:60].strip("-") or "picture"
    return f"{text}-{recipe['seed']}" if isinstance(recipe.get("seed"), int) else text


# Reading -------------------------------------------------------------------------------------------------------------


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Read how a picture was made, without decoding its pixels.

    Knows Darkroom's and A1111's recipes, ComfyUI's `prompt` and `workflow`, InvokeAI's `invokeai_metadata`,
    `sd-metadata` and `Dream`. Raises `ImageError` if the file isn't a PNG, JPEG or WebP picture, can't be read, or is
    absurdly large. A file whose end is missing still gives its recipe.
    """
    path = Path(path)
    with _opened(path) as (file, image):
        format, (width, height) = str(image.format), image.size
        texts, exif = read_png(file) if format == "PNG" else ({}, image.info.get("exif"))
        for key, text in read_exif(exif if isinstance(exif, bytes) else b"").items():
            texts.setdefault(key, text)
    source, recipe = _recognise(texts)
    return Metadata(format, width, height, source, recipe, texts)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """The file and its picture, header read and size checked. Whatever goes wrong with a decoder is an ImageError."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{str(path)!r} is a folder, not a picture")
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
            raise ImageError(f"{str(path)!r} is not a file")
        if status.st_size > MAX_FILE:
            raise ImageError(f"{str(path)!r} has {status.st_size} bytes: a picture may have {MAX_FILE} at most")
        with open(path, "rb") as file:
            _check_size(path, header_size(file.read(30)))
            file.seek(0)
            with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
                _check_size(path, image.size)
                yield file, image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{str(path)!r} is not a PNG, JPEG or WebP picture") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{str(path)!r} is too large: at most {MAX_PIXELS} pixels are read (8192 x 8192)") from None
    except FileNotFoundError:
        raise ImageError(f"there is no picture {str(path)!r}") from None
    except PermissionError as error:
        raise ImageError(f"can't read {str(path)!r}: {_reason(error)}") from error
    except Exception as error:  # Pillow's decoders raise nearly everything on hostile bytes
        raise ImageError(f"{str(path)!r} is broken: {_reason(error)}") from error


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{str(path)!r} is {width} x {height} pixels: at most {MAX_PIXELS} are read (8192 x 8192)")


def _recognise(texts: Mapping[str, str]) -> tuple[str | None, dict[str, Any]]:
    """Who wrote the recipe, and the recipe; the exact one first."""
    if recipe := load_recipe(texts.get("darkroom", "")):
        return "darkroom", recipe
    if "invokeai_metadata" in texts or "sd-metadata" in texts:
        for key in ("invokeai_metadata", "sd-metadata"):
            if recipe := read_invokeai(load_json(texts.get(key))):
                return "invokeai", recipe
    if recipe := read_dream(texts.get("Dream", "")):
        return "invokeai", recipe
    if "parameters" in texts:
        recipe = parse_infotext(texts["parameters"])
        if recipe.keys() - {"prompt", "negative_prompt"} or "prompt" not in texts:
            return "a1111", recipe
    if "prompt" in texts or "workflow" in texts:
        recipe = read_comfyui(load_json(texts.get("prompt")), load_json(texts.get("workflow")))
        return "comfyui", recipe
    return None, {}
