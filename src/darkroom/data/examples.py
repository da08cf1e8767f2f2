"""Training pictures as they lie on disk: where, with which caption, and whether they can be learned from."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ..errors import TrainingError
from ..picture_headers import FORMATS, check
from ..request import MAX_PIXELS, MAX_SIDE

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
OTHER_SUFFIXES = (".heic", ".jp2", ".jxl")  # pictures that are not read
CAPTIONS = (".txt", ".caption")
MAX_CAPTION = 32_000  # characters
MAX_BYTES = 256 << 20  # of a picture's file
SMALLEST = 16  # pixels a side
THREADS = 4  # that look at pictures; a picture of the largest size takes 200 MB in each
Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Example:
    """One training picture."""

    path: Path  # its file, or the shard that holds it
    caption: str
    width: int  # pixels, upright
    height: int
    repeats: int = 1  # how often it comes in one round of the data
    digest: str = ""  # SHA-256 of its bytes, 64 hexadecimal digits
    member: str = ""  # in a shard: its name there,
    start: int = 0  # its first byte
    length: int = -1  # and its bytes; -1: the whole file
    frames: int = 1  # more: an animation, of which the first frame is learned from

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    def read(self) -> bytes:
        """The picture's bytes. Raises TrainingError."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                return file.read(self.length)
        except OSError as error:
            raise TrainingError(f"{self.name[:200]!r} can't be read ({error.strerror})") from error


@dataclass(frozen=True, slots=True)
class Scan:
    """What there is to learn from, and what was left out and why."""

    examples: tuple[Example, ...]
    left_out: tuple[tuple[Path, str], ...]


Look = tuple[int, int, str, int] | str  # (width, height, SHA-256, frames), or why a picture can't be used


def look(data: bytes) -> Look:
    """(width, height, SHA-256, frames) of a picture, upright, decoded to its end; or why it can't be used.

    Of an animation the first frame is decoded; its frames are 2 where they aren't counted.
    """
    try:
        frames = check(io.BytesIO(data), "it")
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if getattr(picture, "is_animated", False):
                frames = max(frames, 2)
            if width * height > 4 * MAX_PIXELS or max(width, height) > 4 * MAX_SIDE:
                return f"{width}x{height} pixels are too many"
            if picture.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # turned on its side
                width, height = height, width
            if min(width, height) < SMALLEST:
                return f"{width}x{height} pixels are too few"
            if picture.mode == "F":
                return "holds floating-point numbers, whose range nothing tells"
            picture.draft(picture.mode, (1, 1))  # a JPEG is read to its end all the same, in a fraction of the time
            picture.load()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others
        return f"can't be read ({type(error).__name__})"
    return width, height, hashlib.sha256(data).hexdigest(), frames


def in_threads(function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """function(item) of each item, in their order; decoding leaves Python's lock to others."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(function, items)


def decoded(data: bytes, name: str) -> str:
    """Text that must be UTF-8. Raises TrainingError, with the first byte that isn't."""
    at = data.find(b"\0")  # UTF-8 as well, and what UTF-16 is full of
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start
    if at >= 0:
        raise TrainingError(f"{name[:200]!r} is not UTF-8 text (byte {at}); save it as UTF-8")
    return text


def is_text(text: str) -> bool:
    """Whether UTF-8 can say it: a file's name may not be UTF-8, and JSON may hold half a character."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def fault_of(caption: str) -> str | None:
    """Why a caption can't be used, or None."""
    if len(caption) > MAX_CAPTION:
        return f"its caption has {len(caption):,} characters"
    return None if is_text(caption) else "its caption has half a character (a lone surrogate)"


class Duplicates:
    """Says of each picture after the first with the same content that it is a copy."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def of(self, digest: str, name: str) -> str | None:
        """The reason to leave a picture out, or None."""
        first = self._seen.setdefault(digest, name)
        return None if first is name or first == name else f"the same picture as {first}"


class Remembered:
    """What was found in files, kept in a file of its own, so that only new and changed ones are looked at again.

    Raises TrainingError where that file is damaged or can't be written.
    """

    def __init__(self, file: Path | None) -> None:
        """None: nothing is remembered."""
        self._file = file
        self._new: list[tuple[str, str, str]] = []
        self._known: dict[str, tuple[str, str]] = {}
        if file is not None and file.exists():
            with self._database() as database:
                rows = database.execute("SELECT name, stamp, found FROM files")
                self._known = {name: (stamp, found) for name, stamp, found in rows}

    def find(self, name: str, stamp: str) -> Any:
        """What was kept of a file, None if nothing was or it had another stamp."""
        before, found = self._known.get(name, ("", ""))
        return json.loads(found) if before == stamp else None

    def keep(self, name: str, stamp: str, found: Any) -> None:
        """Remember what was found in a file of this stamp, once `save` is called."""
        if self._file is not None:
            self._new.append((name, stamp, json.dumps(found)))

    def save(self) -> None:
        """Write what is new."""
        if self._file is None or not self._new:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._database() as database:
            database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", self._new)
        self._known |= {name: (stamp, found) for name, stamp, found in self._new}
        self._new = []

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(str(self._file), timeout=60)) as database, database:
                # Whoever is killed, or has no room, before the first rows are in leaves an empty file.
                database.execute("CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, stamp TEXT, found TEXT)")
                yield database
        except sqlite3.DatabaseError as error:
            raise TrainingError(f"the index {self._file} can't be used ({error}); delete it") from error


def stamp_of(path: Path) -> str:
    """What changes when a file does: its size and the time of its last change; and when we look in another way, 2.

    Raises OSError.
    """
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns} 2"
