"""What a picture file's bytes say before a decoder sees them: its format and size, how many frames, how much else.

Pillow reads all that stands before the pixels when it opens a file: a million text chunks, 75 MB of comments, or 5,000
EXIF tags that each claim the same megabyte cost seconds and gigabytes. `check` walks the file's skeleton, reads a few
bytes of each part, and refuses such a file at once. No torch, no Pillow.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from .errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # what is read, where Pillow can
NAMES = "PNG, JPEG or WebP picture, nor one in GIF, BMP, TIFF or AVIF"  # "is not a ..."
MAX_BESIDE = 16 * 2**20  # bytes of texts, profiles and the like
MAX_PARTS = 100_000  # chunks, segments or blocks
MAX_TAGS = 64 * 2**20  # bytes that the tags of one TIFF directory claim
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def format_of(head: bytes) -> str | None:
    """The format by a file's first 16 bytes; None for what is no picture we read."""
    if head.startswith(PNG_SIGNATURE):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    return "BMP" if head[:2] == b"BM" else None


def size_of(head: bytes) -> tuple[int, int]:
    """Width and height from the first 30 bytes of a PNG, WebP, GIF or BMP file, (0, 0) for others.

    Pillow's WebP reader allocates the whole picture, and warns on stderr, before it says how large it is.
    """
    kind, head = format_of(head), head.ljust(30, b"\0")
    if kind == "PNG":
        return struct.unpack(">II", head[16:24])
    if kind == "GIF":
        return struct.unpack("<HH", head[6:10])
    if kind == "BMP" and int.from_bytes(head[14:18], "little") >= 40:
        return int.from_bytes(head[18:22], "little"), abs(int.from_bytes(head[22:26], "little", signed=True))
    if kind != "WEBP":
        return 0, 0
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if head[12:16] == b"VP8 ":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 0, 0


def check(file: BinaryIO, what: str) -> int:
    """Refuse a picture file that holds absurdly much beside its pixels; leaves it at its beginning.

    Returns how many frames it is known to have, 1 where the format has no more or doesn't say. Raises ImageError, with
    `what` as the picture's name.
    """
    head = file.read(30)
    parts = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp, "GIF": _gif, "TIFF": _tiff}.get(format_of(head) or "")
    beside = frames = 0
    if parts is not None:
        for number, (size, frame) in enumerate(parts(file)):
            beside += size
            frames += frame
            if number >= MAX_PARTS:
                raise ImageError(f"{what} has more than {MAX_PARTS:,} parts: that is no picture; write it anew")
            if beside > MAX_BESIDE:
                raise ImageError(
                    f"{what} holds more than {MAX_BESIDE // 2**20} MB of texts and profiles beside its pixels: "
                    "write it anew without them"
                )
    file.seek(0)
    return max(frames, 1)


def tags_claim(block: bytes) -> int:
    """How many bytes the tags of an EXIF block's first directory claim to have, more than once where they overlap."""
    block = block.removeprefix(b"Exif\0\0")
    order = "<" if block[:2] == b"II" else ">"
    if len(block) < 8:
        return 0
    (at,) = struct.unpack_from(order + "I", block, 4)
    if at + 2 > len(block):
        return 0
    (count,) = struct.unpack_from(order + "H", block, at)
    entries = block[at + 2 : at + 2 + 12 * count]
    return sum(
        _UNITS.get(kind, 1) * size for _, kind, size, _ in struct.iter_unpack(order + "HHII", _whole(entries, 12))
    )


# Each walk gives, part by part, how many bytes of it a decoder would read before the pixels, and whether it is a frame.
_Parts = Iterator[tuple[int, bool]]
_UNITS = {
    3: 2,
    4: 4,
    5: 8,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}  # bytes of TIFF's types; else 1


