"""Pictures with their recipe: PNG, JPEG and WebP files that say how they were made, and read back so.

Two copies of the recipe go into a file: A1111's infotext for other tools, and Darkroom's own JSON, complete and exact.

| file       | infotext                  | complete recipe                                            |
|------------|---------------------------|------------------------------------------------------------|
| PNG        | text chunk `parameters`   | text chunk `darkroom`                                      |
| JPEG, WebP | EXIF `UserComment`        | EXIF `ImageDescription`, the JSON after the word "darkroom:" |

The complete recipe is plain ASCII, and keeps every text exactly as it was, lone surrogates included. Other tools'
recipes are read by `foreign`, from the texts that `picture_texts` finds.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ..errors import ImageError
from ..files import replacing
from ..picture_headers import FORMATS, NAMES, check, size_of
from .foreign import recognise
from .infotext import to_infotext
from .picture_texts import DESCRIPTION, EXIF_IFD, USER_COMMENT, plain_text, read_stealth, read_texts

# The recipe as JSON --------------------------------------------------------------------------------------------------

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


# Pictures ------------------------------------------------------------------------------------------------------------

MAX_PIXELS = 64 * 2**20  # 8192 x 8192
MAX_FILE = 512 * 2**20  # bytes
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


class PictureExists(ImageError):
    """A picture's file name is taken, and overwriting was not asked for."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a picture file says about itself."""

    format: str  # "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF" or "AVIF"
    width: int
    height: int
    source: str | None = None  # who wrote the recipe: "darkroom", "a1111", "comfyui", "invokeai", "novelai", ...
    recipe: dict[str, Any] = field(default_factory=dict)  # our names: prompt, seed, steps, ...
    texts: dict[str, str] = field(default_factory=dict)  # the raw texts by their keys ("parameters", "darkroom", ...)
    ignored: dict[str, Any] = field(default_factory=dict)  # what the recipe asks beyond that and changes the picture
    warnings: list[str] = field(default_factory=list)  # what could not be told for sure, one sentence each
    frames: int = 1  # the first one is read

    @property
    def not_followed(self) -> str:
        """The recipe's entries that aren't followed, for a sentence: "RNG: NV, Tiling: True"; "" if all are."""
        shown = [
            str(key) if value is True else f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
            for key, value in self.ignored.items()
        ]
        return ", ".join(one if len(one) <= 100 else one[:97] + "..." for one in shown)


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
    write_atomically(path, encoded(image, format, recipe, repr(str(path))), overwrite=overwrite)
    return path


def encoded(
    image: Image.Image, format: str, recipe: Mapping[str, Any], what: str = "the picture", quality: int | None = None
) -> bytes:
    """A picture's file with its recipe, as bytes.

    Args:
        format: "PNG", "JPEG" (4:4:4) or "WEBP".
        what: what an error's sentence calls it.
        quality: of JPEG, 1 to 100 (None: 95), and of WebP (None and 100: without loss).

    Raises `ImageError` for a recipe that isn't plain, and a JPEG whose recipe passes the 64 KB that it has room for.
    """
    if image.mode not in ("L", "RGB", "RGBA") and (format != "PNG" or image.mode not in ("LA", "I;16")):
        image = image.convert("RGB")
    buffer = BytesIO()
    if format == "PNG":
        image.save(buffer, format, pnginfo=_png_texts(recipe))
        return buffer.getvalue()
    if format == "JPEG":
        options: dict[str, Any] = {"quality": 95 if quality is None else quality, "subsampling": 0}
    else:
        options = {"lossless": True} if quality in (None, 100) else {"quality": quality}
    if format == "JPEG" and image.mode == "RGBA":
        image = image.convert("RGB")
    exif = _exif(recipe)
    if format == "JPEG" and len(exif) > 65_527:
        raise ImageError(
            f"the recipe of {what} takes {len(exif)} bytes and a JPEG has room for 65527: write a PNG or a WebP file"
        )
    image.save(buffer, format, exif=exif, **options)
    return buffer.getvalue()


