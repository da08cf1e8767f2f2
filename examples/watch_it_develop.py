"""An animation of a picture while it is drawn: the model's guess at every step, as cheap previews, then the picture.

python examples/watch_it_develop.py ["a prompt"] [--model MODEL] [--steps 30] [--output develop.webp]
"""

from __future__ import annotations

import argparse

from PIL import Image

import darkroom


def main() -> None:
    parser = argparse.ArgumentParser(description="Show a picture while it is drawn.")
    parser.add_argument("prompt", nargs="?", default="a castle above a tree on a green background")
    parser.add_argument("--model", help="a folder, a file or a hub id (default: the embedded model)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", default="develop.webp")
    arguments = parser.parse_args()

    frames: list[Image.Image] = []

    def watch(progress: darkroom.Progress) -> None:
        frames.append(progress.preview())

    result = darkroom.load(arguments.model).generate(arguments.prompt, steps=arguments.steps, seed=1, on_progress=watch)
    frames += [result.images[0]] * 10
    frames[0].save(arguments.output, save_all=True, append_images=frames[1:], duration=120, loop=0, quality=90)
    print(arguments.output)


if __name__ == "__main__":
    main()
