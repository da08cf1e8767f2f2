"""What a careful user writes, for type checkers alone: mypy --strict and pyright accept it (tools/check_types.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import assert_type

from PIL import Image
from torch import Tensor

import darkroom
from darkroom.keywords import Keywords
from darkroom.names import Output, SamplerId, SamplerName

Pictures = darkroom.Result[list[Image.Image]]
pipe = darkroom.load(device="cpu", dtype="float32")
result = pipe.generate("a fox", seed=1, size=(64, 64), sampler="dpmpp_2m", schedule="karras", steps=3)
assert_type(result, Pictures)
result.images[0].save("fox.png")
result[0].save("fox.png")
assert_type(result[:1], Pictures)
for picture in result:
    picture.save("fox.png")
assert_type(pipe("a fox"), Pictures)
assert_type(pipe.draw(result.requests)[0], Image.Image)
assert_type(pipe.upscale("fox.png", scale=2.0, seed=3)[0], Image.Image)

tensors = pipe.generate(["a fox", "an owl"], "blue", output="pt", num_images=2)
assert_type(tensors, darkroom.Result[Tensor])
assert_type(tensors[0], Tensor)
print(tensors.images.mean(), *(row.shape for row in tensors))
assert_type(pipe.upscale("fox.png", output="latent").images, Tensor)


def saved(given: darkroom.Result) -> Iterator[str]:
    """A Result, where nothing else is said, holds pictures."""
    yield from (str(path) for path in given.save("out"))
    yield str(given[0].size)


def drawn(output: Output, sampler: SamplerName, **same: object) -> Pictures:
    """What is decided at run time."""
    either = pipe.generate("a fox", output=output, sampler=sampler)
    if isinstance(either.images, Tensor):
        print(either.images.shape)
    keywords = Keywords(steps=4, image="fox.png", mask=Image.new("L", (8, 8)), loras=["ink.safetensors"])
    return pipe.generate("a fox", **keywords)


assert_type(darkroom.samplers(), list[SamplerId])
for name in darkroom.samplers():
    drawn("pil", name)
groups = pipe.generate(
    "a fox",
    guidance=darkroom.Guidance(rescale=0.7, interval=(0.3, 5.0)),
    inpaint=darkroom.Inpaint(fill="noise", outpaint={"left": 8}),
    noise="nv",
    controls=darkroom.Control("embedded:edges", "fox.png", hint="canny"),
    hires=darkroom.Hires(scale=2, upscaler="lanczos"),
)
sheet = pipe.sweep("a fox", "steps=1,2", seed=1, guidance=darkroom.Guidance(pag_scale=3.0))
sheet.image.save("sheet.png")

engine = darkroom.Engine(pipe)
job = engine.add(darkroom.Request(prompt="a fox", sampler="DPM++ 2M Karras", steps=4))
while engine.jobs:
    for event in engine.step():
        if isinstance(event, darkroom.Finished):
            event.image.save(f"{event.id}.png")
        elif isinstance(event, darkroom.Failed):
            raise event.error
        else:
            assert_type(event, darkroom.Progress)

found = darkroom.evaluate(
    pipe, ("adherence", "reconstruction"), count=8, on_progress=lambda progress: print(progress.task)
)
print(found, found["categories"], found.get("fid"))


def trained() -> None:
    """A LoRA, by a typed recipe and by the kind's name."""
    recipe = replace(darkroom.training_recipe("lora", "gpu", rank=8), steps=500, lr=2e-3)
    assert_type(recipe.rank, int)
    made = darkroom.train(recipe, "pictures/", "runs/style", on_progress=lambda p: print(p.stage, p.step, p.loss))
    pipe("a fox", loras=[made.path, darkroom.train("lora", "more/", "runs/more", steps=100).path])
    print(made.log()[-1]["loss"], made.output)
