"""The texts inside picture files: PNG chunks and EXIF tags, read with bounds; nothing here decodes pixels."""

from __future__ import annotations

import os
import struct
import zlib
from typing import BinaryIO, Literal

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