def _whole(entries: bytes, size: int) -> bytes:
    return entries[: len(entries) // size * size]


def _exif(file: BinaryIO, length: int) -> _Parts:
    """A block of EXIF, or whatever stands in its place."""
    yield length, False
    if tags_claim(file.read(length)) > MAX_TAGS:
        yield MAX_BESIDE + 1, False


def _png(file: BinaryIO) -> _Parts:
    file.seek(len(PNG_SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if kind == b"eXIf":
            yield from _exif(file, length)
            file.seek(4, os.SEEK_CUR)
            continue
        yield 0 if kind in (b"IDAT", b"fdAT") else length, kind == b"fcTL"
        file.seek(length + 4, os.SEEK_CUR)


def _jpeg(file: BinaryIO) -> _Parts:
    file.seek(2)
    while len(head := file.read(2)) == 2:
        if head == b"\xff\xff":  # padding
            file.seek(-1, os.SEEK_CUR)
            yield 1, False
            continue
        if head[0] != 0xFF or head[1] in (0xDA, 0xD9):  # the pixels begin
            return
        if head[1] == 0x01 or 0xD0 <= head[1] <= 0xD8:
            yield 2, False
            continue
        length = max(int.from_bytes(file.read(2), "big") - 2, 0)
        if head[1] == 0xE1:
            yield from _exif(file, length)
            continue
        yield length + 2, False
        file.seek(length, os.SEEK_CUR)


def _webp(file: BinaryIO) -> _Parts:
    file.seek(12)
    while len(head := file.read(8)) == 8:
        kind, length = head[:4], int.from_bytes(head[4:], "little")
        if kind == b"EXIF":
            yield from _exif(file, length)
            file.seek(length % 2, os.SEEK_CUR)
            continue
        yield 0 if kind in (b"VP8 ", b"VP8L", b"ANMF", b"ALPH") else length, kind == b"ANMF"
        file.seek(length + length % 2, os.SEEK_CUR)


def _gif(file: BinaryIO) -> _Parts:
    file.seek(10)
    flags = file.read(3)
    if len(flags) == 3 and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)
    seen = blocks = 0
    while kind := file.read(1):
        if kind == b"\x2c":
            block = file.read(9)
            if len(block) < 9:
                return
            if block[8] & 0x80:
                file.seek(3 << (block[8] & 7) + 1, os.SEEK_CUR)
            seen += 1
        elif kind != b"\x21":
            return
        file.seek(1, os.SEEK_CUR)  # the label, or the size of a code
        yield 1, kind == b"\x2c"
        while length := int.from_bytes(file.read(1), "big"):
            blocks += 1
            if not seen:  # a comment before the first frame
                yield length, False
            elif blocks > MAX_PARTS:  # enough to know that there are several
                return
            file.seek(length, os.SEEK_CUR)


def _tiff(file: BinaryIO) -> _Parts:
    """Directories, a frame each; the strips of pixels aren't among the tags' own bytes."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    form, entry, width = ("Q", "HHQQ", 8) if big else ("I", "HHII", 4)
    (at,) = struct.unpack(order + form, head[8:16] if big else head[4:8]) if len(head) == 16 else (0,)
    seen = set[int]()
    while at and at not in seen and len(seen) < 1000:
        seen.add(at)
        file.seek(at)
        raw = file.read(8 if big else 2)
        if len(raw) < (8 if big else 2):
            return
        (count,) = struct.unpack(order + ("Q" if big else "H"), raw)
        size = struct.calcsize(order + entry)
        if count > 4096:
            raise ImageError(f"the picture has a directory of {count} tags: that is no picture")
        entries = _whole(file.read(size * count), size)
        claimed = sum(_UNITS.get(kind, 1) * n for _, kind, n, _ in struct.iter_unpack(order + entry, entries))
        # Offsets of many strips are large and honest; what is claimed many times over isn't.
        yield 0 if claimed <= MAX_BESIDE else MAX_BESIDE + 1, True
        raw = file.read(width)
        (at,) = struct.unpack(order + form, raw) if len(raw) == width else (0,)
