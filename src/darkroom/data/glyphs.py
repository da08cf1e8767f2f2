"""Pictures of the objects: Noto Color Emoji (SIL Open Font License), from the shipped sheet or from the font itself."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from darkroom.errors import TrainingError

from .objects import OBJECTS, SIZES

FONT_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
)
STRIKE = 109  # the one bitmap size the font has
SHEET_SIDE = max(SIZES.values())
SHEET_COLUMNS = 12

Glyph = NDArray[np.float32]
"""[side, side, 4]: red, green, blue (0..1, premultiplied by alpha) and alpha."""


def find_font() -> Path:
    """Where the font is. Raises TrainingError, saying how to get it."""
    for place in FONT_PLACES:
        if Path(place).is_file():
            return Path(place)
    raise TrainingError("Noto Color Emoji was not found; install the package fonts-noto-color-emoji")


def render(emoji: str, side: int, font: Path) -> Image.Image:
    """One emoji, cropped to its ink and fitted into a square of `side` pixels (RGBA)."""
    face = ImageFont.truetype(str(font), STRIKE)
    canvas = Image.new("RGBA", (4 * STRIKE, 2 * STRIKE))
    ImageDraw.Draw(canvas).text((STRIKE // 2, STRIKE // 2), emoji, font=face, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise TrainingError(f"the font has no picture for {emoji!r}")
    return _fit(canvas.crop(box), side)


def _fit(picture: Image.Image, side: int) -> Image.Image:
    """Scale to fit a square, centred. Resizing premultiplies, so that transparent pixels bleed no colour."""
    ratio = side / max(picture.size)
    width, height = (max(1, round(s * ratio)) for s in picture.size)
    small = picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (side, side))
    square.paste(small, ((side - width) // 2, (side - height) // 2))
    return square


def write_sheet(path: Path, font: Path) -> None:
    """Render every object onto one lossless picture: what the package ships, so that no font is needed to judge."""
    rows = -(-len(OBJECTS) // SHEET_COLUMNS)
    sheet = Image.new("RGBA", (SHEET_COLUMNS * SHEET_SIDE, rows * SHEET_SIDE))
    for i, emoji in enumerate(OBJECTS.values()):
        at = (i % SHEET_COLUMNS * SHEET_SIDE, i // SHEET_COLUMNS * SHEET_SIDE)
        sheet.paste(render(emoji, SHEET_SIDE, font), at)
    sheet.save(path, "WEBP", lossless=True, quality=100, method=6)


def to_glyph(picture: Image.Image) -> Glyph:
    """RGBA to premultiplied floats."""
    a = np.asarray(picture.convert("RGBA"), np.float32) / 255
    return np.concatenate([a[..., :3] * a[..., 3:], a[..., 3:]], axis=-1)


@functools.cache
def load_glyphs() -> dict[tuple[str, int], Glyph]:
    """(noun, side) -> glyph, for every object in every size of `SIZES`."""
    with resources.files(__package__).joinpath("glyphs.webp").open("rb") as f:
        sheet = Image.open(f).convert("RGBA")
    found: dict[tuple[str, int], Glyph] = {}
    for i, noun in enumerate(OBJECTS):
        x, y = i % SHEET_COLUMNS * SHEET_SIDE, i // SHEET_COLUMNS * SHEET_SIDE
        picture = sheet.crop((x, y, x + SHEET_SIDE, y + SHEET_SIDE))
        for side in SIZES.values():
            found[noun, side] = to_glyph(_fit(picture, side) if side != SHEET_SIDE else picture)
    return found


def other_emoji(font: Path, side: int, ranges: Iterable[tuple[int, int]] = ((0x1F300, 0x1F5FF), (0x1F600, 0x1F64F),
                (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x1FA70, 0x1FAFF))) -> list[Glyph]:  # fmt: skip
    """Emoji that are no object of ours: what an autoencoder should be able to draw as well."""
    ours = set("".join(OBJECTS.values()))
    glyphs = []
    for first, last in ranges:
        for code in range(first, last + 1):
            if chr(code) not in ours:
                try:
                    picture = render(chr(code), side, font)
                except TrainingError:
                    continue
                glyphs.append(to_glyph(picture))
    return glyphs
