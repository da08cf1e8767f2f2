"""Texts inside picture files: encodings that lie, formats beyond PNG, lowest bits, and files with absurdly much."""

from __future__ import annotations

import gzip
import json
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, features

from darkroom.errors import ImageError
from darkroom.formats.picture import read_metadata, write_png

LINE = "\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, Model: m"
TEXT = "ein Boot, schön, 湖" + LINE


def png(tmp_path: Path, *chunks: tuple[bytes, bytes], count: int = 1) -> Path:
    """A small PNG file with raw chunks before its pixels, `count` times."""
    buffer = BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "PNG")
    plain = buffer.getvalue()
    at = plain.index(b"IDAT") - 4
    raw = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    (tmp_path / "a.png").write_bytes(plain[:at] + b"".join(raw) * count + plain[at:])
    return tmp_path / "a.png"


def with_exif(tmp_path: Path, name: str, tags: dict[int, Any], inner: dict[int, Any] | None = None) -> Path:
    exif = Image.Exif()
    for tag, value in tags.items():
        exif[tag] = value
    if inner:
        exif.get_ifd(0x8769).update(inner)
    Image.new("RGB", (8, 6)).save(tmp_path / name, exif=exif.tobytes())
    return tmp_path / name


# Encodings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "prompt"),
    [
        (TEXT.encode(), "ein Boot, schön, 湖"),
        (("schön" + LINE).encode("latin-1"), "schön"),
        (("a boat" + LINE).encode(), "a boat"),
    ],
)
def test_text_chunks_are_utf8_or_latin1(tmp_path: Path, data: bytes, prompt: str) -> None:
    for kind, body in ((b"tEXt", data), (b"zTXt", b"\0" + zlib.compress(data))):
        found = read_metadata(png(tmp_path, (kind, b"parameters\0" + body)))
        assert (found.recipe["prompt"], found.recipe["seed"]) == (prompt, 5)


def test_our_own_latin1_is_never_utf8_by_chance(tmp_path: Path) -> None:
    """These two letters in Latin-1 are the bytes of one in UTF-8."""
    path = write_png(Image.new("RGB", (8, 6)), tmp_path / "a.png", {"prompt": "Ã¶", "steps": 1, "seed": 2})
    assert read_metadata(path).texts["parameters"].startswith("Ã¶\n")


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png", "a.tiff"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + TEXT.encode("utf-16-be"),
        b"UNICODE\0" + TEXT.encode("utf-16-le"),
        b"UNICODE\0" + TEXT.encode("utf-16"),
        b"UNICODE\0" + TEXT.encode(),
        b"Unicode\0" + TEXT.encode() + b"\0\0",
        b"ASCII\0\0\0" + TEXT.encode(),
        b"ASCII\0\0\0" + TEXT.encode("utf-16-le"),
        b"JIS\0\0\0\0\0" + TEXT.encode(),
        b"\0" * 8 + TEXT.encode(),
        TEXT.encode(),
    ],
)
def test_comments_whose_code_lies(tmp_path: Path, name: str, comment: bytes) -> None:
    found = read_metadata(with_exif(tmp_path, name, {}, {0x9286: comment}))
    assert (found.source, found.recipe.get("prompt")) == ("a1111", "ein Boot, schön, 湖")


def test_a_comment_in_jis(tmp_path: Path) -> None:
    comment = b"JIS\0\0\0\0\0" + ("湖" + LINE).encode("iso2022_jp")
    assert read_metadata(with_exif(tmp_path, "a.jpg", {}, {0x9286: comment})).recipe["prompt"] == "湖"


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
@pytest.mark.parametrize("comment", ["Screenshot", "Created with GIMP", "DCIM: 1, Model: X, Size: 3x4", "  "])
def test_an_ordinary_comment_is_no_recipe(tmp_path: Path, name: str, comment: str) -> None:
    path = with_exif(tmp_path, name, {0x010E: comment}, {0x9286: b"ASCII\0\0\0" + comment.encode()})
    found = read_metadata(path)
    assert (found.source, found.recipe) == (None, {})
    assert not comment.strip() or comment in found.texts.values()


def test_places_where_other_tools_put_theirs(tmp_path: Path) -> None:
    fooocus = {"prompt": "a boat", "steps": 20, "base_model": "m", "metadata_scheme": "fooocus"}
    path = with_exif(tmp_path, "a.jpg", {0x9286: json.dumps(fooocus), 0x927C: "fooocus"})
    assert (read_metadata(path).source, read_metadata(path).recipe["prompt"]) == ("fooocus", "a boat")
    swarm = {"sui_image_params": {"prompt": "a boat", "steps": 3, "swarm_version": "0"}}
    assert read_metadata(with_exif(tmp_path, "b.jpg", {0x0110: json.dumps(swarm)})).source == "swarmui"
    comment = b"UNICODE\0" + json.dumps(swarm).encode("utf-16-le")
    assert read_metadata(with_exif(tmp_path, "c.webp", {}, {0x9286: comment})).source == "swarmui"
    path = with_exif(tmp_path, "d.jpg", {0x9C9C: TEXT.encode("utf-16-le") + b"\0\0"})
    assert read_metadata(path).recipe["prompt"] == "ein Boot, schön, 湖"
    assert read_metadata(with_exif(tmp_path, "e.jpg", {0x010E: "a boat" + LINE})).recipe["prompt"] == "a boat"
    Image.new("RGB", (8, 6)).save(tmp_path / "f.jpg", comment=("a boat" + LINE).encode())
    assert read_metadata(tmp_path / "f.jpg").recipe["prompt"] == "a boat"


