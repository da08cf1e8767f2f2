"""The sheet: everything in its place, labels that can be read, any text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from darkroom.errors import RequestError
from darkroom.sweeps.sheet import EMPTY, Sheet, arrange, font_of, printable, wrap


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def labels(columns: int, rows: int, blocks: int) -> list[list[str]]:
    return [[f"{axis} {i}" for i in range(count)] for axis, count in zip("xyz", (columns, rows, blocks), strict=True)]


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def text_boxes(sheet: Sheet) -> list[tuple[int, int, int, int]]:
    from PIL import ImageDraw

    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    spacing = max(2, sheet.letters // 4)
    return [
        tuple(int(v) for v in pen.multiline_textbbox((x, y), words, font=font_of(sheet.letters), spacing=spacing))
        for x, y, words in sheet.texts
    ]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("grid", "sizes"),
    [
        ((3, 2, 1), [(128, 128)]),
        ((1, 1, 1), [(64, 64)]),
        ((2, 3, 4), [(40, 24)]),
        ((5, 1, 2), [(8, 8)]),
        ((3, 3, 1), [(64, 128), (200, 8), (9, 300)]),
        ((2, 2, 1), [(1024, 768)]),
    ],
)
def test_pictures_and_labels_have_their_own_places(grid: tuple[int, int, int], sizes: list[tuple[int, int]]) -> None:
    columns, rows, blocks = grid
    places = list(itertools.product(range(columns), range(rows), range(blocks)))
    each = {place: sizes[i % len(sizes)] for i, place in enumerate(places)}
    pictures = {place: noise(each[place], i) for i, place in enumerate(places)}
    sheet = arrange(each, labels(*grid), "a large fox on a yellow background, and a long title " * 5)
    image = sheet.draw(pictures)
    assert image.size == sheet.size
    everything = [*sheet.boxes.values(), *text_boxes(sheet)]
    for a, b in itertools.combinations(everything, 2):
        assert not overlap(a, b), (a, b)
    for left, top, right, bottom in everything:
        assert left >= 0
        assert top >= 0
        assert right <= sheet.size[0]
        assert bottom <= sheet.size[1]
    for place, box in sheet.boxes.items():
        assert image.crop(box).tobytes() == pictures[place].tobytes()
    shown = "\n".join(words for _, _, words in sheet.texts)
    for axis in labels(*grid):
        for label in axis:
            assert label in shown
    # The words are really there: dark pixels inside of each text's box.
    for left, top, right, bottom in text_boxes(sheet):
        assert np.asarray(image.crop((left, top, right, bottom)).convert("L")).min() < 100


def test_letters_grow_with_the_pictures_and_never_vanish() -> None:
    heights = [arrange({(0, 0, 0): (side, side)}, [["x"], [], []]).letters for side in (8, 128, 512, 1024, 4096)]
    assert heights == sorted(heights)
    assert heights[0] == 12
    assert heights[2] == 37


def test_a_cell_without_a_picture_is_gray() -> None:
    sheet = arrange({(0, 0, 0): (32, 32), (1, 0, 0): (32, 32)}, [["a", "b"], [], []])
    image = sheet.draw({(0, 0, 0): noise((32, 32), 0)})
    assert image.crop(sheet.boxes[1, 0, 0]).getcolors() == [(32 * 32, EMPTY)]


def test_a_sheet_that_is_too_large_is_refused() -> None:
    with pytest.raises(RequestError, match=r"the sheet would be [\d,]+ x [\d,]+ pixels, .*fewer cells or smaller"):
        arrange({(x, y, 0): (2048, 2048) for x in range(5) for y in range(5)}, [[], [], []])
    with pytest.raises(RequestError, match="the sheet would be"):
        arrange({(x, 0, 0): (8, 8) for x in range(1000)}, [[], [], []])


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x" * 50_000,
        "word " * 10_000,
        "\ud800\udcff",
        "\x00\x1b[2J",
        "狐 🦊 " * 400,
        "\u202eevil\u200f",
        "é" * 900,
        "a\nb\r\tc",
    ],
)
def test_any_text_is_drawn(text: str) -> None:
    sheet = arrange({(0, 0, 0): (64, 64)}, [[text], [text], [text]], text)
    assert sheet.size[0] < 600
    assert sheet.size[1] < 600
    sheet.draw({})
    assert printable(text).isprintable()


def test_what_the_font_lacks_is_told_apart() -> None:
    assert printable("a fox, 50% (x:1.2) [y] {z} \\ | <lora:a:1>") == "a fox, 50% (x:1.2) [y] {z} \\ | <lora:a:1>"
    assert printable("Füchslein à l’été") == "Fuchslein a l\u2019ete"
    assert printable("狐") == "\\u72d0" != printable("猫")


def test_long_words_are_cut_and_long_texts_shortened() -> None:
    font = font_of(12)
    for text in ("dpmpp_2m_sde_heun_" * 10, "many short words " * 10, "W" * 9, "one"):
        lines = wrap(text, 12, 60).split("\n")
        assert len(lines) <= 3
        assert all(font.getlength(line) <= 60 for line in lines)
        assert lines[-1].endswith("...") == (len(text) > 40)
    assert wrap("one two three", 12, 10_000) == "one two three"
    assert wrap("W", 12, 1) == "W"
