"""Folders of training pictures with captions, as the tools of the ecosystem lay them out.

What a picture's caption is, in this order: its line in `metadata.jsonl` (Hugging Face imagefolder), the text file
beside it (`x.txt`, `x.caption`: kohya and others), the words of its folder's name (`10_a photo of a cat`, kohya; the
number says how often a picture comes in one round), or the empty text.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from darkroom.errors import TrainingError
from darkroom.images import FORMATS
from darkroom.request import MAX_PIXELS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = (".txt", ".caption")
METADATA = "metadata.jsonl"
MAX_CAPTION = 32_000  # characters
_REPEATS = re.compile(r"(\d{1,4})_(.*)")


@dataclass(frozen=True, slots=True)
class Example:
    """One training picture."""

    path: Path
    caption: str
    width: int  # pixels, upright
    height: int
    repeats: int = 1  # how often it comes in one round of the data
    digest: str = ""  # SHA-256 of the file, 64 hexadecimal digits

    @property
    def name(self) -> str:
        """What to call it."""
        return str(self.path)

    def read(self) -> bytes:
        """The picture's bytes. Raises TrainingError."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise TrainingError(f"{str(self.path)[:200]!r} can't be read ({error.strerror})") from error


@dataclass(frozen=True, slots=True)
class Scan:
    """What a folder holds: what can be learned from, and what was left out and why."""

    examples: tuple[Example, ...]
    left_out: tuple[tuple[Path, str], ...]


def scan(folder: str | Path, smallest: int = 16) -> Scan:
    """Look at every picture of a folder and of the folders in it, in the order of their names.

    Left out, with the reason: files that are no PNG, JPEG or WebP picture or are broken, pictures with a side under
    `smallest` pixels or more than 67 million pixels, animations, and copies of a picture that came before (by content).
    Links that lead out of the folder are not followed. Raises TrainingError where there is no folder, no picture to
    learn from, or a metadata.jsonl that can't be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise TrainingError(f"there is no folder {str(root)[:200]!r}; give one with pictures and their captions")
    examples: list[Example] = []
    left_out: list[tuple[Path, str]] = []
    seen: dict[str, Path] = {}
    for place, pictures in _pictures(root):
        captions = _metadata(place)
        repeats, words = _folder_words(place) if place != root else (1, "")
        for path in pictures:
            found = _look(path, smallest)
            if isinstance(found, str):
                left_out.append((path, found))
                continue
            width, height, digest = found
            if digest in seen:
                left_out.append((path, f"the same picture as {seen[digest].relative_to(root)}"))
                continue
            seen[digest] = path
            caption = captions.get(path.name)
            if caption is None:
                caption = _beside(path)
            caption = words if caption is None else caption
            if len(caption) > MAX_CAPTION:
                left_out.append((path, f"its caption has {len(caption):,} characters"))
                continue
            examples.append(Example(path, caption, width, height, repeats, digest))
    if not examples:
        why = f"; {left_out[0][0].name}: {left_out[0][1]}" if left_out else ""
        raise TrainingError(f"{str(root)[:200]!r} holds no picture to learn from (PNG, JPEG or WebP){why}")
    return Scan(tuple(examples), tuple(left_out))


def _pictures(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder under `root` and the pictures right in it, hidden ones left out, in the order of their names."""
    home = root.resolve()
    for name, folders, files in os.walk(root):
        place = Path(name)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found = [place / f for f in sorted(files) if not f.startswith(".") and f.lower().endswith(SUFFIXES)]
        yield place, [path for path in found if path.resolve().is_relative_to(home)]


def _look(path: Path, smallest: int) -> tuple[int, int, str] | str:
    """(width, height, SHA-256) of a picture, read to its end; or why it can't be used."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            if getattr(picture, "is_animated", False):
                return "an animation"
            if width * height > 4 * MAX_PIXELS:
                return f"{width}x{height} pixels are too many"
            if picture.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # turned on its side
                width, height = height, width
            picture.load()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others
        return f"can't be read ({type(error).__name__})"
    if min(width, height) < smallest:
        return f"{width}x{height} pixels are too few"
    return width, height, digest


def _beside(path: Path) -> str | None:
    """The caption in the text file beside a picture, None if there is none."""
    for suffix in CAPTIONS:
        file = path.with_suffix(suffix)
        if file.is_file():
            return _text(file).strip()
    return None


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > 64 << 20:
            raise TrainingError(f"{str(file)[:200]!r} is larger than 64 MB; split it")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingError(f"{str(file)[:200]!r} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise TrainingError(f"{str(file)[:200]!r} can't be read ({error.strerror})") from error


def _metadata(folder: Path) -> Mapping[str, str]:
    """File name -> caption, by the folder's metadata.jsonl; an empty mapping without one."""
    file = folder / METADATA
    if not file.is_file():
        return {}
    captions: dict[str, str] = {}
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row.get("text", row.get("caption", ""))
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise TrainingError(
                f'line {number} of {str(file)[:200]!r} is not {{"file_name": ..., "text": ...}}; correct it'
            ) from None
        captions[name] = text
    return captions


def _folder_words(folder: Path) -> tuple[int, str]:
    """kohya's folder names: "10_a cat" says ten times, and "a cat" where a picture has no caption of its own."""
    match = _REPEATS.fullmatch(folder.name)
    return (max(1, int(match[1])), match[2]) if match else (1, "")
