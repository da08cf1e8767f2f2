"""Where the files in a tar archive lie: headers only, nothing unpacked, nothing believed.

The format: POSIX pax (IEEE Std 1003.1, pax utility, "ustar Interchange Format") and GNU's long names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..errors import TrainingError

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