def write_atomically(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write a file so that it appears whole or not at all.

    Raises `PictureExists` if the file exists and `overwrite` is false (even if it appeared a moment ago), and
    `ImageError` if it can't be written.
    """
    try:
        with replacing(path, overwrite) as draft, open(draft, "wb") as file:
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
        data = infotext.encode("latin-1")
        if plain_text(data) != infotext:
            raise UnicodeError  # it happens to be UTF-8 as well, of another text
        info.add(b"tEXt", b"parameters\0" + data)
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


def write_into(
    folder: str | os.PathLike[str], image: Image.Image, recipe: Mapping[str, Any], stem: str | None = None
) -> Path:
    """Write a PNG picture into a folder, under a free name: `stem`, or one made from its prompt and seed. Returns its
    path.

    "a fox!" with seed 7 becomes `a-fox-7.png`, the next one `a-fox-7-2.png`. Raises `ImageError` as `write_picture`.
    """
    stem = file_stem(recipe) if stem is None else stem
    for count in range(1, 100_000):
        path = Path(folder) / (f"{stem}.png" if count == 1 else f"{stem}-{count}.png")
        if not os.path.lexists(path):
            with contextlib.suppress(PictureExists):  # somebody else took the name meanwhile
                return _write(image, path, "PNG", recipe, overwrite=False)
    raise ImageError(f"{str(folder)!r} holds too many pictures named {stem!r}: use another folder")


def file_stem(recipe: Mapping[str, Any]) -> str:
    """A file name without its ending, from a recipe's prompt and seed: letters and digits of all scripts, and "-".

    So short that every file system takes it, with an ending and a number.
    """
    text = unicodedata.normalize("NFC", str(recipe.get("prompt") or "")[:1000]).lower()
    words = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in text).split()
    stem = shortened("-".join(words), 60, 150) or "picture"
    return f"{stem}-{recipe['seed']}" if isinstance(recipe.get("seed"), int) else stem


def shortened(stem: str, characters: int, size: int) -> str:
    """A file's stem cut to so many characters and bytes of UTF-8, with no letter cut in two."""
    stem = stem[:characters].encode("utf-8", "ignore")[:size].decode("utf-8", "ignore")
    return stem.strip("-")


# Reading -------------------------------------------------------------------------------------------------------------


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Read how a picture was made: from its texts, and where those hold no recipe, from its lowest bits.

    Knows Darkroom's recipes and those of the tools that `foreign` reads; `source` is None where there is none. Raises
    `ImageError` if the file isn't a picture of `picture_headers.FORMATS`, can't be read, or is absurdly large. A file
    whose end is missing still gives its recipe.
    """
    path = Path(path)
    with _opened(path) as (file, image, frames):
        format, (width, height) = str(image.format), image.size
        texts = read_texts(file, image)
        if recipe := load_recipe(texts.get("darkroom", "")):
            return Metadata(format, width, height, "darkroom", recipe, texts, frames=frames)
        found = recognise(texts)
        if found is None and (hidden := read_stealth(image)) is not None:
            texts["stealth"] = hidden
            found = recognise({"stealth": hidden})
    if found is None:
        return Metadata(format, width, height, texts=texts, frames=frames)
    return Metadata(format, width, height, found.source, found.recipe, texts, found.ignored, found.warnings, frames)


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise `ImageError` unless a file begins as a picture of a kind and a size that can be read."""
    with _opened(Path(path)):
        return


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Image.Image, int]]:
    """The file, its picture and how many frames it has, header read and size checked.

    Whatever goes wrong with a decoder is an ImageError.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{str(path)!r} is a folder, not a picture")
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
            raise ImageError(f"{str(path)!r} is not a file")
        if status.st_size > MAX_FILE:
            raise ImageError(f"{str(path)!r} has {status.st_size} bytes: a picture may have {MAX_FILE} at most")
        with open(path, "rb") as file:
            _check_size(path, size_of(file.read(30)))
            file.seek(0)
            frames = check(file, repr(str(path)))
            with Image.open(file, formats=FORMATS) as image:
                _check_size(path, image.size)
                own = getattr(image, "n_frames", 1) if image.format == "AVIF" else 1
                yield file, image, max(frames, own)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{str(path)!r} is not a {NAMES}") from None
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
