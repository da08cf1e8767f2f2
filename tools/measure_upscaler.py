"""How well a network enlarges the built-in scenes four times, beside Lanczos, on scenes that no training shows.

    python tools/measure_upscaler.py runs/glyphs [FILE] [--count 100]

`runs/glyphs` is what tools/large_glyphs.py writes. The small pictures are the large ones scaled down, and those after
the embedded model's autoencoder, as what the model draws. Prints PSNR in dB by the error over all pictures, mean SSIM,
and the mean distance in the features of the embedded model's autoencoder (training/perceptual.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import darkroom
from darkroom.engine.enlarge import load_upscaler
from darkroom.evaluate.reconstruction import psnr, reconstruct, ssim
from darkroom.images import from_pixels
from darkroom.toy.glyphs import Drawings
from darkroom.toy.scenes import draw_scene, render_scene
from darkroom.training.perceptual import OWN, open_distance

UNSEEN = 20_000_000  # beyond all scenes that training and its sheets show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("glyphs", type=Path)
    parser.add_argument("upscaler", nargs="?", default="embedded:upscaler")
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args()
    upscaler = load_upscaler(args.upscaler)
    drawings = Drawings(args.glyphs, 4)
    large = [render_scene(draw_scene(0, UNSEEN + i, held_out=True), large=drawings) for i in range(args.count)]
    small = [np.asarray(Image.fromarray(p).resize((128, 128), Image.Resampling.LANCZOS)) for p in large]
    drawn = reconstruct(darkroom.load(device="cpu", dtype="float32").autoencoder, small)
    distance = open_distance(OWN)
    ways: dict[str, Callable[[Image.Image], Image.Image]] = {
        "Lanczos": lambda picture: picture.resize((512, 512), Image.Resampling.LANCZOS),
        upscaler.name: upscaler.enlarge,
    }
    for what, given in (("scaled down", small), ("scaled down, and through the autoencoder", drawn)):
        print(what)
        for name, way in ways.items():
            began = time.perf_counter()
            made: list[NDArray[np.uint8]] = [np.asarray(way(Image.fromarray(p))) for p in given]
            seconds = (time.perf_counter() - began) / len(made)
            with torch.no_grad():
                apart = [
                    float(distance(from_pixels(a.copy())[None], from_pixels(b.copy())[None]))
                    for a, b in zip(large, made, strict=True)
                ]
            alike = float(np.mean([ssim(a, b) for a, b in zip(large, made, strict=True)]))
            print(
                f"  {name:24} {psnr(large, made):6.2f} dB  SSIM {alike:.4f}  distance {np.mean(apart):.4f}  "
                f"{1000 * seconds:.0f} ms a picture"
            )


if __name__ == "__main__":
    main()
