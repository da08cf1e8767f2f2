"""WebDataset shards: tar archives of x.jpg, x.txt, x.json, y.jpg, ...; read by an index, anywhere and in any order.

The format is that of https://github.com/webdataset/webdataset: what stands in a name before the first dot after the
last slash is the key of a sample, the rest says what of the sample it is. A picture's caption is its .txt or .caption,
or "caption", "text" or "prompt" in its .json; "repeats" there says how often it comes in one round.

Of the archives (POSIX pax, IEEE Std 1003.1, "ustar Interchange Format", and GNU's long names) only headers are read:
where which file lies. Nothing is unpacked, nothing is believed.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ..errors import TrainingError
from ..images import FORMATS
from .examples import (
    CAPTIONS,
    MAX_BYTES,
    MAX_CAPTION,
    SUFFIXES,
    Duplicates,
    Example,
    Remembered,
    Scan,
    decoded,
    fault_of,
    in_threads,
    look,
    stamp_of,
)
from .folders import WORDS

BLOCK = 512
MAX_MEMBERS = 4_000_000
MAX_EXTENDED = 1 << 20  # bytes of a header that extends another
_FILES, _FOLDER = (b"0", b"\0", b"7"), b"5"
_LINKS = {b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"7z\xbc\xaf")


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive."""

    name: str
    start: int  # its first byte in the archive
    length: int  # bytes


