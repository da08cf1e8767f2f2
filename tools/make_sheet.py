"""Draw the sheet of pictures that README.md opens with: docs/pictures/sheet.webp.

    python tools/make_sheet.py [OUTPUT]

Picture number i has the seed i. None is left out and none was drawn twice: the sheet shows what the model does, faults
included.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

import darkroom
from darkroom.sweeps.sheet import font_of, wrap

PROMPTS = (
    "a large fox on a yellow background",
    "three balloons on a white background",
    "a rocket to the left of a car on a black background",
    "a large owl on a purple background",
    "a castle above a tree on a green background",
    "two penguins on a blue background",
    "a small teddy bear on a pink background",
    "a cat to the right of a fish on a gray background",
    "a large pizza on a red background",
    "three strawberries on a white background",
    "a moon above a house on a black background",
    "a large octopus on an orange background",
    "a large dinosaur on a pink background",
    "a robot to the left of a ghost on a purple background",
    "two crowns on a green background",
    "an umbrella below a cloud on a blue background",
    "a large guitar on a gray background",
    "three bees on a yellow background",
    "a snowman to the right of a gift on a red background",
    "a large watermelon on a white background",
    "a butterfly above a sunflower on an orange background",
    "two robots on a black background",
    "a small anchor on a blue background",
    "a large unicorn on a green background",
)
COLUMNS, SIDE, LABEL, LETTERS, GAP = 6, 128, 30, 10, 8
OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "sheet.webp"


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    result = darkroom.load().generate(list(PROMPTS), seed=1)
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + LABEL + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (prompt, picture) in enumerate(zip(PROMPTS, result.images, strict=True)):
        x, y = GAP + i % COLUMNS * (SIDE + GAP), GAP + i // COLUMNS * (SIDE + LABEL + GAP)
        sheet.paste(picture, (x, y))
        pen.multiline_text(
            (x, y + SIDE + 2), wrap(prompt, LETTERS, SIDE), fill="black", font=font_of(LETTERS), spacing=1
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output, quality=90, method=6)
    print(f"wrote {output.name} ({output.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