DRAW = json.dumps({"c": 'a "boat" & <lake>', "uc": "fog", "sampler": "Euler A", "seed": 5, "steps": 20, "scale": 7})


@pytest.mark.parametrize("form", ["alt", "plain", "attribute"])
def test_draw_things_in_xmp(tmp_path: Path, form: str) -> None:
    text = DRAW.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    inner = {
        "alt": f"<exif:UserComment><rdf:Alt><rdf:li xml:lang='x-default'>{text}</rdf:li></rdf:Alt></exif:UserComment>",
        "plain": f"<exif:UserComment>{text}</exif:UserComment>",
        "attribute": f'<rdf:Description exif:UserComment="{text}"/>',
    }[form]
    packet = f"<x:xmpmeta><rdf:RDF>{inner}</rdf:RDF></x:xmpmeta>".encode()
    chunk = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.webp", xmp=packet)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", xmp=packet)
    for path in (png(tmp_path, chunk), tmp_path / "a.webp", tmp_path / "a.jpg"):
        found = read_metadata(path)
        assert (found.source, found.recipe["prompt"]) == ("drawthings", 'a "boat" & <lake>')


def test_draw_things_words_in_xmps_description(tmp_path: Path) -> None:
    words = "a &lt;boat&gt;&#xA;-fog&#xA;Steps: 8, Sampler: Euler A, Guidance Scale: 7.0, Seed: 5, Seed Mode: Legacy"
    inner = f"<dc:description><rdf:Alt><rdf:li xml:lang='x-default'>{words}</rdf:li></rdf:Alt></dc:description>"
    packet = f"<x:xmpmeta><rdf:RDF>{inner}</rdf:RDF></x:xmpmeta>".encode()
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", xmp=packet)
    found = read_metadata(tmp_path / "a.jpg")
    assert (found.source, found.recipe["prompt"], found.recipe["negative_prompt"]) == ("drawthings", "a <boat>", "fog")
    assert found.ignored == {"seed_mode": "Legacy"}


# Formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.bmp", "a.tiff", "a.gif", "a.avif"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue", "green")]
    more = {} if name in ("a.bmp", "a.avif") else {"save_all": True, "append_images": frames[1:]}
    frames[0].save(tmp_path / name, **more)
    found = read_metadata(tmp_path / name)
    assert (found.format, found.width, found.height, found.source) == (name[2:].upper(), 16, 8, None)
    assert found.frames == (3 if more else 1)
    if name != "a.bmp":
        if name == "a.gif":
            frames[0].save(tmp_path / name, comment=("a boat" + LINE).encode())
        else:
            with_exif(tmp_path, name, {}, {0x9286: b"UNICODE\0" + TEXT.encode("utf-16-le")})
        assert read_metadata(tmp_path / name).recipe["seed"] == 5


# Lowest bits ---------------------------------------------------------------------------------------------------------


def hide(text: str, mode: str, compressed: bool) -> Image.Image:
    """A picture with a text in its lowest bits, column by column."""
    data = gzip.compress(text.encode()) if compressed else text.encode()
    name = "stealth_" + ("png" if mode == "RGBA" else "rgb") + ("comp" if compressed else "info")
    bits = np.unpackbits(np.frombuffer(name.encode() + struct.pack(">I", 8 * len(data)) + data, np.uint8))
    pixels = np.random.default_rng(0).integers(0, 256, (96, 64, len(mode)), dtype=np.uint8)
    flat = pixels[:, :, 3:] if mode == "RGBA" else pixels
    line = flat.transpose(1, 0, 2).reshape(-1).copy()
    line[: len(bits)] = line[: len(bits)] & 254 | bits
    flat[:] = line.reshape(64, 96, -1).transpose(1, 0, 2)
    return Image.fromarray(pixels, mode)


