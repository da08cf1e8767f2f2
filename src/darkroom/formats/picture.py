"""Pictures with their recipe: PNG, JPEG and WebP files that say how they were made, and read back so.

Two copies of the recipe go into a file: A1111's infotext for other tools, and Darkroom's own JSON, complete and exact.

| file       | infotext                  | complete recipe                                            |
|------------|---------------------------|------------------------------------------------------------|
| PNG        | text chunk `parameters`   | text chunk `darkroom`                                      |
| JPEG, WebP | EXIF `UserComment`        | EXIF `ImageDescription`, the JSON after the word "darkroom:" |
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ..errors import ImageError
from .chunks import DESCRIPTION, EXIF_IFD, USER_COMMENT, header_size, read_exif, read_png
from .disk import sync_folder
from .foreign import read_comfyui, read_dream, read_invokeai
from .infotext import parse_infotext, to_infotext
from .recipe import dump_recipe, load_json, load_recipe

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
    """Write a file so that it appears whole or not at all: a temporary file beside it, fsync, then its name.

    Raises `PictureExists` if the file exists and `overwrite` is false (even if it appeared a moment ago), and
    `ImageError` if it can't be written.
    """
    temporary = path.parent / f".darkroom-{secrets.token_hex(8)}.part"
    try:
        if not overwrite and os.path.lexists(path):
            raise FileExistsError
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _rename(temporary, path, overwrite)
        finally:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(temporary)
        sync_folder(path.parent)
    except FileExistsError:
        raise PictureExists(f"{str(path)!r} exists already: choose another name, or ask to overwrite it") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"can't write {str(path)!r}: {_reason(error)}") from error


def _rename(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, it fails if the name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError from None
        os.rename(temporary, path)


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
