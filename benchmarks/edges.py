"""Whether the embedded ControlNet keeps edges: scenes it never saw, drawn with their edges as a hint and without.

    python benchmarks/edges.py [--count 36]

Printed: the fraction of a scene's edge pixels within one pixel of the drawn picture's (recall), the reverse
(precision), and how often all that the caption says is right.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import darkroom
from darkroom import hints
from darkroom.evaluate.judge import judge
from darkroom.toy.scenes import KINDS, draw_scene, render_scene

SEED = 991  # of the scenes; training drew from seed 0

Edges = NDArray[np.bool_]


def edges(picture: Image.Image) -> Edges:
    """A picture's edges, [H, W]."""
    return np.asarray(hints.make("canny", picture).convert("L")) > 127


def near(these: Edges, those: Edges) -> float:
    """The fraction of `these` pixels within one pixel of `those`."""
    wide = np.asarray(Image.fromarray(those).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
    return float((these & wide).sum() / max(these.sum(), 1))


def main() -> None:
    """Draw, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=36)
    count = parser.parse_args().count
    pipe = darkroom.load()
    rows: dict[str, list[tuple[float, float, float]]] = {"with": [], "without": []}
    for i in range(count):
        scene = draw_scene(SEED, i, KINDS[i % len(KINDS)], None)
        shown = Image.fromarray(render_scene(scene))
        control = darkroom.Control("embedded:edges", hints.make("canny", shown))
        wanted = edges(shown)
        for name, controls in (("with", [control]), ("without", [])):
            (drawn,) = pipe.generate(scene.caption, seed=i, controls=controls).images
            found = edges(drawn)
            right = float(judge(np.asarray(drawn.convert("RGB")), scene).right)
            rows[name].append((near(wanted, found), near(found, wanted), right))
    for name, values in rows.items():
        recall, precision, right = np.mean(values, axis=0)
        print(f"{name:8} recall {recall:.2f}  precision {precision:.2f}  right {right:.2f}  ({count} pictures)")


if __name__ == "__main__":
    main()
