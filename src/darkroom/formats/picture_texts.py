"""The texts inside picture files, read with bounds: PNG chunks, EXIF, XMP, comments, and what hides in lowest bits.

All come under the keys that a PNG file has for them: `parameters`, `prompt`, `workflow`, ... A comment of EXIF's that
is a recipe by its form is `parameters` as well, another one `UserComment`.
"""

from __future__ import annotations

import html
import mmap
import os
import re
import struct
import zlib
from typing import BinaryIO, Literal

from PIL import Image

from ..picture_headers import MAX_PARTS, PNG_SIGNATURE
from .infotext import holds_settings

USER_COMMENT, DESCRIPTION, EXIF_IFD, MAKE, MODEL = 0x9286, 0x010E, 0x8769, 0x010F, 0x0110  # EXIF's numbers
_MAKER_NOTE, _XP_COMMENT, _XMP = 0x927C, 0x9C9C, 0x02BC
_TAGS = (DESCRIPTION, MAKE, MODEL, USER_COMMENT, _MAKER_NOTE, _XP_COMMENT, _XMP)

_MAX_TEXT = 4 * 2**20  # bytes of one text, after inflating
_MAX_TEXTS = 8 * 2**20  # bytes of all texts
_MAX_HIDING = 4096 * 4096  # pixels that are decoded to look into their lowest bits


def read_texts(file: BinaryIO, image: Image.Image) -> dict[str, str]:
    """The texts of a picture that Pillow has opened, and not decoded."""
    format = str(image.format)
    texts, exif = read_png(file) if format == "PNG" else ({}, image.info.get("exif"))
    found = _read_tiff(file) if format == "TIFF" else read_exif(exif if isinstance(exif, bytes) else b"")
    xmp = image.info.get("xmp") or texts.get("XML:com.adobe.xmp")
    if isinstance(xmp, bytes | str) and (told := _read_xmp(xmp)):
        found.setdefault("XMP", told)
    comment = image.info.get("comment")
    if isinstance(comment, bytes | str):
        found.setdefault("Comment", plain_text(comment) if isinstance(comment, bytes) else comment)
    for key, text in found.items():
        texts.setdefault(key, text)
    return texts


def read_png(file: BinaryIO) -> tuple[dict[str, str], bytes]:
    """The texts of a PNG file by their keys, and its EXIF block; bounded, and stopping where the file breaks off.

    Pillow finds the chunks after the pixels only by decoding them, and loses texts that aren't strict UTF-8.
    """
    texts: dict[str, str] = {}
    total, exif = 0, b""
    file.seek(len(PNG_SIGNATURE))
    for _ in range(MAX_PARTS):
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
        return name, plain_text(value)
    if kind == b"zTXt":
        inflated = _inflate(value[1:])
        return None if inflated is None else (name, plain_text(inflated))
    parts = value[2:].split(b"\0", 2)  # language, translated key, text
    if len(value) < 2 or len(parts) < 3:
        return None
    text = _inflate(parts[2]) if value[0] else parts[2]
    return None if text is None else (name, text.decode("utf-8", "replace"))


def _inflate(data: bytes, *, gzip: bool = False) -> bytes | None:
    """Inflate at most `_MAX_TEXT` bytes; None for a bomb or a broken stream."""
    inflater = zlib.decompressobj(31 if gzip else 15)
    try:
        text = inflater.decompress(data, _MAX_TEXT)
    except zlib.error:
        return None
    return text if inflater.eof else None


def plain_text(data: bytes) -> str:
    """UTF-8 if it is that, as many tools write it where the standard says Latin-1; else Latin-1."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_exif(block: bytes) -> dict[str, str]:
    """The texts in an EXIF block, under the keys they would have in a PNG file.

    Pillow's reader warns on stderr about hostile blocks, hence this small one.
    """
    return _read_directories(block.removeprefix(b"Exif\0\0")[:_MAX_TEXTS])


def _read_tiff(file: BinaryIO) -> dict[str, str]:
    """The same of a TIFF file, which is one large block."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as block:
        return _read_directories(block)


def _read_directories(block: bytes | mmap.mmap) -> dict[str, str]:
    texts: dict[str, str] = {}
    order: Literal["<", ">"] = "<" if block[:2] == b"II" else ">"
    tags = _read_tags(block, int.from_bytes(block[4:8], "little" if order == "<" else "big"), order)
    if len(tags.get(EXIF_IFD, b"")) == 4:
        inner = _read_tags(block, struct.unpack(order + "I", tags[EXIF_IFD])[0], order)
        tags = {**tags, **inner}
    for tag in (DESCRIPTION, MAKE, MODEL):
        text = plain_text(tags.get(tag, b"")).rstrip("\0")
        name, colon, rest = text.partition(":")
        if colon and name.lower() in ("darkroom", "prompt", "workflow"):  # ComfyUI writes the last two
            texts.setdefault(name.lower(), rest)
        elif tag == DESCRIPTION and text.strip():
            texts["Description"] = text
        elif text.startswith("{"):  # SwarmUI, long ago
            texts.setdefault("parameters", text)
    if USER_COMMENT in tags:
        _add_comment(texts, _user_comment(tags[USER_COMMENT]))
    if _XP_COMMENT in tags:  # Windows'
        _add_comment(texts, tags[_XP_COMMENT].decode("utf-16-le", "replace").rstrip("\0"))
    if (scheme := plain_text(tags.get(_MAKER_NOTE, b"")[:20]).strip("\0")) in ("fooocus", "a1111"):
        texts["fooocus_scheme"] = scheme
    if told := _read_xmp(tags.get(_XMP, b"")):
        texts["XMP"] = told
    return texts