def members(path: Path) -> Iterator[Member]:
    """The regular files of an archive, in their order.

    Raises TrainingError for what is no plain tar archive, is cut short, or holds links, devices or names that lead out
    of a folder.
    """
    try:
        with path.open("rb") as file:
            yield from _Reader(path, file).members()
    except OSError as error:
        raise TrainingError(f"the shard {str(path)[:200]!r} can't be read ({error.strerror})") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size

    def members(self) -> Iterator[Member]:
        at = count = 0
        told: dict[str, str] = {}  # what an extended header says of the next member
        while True:
            header = self._read(at, BLOCK)
            if not header.strip(b"\0"):
                return
            self._check(header, at)
            kind, length = header[156:157], self._number(header[124:136])
            start = at + BLOCK
            if kind in (b"L", b"K", b"x", b"g"):
                if length > MAX_EXTENDED:
                    raise self._fault(f"has a header of {length:,} bytes; that is broken or hostile")
                data = self._read(start, length)
                if kind == b"L":
                    told["path"] = data.rstrip(b"\0").decode("utf-8", "replace")
                elif kind == b"x":
                    told |= self._records(data)
                at = start + _whole(length)
                continue
            if "size" in told:
                length = self._decimal(told["size"])
            name = told.get("path") or _name(header)
            told = {}
            if kind in _LINKS:
                raise self._fault(f"holds {_LINKS[kind]}, {name[:200]!r}; pack the pictures themselves")
            if kind not in (*_FILES, _FOLDER):
                raise self._fault(f"holds {name[:200]!r} of the unknown type {kind!r}; pack it anew as a plain tar")
            if name.startswith(("/", "\\")) or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts:
                raise self._fault(f"holds the name {name[:200]!r}, which leads out of a folder; pack it anew")
            if start + length > self.size:
                raise self._short(start + length)
            if kind != _FOLDER:
                count += 1
                if count > MAX_MEMBERS:
                    raise self._fault(f"holds more than {MAX_MEMBERS:,} files; split it")
                yield Member(name, start, length)
            at = start + _whole(length)

    def _read(self, at: int, length: int) -> bytes:
        self.file.seek(at)
        data = self.file.read(length)
        if len(data) < length:
            raise self._short(at + length)
        return data

    def _short(self, wanted: int) -> TrainingError:
        return self._fault(
            f"is cut short: {wanted:,} bytes or more are wanted and it has {self.size:,}; fetch it again"
        )

    def _fault(self, what: str) -> TrainingError:
        return TrainingError(f"the shard {str(self.path)[:200]!r} {what}")

    def _check(self, header: bytes, at: int) -> None:
        """A header's checksum: the sum of its bytes, the checksum's own taken as spaces."""
        wanted = sum(header) - sum(header[148:156]) + 8 * 32
        try:
            good = int(header[148:156].strip(b"\0 ") or b"-1", 8) == wanted
        except ValueError:
            good = False
        if not good:
            if at == 0 and header.startswith(_COMPRESSED):
                raise self._fault("is compressed, and can't be read by index; unpack it to a plain .tar")
            raise self._fault(f"is no tar archive, or broken at byte {at:,}; fetch or pack it again")

    def _number(self, field: bytes) -> int:
        """A size: octal digits, or, where they would not do, a big-endian number behind a byte of 128."""
        if field[0] & 0x80:
            return int.from_bytes(field[1:], "big")
        try:
            return int(field.strip(b"\0 ") or b"0", 8)
        except ValueError:
            raise self._fault(f"has a member of the size {field!r}; fetch or pack it again") from None

    def _decimal(self, text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise self._fault(f"has a member of the size {text[:40]!r}; fetch or pack it again")
        return int(text)

    def _records(self, data: bytes) -> dict[str, str]:
        """The records "LENGTH KEY=VALUE\\n" of an extended header; path and size are what matters here."""
        found: dict[str, str] = {}
        while data:
            digits, space, _ = data.partition(b" ")
            length = int(digits) if digits.isdigit() and len(digits) < 9 else 0
            record = data[len(digits) + 1 : length]
            key, equals, value = record.rstrip(b"\n").partition(b"=")
            if not space or not equals or not len(digits) < length <= len(data):
                raise self._fault("has a broken extended header; fetch or pack it again")
            if key in (b"path", b"size"):
                found[key.decode()] = value.decode("utf-8", "replace")
            data = data[length:]
        return found


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:262] == b"ustar" and header[263:265] == b"00" and (prefix := header[345:500].split(b"\0")[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "replace")


def _whole(length: int) -> int:
    """Bytes that a file takes in an archive: whole blocks."""
    return -(-length // BLOCK) * BLOCK


# --- samples


MAX_SHARDS = 100_000
MAX_JSON = 1 << 20  # bytes of a sample's .json
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


def shard_files(data: str) -> list[Path] | None:
    """The shards that `data` names: a .tar file, "a-{000..015}.tar", "{a,b}.tar", "*.tar", a folder with nothing but
    .tar files to read. None where it names something else. Raises TrainingError for a shard that is not there.
    """
    place = Path(data)
    if data and os.path.isdir(data):  # unlike Path.is_dir it takes any name
        found = sorted(p for p in place.glob("*.tar") if not p.name.startswith("."))
        others = any(p.suffix.lower() in SUFFIXES for p in place.iterdir()) if found else False
        return found if found and not others else None
    if not data.endswith((".tar", ".tgz", ".tar.gz", "}", "*")) or "://" in data:
        if "://" in data:
            raise TrainingError(f"{data[:200]!r} is an address; fetch the shards first, and name the files")
        return None
    files: list[Path] = []
    for name in braces(data):
        matches = sorted(glob.glob(name)) if any(c in name for c in "*?[") and not os.path.exists(name) else [name]
        if not matches:
            raise TrainingError(f"no shard is named like {name[:200]!r}; check the path")
        files += [Path(match) for match in matches]
    for file in files:
        if not os.path.isfile(file):
            raise TrainingError(f"there is no shard {str(file)[:200]!r}; check the path")
    return files


def braces(text: str) -> list[str]:
    """What a name with braces stands for: "a-{08..10}" is a-08, a-09, a-10; "{a,b}" is a, b. Raises TrainingError."""
    done: list[str] = []
    waiting = [text]
    while waiting:
        name = waiting.pop()
        match = _BRACES.search(name)
        if match is None:
            done.append(name)
        else:
            waiting += [name[: match.start()] + part + name[match.end() :] for part in reversed(_parts(match[1]))]
        if len(done) + len(waiting) > MAX_SHARDS:
            raise TrainingError(f"{text[:200]!r} names more than {MAX_SHARDS:,} shards; name a folder of them")
    if not done:
        raise TrainingError(f"{text[:200]!r} names no shard; check the range in its braces")
    return list(dict.fromkeys(done))


def _parts(inner: str) -> list[str]:
    """What stands between two braces: a range of numbers as wide as its first, or words between commas."""
    number = _RANGE.fullmatch(inner)
    if number is None:
        return inner.split(",")
    first, last, width = int(number[1]), int(number[2]), len(number[1])
    return [f"{n:0{width}}" for n in range(first, min(last, first + MAX_SHARDS) + 1)]


def scan_shards(files: Sequence[Path], remembered: Remembered | None = None) -> Scan:
    """All samples of shards that have a picture, in their order.

    Left out, with the reason: as by `folders.scan`. Raises TrainingError for a shard that is broken or hostile, for a
    caption that is no UTF-8, and where there is no picture to learn from.
    """
    remembered = remembered or Remembered(None)
    examples: list[Example] = []
    left_out: list[tuple[Path, str]] = []
    copies = Duplicates()
    for file in files:
        stamp = stamp_of(file)
        name = str(file.absolute())
        rows = remembered.find(name, stamp)
        if rows is None:
            rows = list(_samples(file))
            remembered.keep(name, stamp, rows)
            remembered.save()  # a shard takes its time: whoever ends us, it is known
        for member, start, length, caption, repeats, found in rows:
            why = found if isinstance(found, str) else copies.of(found[2], f"{file.name}/{member}") or fault_of(caption)
            if why is not None:
                left_out.append((file / member, why))
            else:
                width, height, digest, frames = found
                examples.append(Example(file, caption, width, height, repeats, digest, member, start, length, frames))
    if not examples:
        why = f"; {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise TrainingError(f"{str(files[0])[:200]!r} holds no picture to learn from ({', '.join(FORMATS)}){why}")
    return Scan(tuple(examples), tuple(left_out))


def _samples(file: Path) -> Iterator[tuple[Any, ...]]:
    """(member, start, length, caption, repeats, look) of each picture of a shard."""
    samples: dict[str, dict[str, Member]] = {}
    twice: list[Member] = []
    for member in members(file):
        match = _KEY.fullmatch(member.name)
        if match is not None:
            parts = samples.setdefault(match[1], {})
            if parts.setdefault(match[2].lower(), member) is not member:
                twice.append(member)
    with_picture = [
        (shown, parts)
        for parts in samples.values()
        if (shown := next((parts[s[1:]] for s in SUFFIXES if s[1:] in parts), None)) is not None
    ]

    def read(member: Member) -> bytes:
        with file.open("rb") as stream:
            stream.seek(member.start)
            return stream.read(member.length)

    def one(sample: tuple[Member, dict[str, Member]]) -> tuple[Any, ...]:
        member, parts = sample
        caption, repeats = _told(file, parts, read)
        if member.length > MAX_BYTES:
            return member.name, member.start, 0, "", 1, f"{member.length:,} bytes are too many"
        return member.name, member.start, member.length, caption, repeats, look(read(member))

    try:
        yield from in_threads(one, with_picture)
    except OSError as error:
        raise TrainingError(f"the shard {str(file)[:200]!r} can't be read ({error.strerror})") from error
    for member in twice:
        if f".{member.name.rpartition('.')[2].lower()}" in SUFFIXES:
            yield member.name, member.start, 0, "", 1, "its name comes twice in the shard"


def _told(file: Path, parts: dict[str, Member], read: Callable[[Member], bytes]) -> tuple[str, int]:
    """A sample's caption and its repeats."""
    caption: str | None = None
    for suffix in CAPTIONS:
        if caption is None and (text := parts.get(suffix[1:])) is not None:
            if text.length > 4 * MAX_CAPTION + 4:
                caption = "x" * (MAX_CAPTION + 1)  # too long, whatever it says
            else:
                caption = decoded(read(text), f"{file}/{text.name}").strip()
    repeats = 1
    if (told := parts.get("json")) is not None and told.length <= MAX_JSON:
        try:
            row = json.loads(decoded(read(told), f"{file}/{told.name}"))
            if caption is None:
                caption = next((row[word] for word in WORDS if isinstance(row.get(word), str)), None)
            repeats = row.get("repeats", 1)
            if type(repeats) is not int or not 1 <= repeats <= 9999:
                repeats = 1
        except (ValueError, AttributeError, RecursionError):
            raise TrainingError(f"{f'{file}/{told.name}'[:200]!r} is no JSON object; pack it again") from None
    return caption or "", repeats


def write_shards(examples: Sequence[Example], folder: Path, most_bytes: int, most: int) -> list[Path]:
    """Write pictures, their bytes as they are, with their captions as shards FOLDER/000000.tar, 000001.tar, ...

    Each has at most `most` pictures and, unless one alone is larger, about `most_bytes` bytes. The same pictures give
    the same bytes. Returns the shards. Raises TrainingError for a picture that has changed or gone, OSError for the
    disk.
    """
    written: list[Path] = []
    number = 0
    while number < len(examples):
        written.append(folder / f"{len(written):06d}.tar")
        first = number
        with tarfile.open(written[-1], "w", format=tarfile.PAX_FORMAT) as archive:
            while number < len(examples) and number - first < most and archive.offset < most_bytes:
                _put_sample(archive, f"{number:09d}", examples[number])
                number += 1
    return written


def _put_sample(archive: tarfile.TarFile, key: str, example: Example) -> None:
    data = example.read()
    if hashlib.sha256(data).hexdigest() != example.digest:
        raise TrainingError(
            f"{example.name[:200]!r} has changed while it was packed; leave the data alone and try again"
        )
    about = {"width": example.width, "height": example.height, "repeats": example.repeats, "sha256": example.digest}
    suffix = Path(example.member or example.path.name).suffix.lower()
    _put(archive, key + suffix, data)
    _put(archive, key + ".txt", example.caption.encode())
    _put(archive, key + ".json", json.dumps(about).encode())


def _put(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
