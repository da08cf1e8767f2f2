"""What type checkers must refuse: each line that says so, by both of them (tools/check_types.py)."""

from __future__ import annotations

import darkroom

pipe = darkroom.load()
pipe.generate("a fox", sampler="eular")  # refused
pipe.generate("a fox", schedule="caras")  # refused
pipe.generate("a fox", prompt_style="a111")  # refused
pipe.generate("a fox", stepz=3)  # refused
pipe.generate("a fox", steps="3")  # refused
pipe.generate("a fox", size=64)  # refused
pipe.generate("a fox", output="jpg")  # refused
pipe.generate("a fox", output="pt").images[0].save("fox.png")  # refused
pipe.generate("a fox").images.mean()  # refused
pipe.upscale("fox.png", width=512)  # refused
pipe.sweep("a fox", "steps=1,2", stepz=3)  # refused
darkroom.Inpaint(fill="nose")  # refused
darkroom.Request(prompt="a fox", sampler="eular")  # refused
darkroom.Hires(upscaler=4)  # refused
darkroom.Noise(source="gpu")  # refused
darkroom.load(dtype="float17")  # refused
darkroom.load(backend="onnx")  # refused
darkroom.Engine(3)  # refused
darkroom.evaluate(pipe, metrics="fud")  # refused
darkroom.training_recipe("lra")  # refused
print(darkroom.training_recipe("lora").ranks)  # refused
darkroom.train("lora", "pictures/", "runs/a", preset="tpu")  # refused
darkroom.train("lra", "pictures/", "runs/a")  # refused