def _add_comment(texts: dict[str, str], text: str) -> None:
    """A comment is whatever somebody wrote: a recipe only by its form."""
    if holds_settings(text) or text.lstrip().startswith("{"):
        texts.setdefault("parameters", text)
    elif text.strip():
        texts.setdefault("UserComment", text)


def _read_tags(block: bytes | mmap.mmap, at: int, order: Literal["<", ">"]) -> dict[int, bytes]:
    """The tags of one TIFF directory that hold bytes (types 1, 2, 7) or an offset (type 4, one value), raw."""
    tags: dict[int, bytes] = {}
    if at < 8 or at + 2 > len(block):
        return tags
    (count,) = struct.unpack_from(order + "H", block, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, size = struct.unpack_from(order + "HHI", block, entry)
        if kind == 4 and size == 1:
            tags.setdefault(tag, block[entry + 8 : entry + 12])
        elif kind in (1, 2, 7) and tag in _TAGS:
            start = entry + 8 if size <= 4 else struct.unpack_from(order + "I", block, entry + 8)[0]
            tags.setdefault(tag, block[start : start + min(size, _MAX_TEXT)])
    return tags


def _user_comment(data: bytes) -> str:
    """EXIF's UserComment: eight bytes name the character code, and often lie about it, as does the byte order."""
    code, text = data[:8].upper(), data[8:]
    if code.rstrip(b"\0 ") not in (b"UNICODE", b"ASCII", b"JIS", b""):
        text = data
    if code.startswith(b"JIS") and b"\x1b" in text:
        return text.decode("iso2022_jp", "replace").rstrip("\0")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return text.decode("utf-16", "replace").rstrip("\0")
    inside = text.rstrip(b"\0")
    if b"\0" in inside or (code.startswith(b"UNICODE") and not _is_utf8(inside)):
        # EXIF says "Unicode" and no more: infotext is mostly ASCII, whose zero bytes come first in big-endian order.
        big = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", "replace").rstrip("\0")
    return plain_text(inside)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


_LIST = r"\s*(?:<rdf:(?:Alt|Seq|Bag)\b[^>]*>\s*<rdf:li\b[^>]*>)?([^<]*)<"
_XMP_TEXTS = tuple(
    re.compile(rf'<{name}\b[^>]*>{_LIST}|\b{name}="([^"]*)"') for name in ("exif:UserComment", "dc:description")
)


def _read_xmp(data: bytes | str) -> str | None:
    """The user's comment in an XMP packet, where Draw Things keeps its recipe, or else the description, where it keeps
    it in words."""
    text = plain_text(data[:_MAX_TEXTS]) if isinstance(data, bytes) else data
    found = (match for pattern in _XMP_TEXTS if (match := pattern.search(text)))
    told = (html.unescape(match[1] or match[2] or "").strip() for match in found)
    return next((one for one in told if one), None)


# Lowest bits ---------------------------------------------------------------------------------------------------------


def read_stealth(image: Image.Image) -> str | None:
    """The text that NovelAI, and extensions of A1111, hide in the lowest bits of alpha or of red, green and blue.

    Bits go down the columns, the highest of a byte first: a signature, the text's length in bits (32 of them), the
    text, compressed by gzip if the signature ends in "comp". None for a picture without one, for a lossy format, and
    for one that is too large or can't be decoded.
    """
    import numpy as np

    if image.format == "JPEG" or image.mode not in ("RGB", "RGBA") or image.width * image.height > _MAX_HIDING:
        return None
    try:
        pixels = np.asarray(image)
    except Exception:  # a decoder's, on a file that is cut short
        return None
    alpha = pixels[:, :, 3:].transpose(1, 0, 2).reshape(-1) if image.mode == "RGBA" else None
    colours = pixels[:, :, :3].transpose(1, 0, 2).reshape(-1)
    for bits, name in ((alpha, b"stealth_png"), (colours, b"stealth_rgb")):
        if bits is None or bits.size < 152:
            continue
        head = np.packbits(bits[:152] & 1).tobytes()
        length = int.from_bytes(head[15:], "big")
        if head[:15] not in (name + b"info", name + b"comp") or not 0 < length <= min(bits.size - 152, 8 * _MAX_TEXT):
            continue
        data = np.packbits(bits[152 : 152 + length // 8 * 8] & 1).tobytes()
        text = _inflate(data, gzip=True) if head[11:15] == b"comp" else data
        if text is not None:
            return text.decode("utf-8", "replace")
    return None