NOVELAI = {"prompt": "a boat", "uc": "fog", "steps": 20, "scale": 7, "seed": 5, "sampler": "k_euler_ancestral"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
@pytest.mark.parametrize("compressed", [True, False])
def test_what_hides_in_lowest_bits(tmp_path: Path, mode: str, compressed: bool) -> None:
    wrapped = json.dumps({"Description": "a boat", "Software": "NovelAI", "Comment": json.dumps(NOVELAI)})
    hide(wrapped, mode, compressed).save(tmp_path / "a.png")
    hide(wrapped, mode, compressed).save(tmp_path / "a.webp", lossless=True, exact=True)
    for name in ("a.png", "a.webp"):
        found = read_metadata(tmp_path / name)
        assert (found.source, found.recipe["prompt"], found.recipe["seed"]) == ("novelai", "a boat", 5)
        assert "stealth" in found.texts
    hide("a boat" + LINE, mode, compressed).save(tmp_path / "b.png")
    assert (read_metadata(tmp_path / "b.png").source, read_metadata(tmp_path / "b.png").recipe["seed"]) == ("a1111", 5)
    cut = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(cut[: len(cut) // 2])
    assert read_metadata(tmp_path / "b.png").source is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@given(st.binary(max_size=60), st.sampled_from(["stealth_pnginfo", "stealth_pngcomp"]))
@settings(max_examples=100, deadline=None)
def test_any_hidden_bytes_are_inert(tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str) -> None:
    bits = np.unpackbits(np.frombuffer(name.encode() + data, np.uint8))
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :, 3].T.reshape(-1)[: len(bits)] |= bits
    alpha = np.zeros(1024, np.uint8)
    alpha[: len(bits)] = bits
    pixels[:, :, 3] = alpha.reshape(32, 32).T
    path = tmp_path_factory.getbasetemp() / "hidden.png"
    Image.fromarray(pixels, "RGBA").save(path)
    assert read_metadata(path).width == 32


# Absurdly much -------------------------------------------------------------------------------------------------------


def refused(path: Path, match: str) -> None:
    began = time.process_time()
    with pytest.raises(ImageError, match=match):
        read_metadata(path)
    assert time.process_time() - began < 1  # of a processor's own time, hence in any company


def test_a_million_chunks_and_75_megabytes_are_refused_at_once(tmp_path: Path) -> None:
    refused(png(tmp_path, (b"tEXt", b"a\0b"), count=1_000_000), "more than 100,000 parts")
    refused(png(tmp_path, (b"tEXt", b"a\0" + bytes(3 * 2**20)), count=25), "more than 16 MB")
    refused(png(tmp_path, (b"iCCP", bytes(2**20)), count=75), "more than 16 MB")
    buffer = BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG")
    plain = buffer.getvalue()
    for kind in (b"\xff\xfe", b"\xff\xe1", b"\xff\xef"):
        segment = kind + struct.pack(">H", 60_002) + bytes(60_000)
        (tmp_path / "a.jpg").write_bytes(plain[:2] + segment * 1250 + plain[2:])
        refused(tmp_path / "a.jpg", "more than 16 MB")
    (tmp_path / "a.jpg").write_bytes(plain[:2] + b"\xff\xfe\0\3x" * 1_000_000 + plain[2:])
    refused(tmp_path / "a.jpg", "more than 100,000 parts")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.webp", exif=bytes(75 * 2**20))
    refused(tmp_path / "a.webp", "more than 16 MB")
    buffer = BytesIO()
    Image.new("P", (8, 6)).save(buffer, "GIF")
    gif = buffer.getvalue()
    at = gif.index(b"\x2c")
    (tmp_path / "a.gif").write_bytes(gif[:at] + b"\x21\xfe\2xx\0" * 1_000_000 + gif[at:])
    refused(tmp_path / "a.gif", "more than 100,000 parts")


def claiming(tags: int, each: int) -> bytes:
    """An EXIF block whose tags all claim the same bytes."""
    entries = b"".join(struct.pack("<HHII", tag, 7, each, 8) for tag in range(tags))
    return b"II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(4) + bytes(max(each - 14 - 12 * tags, 0))


def test_tags_that_claim_the_same_bytes_are_refused(tmp_path: Path) -> None:
    refused(png(tmp_path, (b"eXIf", claiming(60_000, 8 * 2**20))), "more than 16 MB")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.webp", exif=claiming(4000, 2**20))
    refused(tmp_path / "a.webp", "more than 16 MB")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=claiming(4000, 60_000))
    refused(tmp_path / "a.jpg", "more than 16 MB")
    (tmp_path / "a.tiff").write_bytes(claiming(4000, 2**20))
    refused(tmp_path / "a.tiff", "more than 16 MB")


@given(
    st.binary(max_size=200), st.sampled_from([b"GIF89a", b"II*\0\x08\0\0\0", b"MM\0*", b"BM", b"\0\0\0\x1cftypavif"])
)
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_of_other_formats(tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "other"
    path.write_bytes(magic + data)
    try:
        read_metadata(path)
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.filterwarnings("ignore")
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_pictures_of_other_formats(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["gif", "tiff", "bmp"]))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    Image.new("RGB", (16, 16)).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_metadata(path)
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_pillow_finds_what_we_write_beside_other_texts(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", TEXT)
    info.add_itxt("Comment", "drawn by hand")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png", pnginfo=info)
    assert read_metadata(tmp_path / "a.png").recipe["prompt"] == "ein Boot, schön, 湖"
