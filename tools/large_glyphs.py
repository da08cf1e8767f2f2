"""Render the objects of the built-in scenes large, from Noto Emoji's drawings (SVG, Apache-2.0): what the embedded
upscaler is trained on.

    npm pack @iconify-json/noto && tar xzf iconify-json-noto-*.tgz       # a download of 3 MB
    pip install resvg-py
    python tools/large_glyphs.py package runs/glyphs
    darkroom train upscaler --set glyphs=runs/glyphs --output runs/upscaler

Writes FOLDER/NOUN.png for every object, square, 384 pixels a side (four times a large object's), transparent around it;
and every other emoji of theirs that the scenes don't have into FOLDER/others.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import resvg_py
from PIL import Image

from darkroom.toy.glyphs import fit
from darkroom.toy.objects import OBJECTS

SIDE = 384


def drawing(icons: dict[str, object], name: str) -> Image.Image:
    """A drawing, cropped to its ink and fitted into a square."""
    all_icons, aliases = icons["icons"], icons.get("aliases", {})
    assert isinstance(all_icons, dict)
    assert isinstance(aliases, dict)
    while name in aliases:
        name = aliases[name]["parent"]
    body = all_icons[name]["body"]
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128" width="128" height="128">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = picture.getbbox()
    if box is None:
        raise ValueError(f"{name} is empty")
    return fit(picture.crop(box), SIDE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package, with icons.json and chars.json")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--others", type=int, default=600, help="how many other emoji to render beside")
    args = parser.parse_args()
    icons = json.loads((args.package / "icons.json").read_text(encoding="utf-8"))
    chars = json.loads((args.package / "chars.json").read_text(encoding="utf-8"))
    (args.folder / "others").mkdir(parents=True, exist_ok=True)
    used = set()
    for noun, emoji in OBJECTS.items():
        code = "-".join(f"{ord(c):x}" for c in emoji if c != "\ufe0f")
        used.add(chars[code])
        drawing(icons, chars[code]).save(args.folder / f"{noun}.png")
    rest = [
        name for code, name in sorted(chars.items()) if "-" not in code and name not in used and int(code, 16) > 9000
    ]
    for name in rest[:: max(len(rest) // args.others, 1)][: args.others]:
        drawing(icons, name).save(args.folder / "others" / f"{name}.png")


if __name__ == "__main__":
    main()
