"""The same prompt and seed by several samplers (rows) in 4, 8, 16 and 32 steps (columns), as one picture.

    python examples/compare_samplers.py ["a prompt"] [--model MODEL] [--output samplers.png]

All pictures are drawn by one engine at once, whatever their samplers and steps.
"""

from __future__ import annotations

import argparse

from PIL import Image

import darkroom
from darkroom.names import SamplerName

SAMPLERS: tuple[SamplerName, ...] = ("euler", "euler_ancestral", "heun", "lms", "dpmpp_2m", "uni_pc")
STEPS = (4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare samplers on one prompt and seed.")
    parser.add_argument("prompt", nargs="?", default="a large fox on a yellow background")
    parser.add_argument("--model", help="a folder, a file or a hub id (default: the embedded model)")
    parser.add_argument("--output", default="samplers.png")
    arguments = parser.parse_args()

    pipe = darkroom.load(arguments.model)
    engine = darkroom.Engine(pipe)
    places = {}
    for row, sampler in enumerate(SAMPLERS):
        for column, steps in enumerate(STEPS):
            request = darkroom.Request(prompt=arguments.prompt, sampler=sampler, steps=steps, seed=1)
            places[engine.add(request)] = (column, row)
    width, height = pipe.size
    sheet = Image.new("RGB", (len(STEPS) * width, len(SAMPLERS) * height))
    while engine.jobs:
        for event in engine.step():
            if isinstance(event, darkroom.Failed):
                raise event.error
            if isinstance(event, darkroom.Finished):
                column, row = places[event.id]
                sheet.paste(event.image, (column * width, row * height))
    sheet.save(arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
