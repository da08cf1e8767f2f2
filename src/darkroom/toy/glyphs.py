"""Pictures of the objects: Noto Color Emoji (SIL Open Font License), from the shipped sheet or from the font itself."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import TrainingError
from ..images import FORMATS
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
Glyphs = Mapping[tuple[str, int], Glyph]
"""(noun, side) -> glyph."""


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
    return fit(canvas.crop(box), side)


def fit(picture: Image.Image, side: int) -> Image.Image:
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
        found |= _in_sizes(noun, sheet.crop((x, y, x + SHEET_SIDE, y + SHEET_SIDE)))
    return found


def _in_sizes(noun: str, picture: Image.Image) -> dict[tuple[str, int], Glyph]:
    """A picture of SHEET_SIDE pixels in every size of `SIZES`."""
    return {(noun, side): to_glyph(fit(picture, side) if side != SHEET_SIDE else picture) for side in SIZES.values()}


class Drawings(Mapping[tuple[str, int], Glyph]):
    """(noun, side) -> glyph, `times` as large as `SIZES` says: from a folder of NOUN.png, of any size.

    Raises TrainingError where one is missing or can't be read, when it is asked for.
    """

    def __init__(self, folder: Path, times: int) -> None:
        self.folder, self.times = folder, times
        self._read = functools.lru_cache(maxsize=None)(self._drawn)

    def _drawn(self, noun: str, side: int) -> Image.Image:
        return fit(_drawing(self.folder / f"{noun}.png", self.times * side), self.times * side)

    def __getitem__(self, key: tuple[str, int]) -> Glyph:
        return to_glyph(self._read(*key))

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((noun, side) for noun in OBJECTS for side in SIZES.values())

    def __len__(self) -> int:
        return len(OBJECTS) * len(SIZES)

    @property
    def others(self) -> Sequence[Glyph]:
        """The drawings of its folder "others", in the order of their names; each is read when it is asked for."""
        return _Files(sorted((self.folder / "others").glob("*.png")), SHEET_SIDE * self.times)


class _Files(Sequence[Glyph]):
    """Glyphs in files, all of one side."""

    def __init__(self, files: Sequence[Path], side: int) -> None:
        self._files, self._side = files, side

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: Any) -> Any:
        return to_glyph(_drawing(self._files[i], self._side, opaque=True))


def new_glyphs(noun: str, source: str | Path | None = None) -> Glyphs:
    """The glyph of an object that is none of ours, in every size of `SIZES`.

    `source` is an emoji, or a PNG or WebP file whose transparency leaves the object; None: the emoji that Unicode calls
    by the noun. Raises TrainingError for an object that we have, a name or a file that says nothing, and where an emoji
    is asked for without its font.
    """
    if noun in OBJECTS:
        raise TrainingError(f"{noun!r} is one of the built-in objects; a new one has another name")
    text = str(source) if source is not None else _emoji_called(noun)
    if text.lower().endswith((".png", ".webp")):
        return _in_sizes(noun, _drawing(Path(text)))
    if not text or text.isascii() or len(text) > 16:
        raise TrainingError(f"{text[:100]!r} is no emoji and no .png or .webp file; give one of them")
    return _in_sizes(noun, render(text, SHEET_SIDE, find_font()))


def _emoji_called(noun: str) -> str:
    for name in (noun, f"{noun} face"):
        try:
            return unicodedata.lookup(name)
        except KeyError:
            continue
    raise TrainingError(f"Unicode has no emoji called {noun[:60]!r}; give the emoji itself, or a picture of it")


def _drawing(path: Path, side: int = SHEET_SIDE, opaque: bool = False) -> Image.Image:
    try:
        with Image.open(path, formats=FORMATS) as file:
            if max(file.size) > 4096:
                raise TrainingError(f"{str(path)[:200]!r} is {file.width}x{file.height} pixels; 4096 a side are enough")
            picture = file.convert("RGBA")
    except TrainingError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others
        raise TrainingError(f"{str(path)[:200]!r} can't be read as a picture ({error}); replace it") from error
    box = picture.getbbox()
    if box is None or (picture.getchannel("A").getextrema()[0] == 255 and not opaque):
        raise TrainingError(f"{str(path)[:200]!r} has no transparent ground around an object; cut the object out")
    return fit(picture.crop(box), side)


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
