"""Pictures on one sheet: columns, rows and blocks with labels, drawn with the scalable font that Pillow brings."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from PIL import Image, ImageDraw, ImageFont

from ..errors import RequestError

Place = tuple[int, int, int]  # x, y, z
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the sheet
MAX_PIXELS = 64 * 2**20  # 8192 x 8192: what `formats.picture` reads again
MAX_SIDE = 32_768  # pixels
SMALLEST, LARGEST = 12, 40  # pixels: the height of the letters
MAX_LINES = 3  # of a label, and of the title
INK, PAPER, EMPTY = "black", "white", (225, 225, 225)
_LONGEST = 2000  # characters of a text that are looked at


@functools.lru_cache(maxsize=64)
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size=size)


@functools.lru_cache(maxsize=4096)
def _has(character: str) -> bool:
    """Whether the font has a glyph of its own for a character."""
    font = font_of(SMALLEST)
    missing, glyph = font.getmask("\uffff"), font.getmask(character)
    return character == " " or (glyph.size != missing.size or bytes(glyph) != bytes(missing))


def printable(text: str) -> str:
    """`text` in characters the font has: accents left out where need be, and the rest as escapes such as \\u72d0."""

    def shown(character: str) -> str:
        if character.isspace():
            return " "
        if character.isprintable() and _has(character):
            return character
        plain = "".join(part for part in unicodedata.normalize("NFKD", character) if not unicodedata.combining(part))
        if plain and plain != character and plain.isprintable() and all(map(_has, plain)):
            return plain
        return character.encode("unicode_escape").decode("ascii")

    return "".join(map(shown, text[:_LONGEST])) + ("..." if len(text) > _LONGEST else "")


def wrap(text: str, size: int, width: int, lines: int = MAX_LINES) -> str:
    """`text` in at most `lines` lines of `width` pixels, letters `size` pixels high; what is too much becomes "..."."""
    font = font_of(size)
    made: list[str] = []
    for word in printable(text).split():
        if made and font.getlength(f"{made[-1]} {word}") <= width:
            made[-1] += f" {word}"
        else:
            made += _pieces(word, font, width)
        if len(made) > lines:
            break
    if len(made) > lines:
        last = made[lines - 1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        made = [*made[: lines - 1], f"{last.rstrip()}..."]
    return "\n".join(made)


def _pieces(word: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> Iterator[str]:
    """A word cut where it would pass the width; every piece has a character at least."""
    piece = ""
    for character in word:
        if piece and font.getlength(piece + character) > width:
            yield piece
            piece = ""
        piece += character
    yield piece


@dataclass(frozen=True, slots=True)
class Sheet:
    """Where everything on a sheet goes.

    Attributes:
        size: (width, height) in pixels.
        boxes: each cell's picture.
        letters: the height of the letters in pixels.
        texts: (left, top, wrapped words).
    """

    size: tuple[int, int]
    boxes: Mapping[Place, Box]
    letters: int
    texts: Sequence[tuple[int, int, str]] = field(repr=False)

    def draw(self, pictures: Mapping[Place, Image.Image]) -> Image.Image:
        """The sheet as an RGB picture. A cell without a picture stays gray; pictures are pasted pixel by pixel."""
        sheet = Image.new("RGB", self.size, PAPER)
        pen = ImageDraw.Draw(sheet)
        for left, top, words in self.texts:
            pen.multiline_text((left, top), words, fill=INK, font=font_of(self.letters), spacing=_leading(self.letters))
        for place, (left, top, right, bottom) in self.boxes.items():
            if place in pictures:
                sheet.paste(pictures[place], (left, top))
            else:
                pen.rectangle((left, top, right - 1, bottom - 1), fill=EMPTY)
        return sheet


def _leading(letters: int) -> int:
    return max(2, letters // 4)


def _height(words: str, letters: int) -> int:
    """Pixels that wrapped words take."""
    count = words.count("\n") + 1 if words else 0
    return count * (math.ceil(1.25 * letters) + _leading(letters))


def arrange(sizes: Mapping[Place, tuple[int, int]], labels: Sequence[Sequence[str]], title: str = "") -> Sheet:
    """Lay out a grid: x to the right, y downwards, a block for each z.

    Args:
        sizes: each cell's picture, (width, height) in pixels.
        labels: three lists, of the columns, the rows and the blocks; an empty one: that axis has one value, unlabelled.
        title: words above it all.

    Raises RequestError where the sheet would pass 8192 x 8192 pixels, or 32768 on a side.
    """
    columns, rows, blocks = (1 + max(place[axis] for place in sizes) for axis in range(3))
    letters = round(median(min(size) for size in sizes.values()) / 14)
    letters = min(LARGEST, max(SMALLEST, letters))
    gap = max(4, letters // 2)
    narrowest = 6 * letters  # a column of tiny pictures is as wide as its label needs
    widths = [max(narrowest, *(w for (x, _, _), (w, _) in sizes.items() if x == i)) for i in range(columns)]
    heights = [max(2 * letters, *(h for (_, y, _), (_, h) in sizes.items() if y == i)) for i in range(rows)]
    # Words ----------------------------------------------------------------
    above = [wrap(label, letters, width) for label, width in zip(labels[0], widths, strict=False)]
    head = max((_height(words, letters) for words in above), default=0)
    beside = [wrap(label, letters, 11 * letters) for label in labels[1]]
    heights = [
        max(height, _height(beside[i], letters)) if i < len(beside) else height for i, height in enumerate(heights)
    ]
    margin = max((math.ceil(_widest(words, letters)) + gap for words in beside), default=0)
    block_width = margin + sum(widths) + gap * (columns - 1)
    over = [wrap(label, letters, block_width) for label in labels[2]]
    lid = max((_height(words, letters) for words in over), default=0)
    block_height = lid + head + sum(heights) + gap * (rows - 1)
    # Places ---------------------------------------------------------------
    across = max(1, min(blocks, round(math.sqrt(blocks * block_height / block_width))))
    width = gap + across * (block_width + gap)
    name = wrap(title, letters, width - 2 * gap)
    top = gap + (_height(name, letters) + gap if name else 0)
    height = top + -(-blocks // across) * (block_height + 2 * gap)
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise RequestError(
            f"the sheet would be {width:,} x {height:,} pixels, and {MAX_PIXELS:,} (8192 x 8192) are the most; "
            f"ask for fewer cells or smaller pictures"
        )
    texts = [(gap, gap, name)] if name else []
    boxes: dict[Place, Box] = {}
    for z in range(blocks):
        left, up = gap + z % across * (block_width + gap), top + z // across * (block_height + 2 * gap)
        if over:
            texts.append((left, up, over[z]))
        lefts = [left + margin + sum(widths[:x]) + gap * x for x in range(columns)]
        tops = [up + lid + head + sum(heights[:y]) + gap * y for y in range(rows)]
        texts += [(lefts[x], up + lid, words) for x, words in enumerate(above)]
        texts += [(left, tops[y], words) for y, words in enumerate(beside)]
        for (x, y, block), (w, h) in sizes.items():
            if block == z:
                boxes[x, y, z] = (lefts[x], tops[y], lefts[x] + w, tops[y] + h)
    return Sheet((width, height), boxes, letters, texts)


def contact_sheet(
    pictures: Mapping[Place, Image.Image], labels: Sequence[Sequence[str]], title: str = ""
) -> Image.Image:
    """Pictures with labels on one sheet; the arguments are `arrange`'s."""
    return arrange({place: picture.size for place, picture in pictures.items()}, labels, title).draw(pictures)


def overview(pictures: Sequence[Image.Image], labels: Sequence[str], title: str = "") -> Image.Image:
    """Pictures side by side, each under its label, about as wide as high; made smaller where there are too many."""
    room = math.isqrt(MAX_PIXELS // (2 * max(1, len(pictures))))  # of each: half of the sheet is left for words
    largest = max(max(picture.size) for picture in pictures)
    fitting = [picture if largest <= room else _within(picture, room) for picture in pictures]
    return contact_sheet({(0, 0, i): picture for i, picture in enumerate(fitting)}, [[], [], labels], title)


def _within(picture: Image.Image, side: int) -> Image.Image:
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _widest(words: str, letters: int) -> float:
    return max(font_of(letters).getlength(line) for line in words.split("\n"))
