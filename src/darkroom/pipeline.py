"""The friendly single calls: a loop over Engine.step."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal, Unpack, overload

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .arguments import Noise, Tiling, check_known, ungrouped
from .engine.engine import Engine, Failed, Finished, Progress
from .engine.job import Control, Inputs
from .engine.prepare.upscale import upscaling
from .errors import RequestError
from .formats.embedding import learned_words
from .images import Picture, depth_map, open_mask, open_picture
from .keywords import (
    DrawKeywords,
    Embeddings,
    Keywords,
    Loras,
    Tensors,
    Texts,
    UpscaleKeywords,
    listed_controls,
    listed_loras,
    pictures,
    starting_noises,
    texts,
    with_keywords,
)
from .names import Output
from .pieces import Pieces
from .prompts.embeddings import unused
from .recipe import Recipe
from .request import MAX_IMAGES, OUTPUTS, Request, choice, whole
from .result import Result, gathered
from .sweeps.axes import Given, parse_axis
from .sweeps.sweep import Sweep

Requests = Sequence[Request | Recipe]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Pipeline(Pieces):
    """A loaded model and the calls that draw with it. What it is made of, and can do besides, is in `Pieces`."""

    @overload
    def generate(
        self, prompt: Texts, negative_prompt: Texts = "", *, output: Literal["pil"] = "pil", **asked: Unpack[Keywords]
    ) -> Result[list[Image.Image]]: ...
    @overload
    def generate(
        self, prompt: Texts, negative_prompt: Texts = "", *, output: Tensors, **asked: Unpack[Keywords]
    ) -> Result[Tensor]: ...
    @overload
    def generate(
        self, prompt: Texts, negative_prompt: Texts = "", *, output: Output, **asked: Unpack[Keywords]
    ) -> Result[list[Image.Image]] | Result[Tensor]: ...
    @with_keywords(Keywords)
    def generate(
        self,
        prompt: Texts,
        negative_prompt: Texts = "",
        *,
        num_images: int = 1,
        latents: Tensor | None = None,
        image: Picture | Sequence[Picture] | None = None,
        mask: Picture | Sequence[Picture] | None = None,
        depth: Picture | NDArray[Any] | Tensor | None = None,
        controls: Control | Sequence[Control] = (),
        loras: Loras = (),
        embeddings: Embeddings = (),
        on_progress: Callable[[Progress], None] | None = None,
        output: Output = "pil",
        deterministic: bool | None = None,
        **asked: Any,
    ) -> Result[Any]:
        """Draw pictures from a text.

        Args:
            prompt: a text, or a list of them: num_images pictures each, in order.
            negative_prompt: what guidance leads away from; one for all, or a list as long as the prompts'.
            width, height: pixels, 8 to 8192; None: the model's own size, or the given image's. Any size is possible:
                it is padded to whole latent pixels on the right and below, and cropped back.
            size: both at once, (width, height).
            steps: 1 to 1000; None: what the model's folder recommends (`defaults`), or 30 (LCM: 4).
            guidance_scale: 0 to 100; None: what the model's folder recommends, or 7.5. At 1 or below the negative
                prompt plays no part.
            sampler, schedule: by any of their names (`darkroom.samplers()`); None: what the checkpoint's
                scheduler_config.json says, flags included.
            seed: 0 to 2**64 - 1; picture i of the call uses seed + i. None: drawn, and reported in the requests.
            latents: unit-variance noise [N, C, h, w] to start from, one for each picture, instead of the seed's.
            image: a PIL picture or a path, of any size and mode: the picture that is changed. One for all, or a list as
                long as the prompts'. docs/image-to-image.md and docs/inpainting.md tell of all that goes with it.
            mask: with image: white is repainted, black comes back byte-identical. One for all, or a list.
            strength: 0 to 1, how much of the picture's making is done anew; None: 0.75. As in diffusers, the last
                int(steps * strength) of the steps are taken. 0 gives the picture back.
            depth: for depth-to-image models: a map [H, W], or a picture of one, of any size; larger (brighter) is
                nearer. With image, that is changed with the strength; without, the picture begins with noise.
            hires: darkroom.Hires(scale=2.0, strength=0.7, steps=None, upscaler="latent"): the finished picture is
                enlarged and drawn over once more. width and height are the first pass's. `upscaler` may be a network's
                file as well.
            enlarge: darkroom.Enlarge(scale=4.0, upscaler=None), or a scale: the finished picture is made larger by a
                network that does nothing else, a file or "embedded:upscaler" (docs/upscaling.md).
            controls: darkroom.Control(net, image, scale=1.0, start=0.0, stop=1.0), any number: ControlNets that steer
                every picture of the call (docs/controlnet.md).
            loras: darkroom.Lora(path, scale=1.0), or paths: attached for this call, besides those the prompt names
                as <lora:name:weight>.
            embeddings: darkroom.Embedding(path, name=None), or paths: learned words that the prompts may use
                (textual inversion), by the file's stem or its token.
            clip_skip: n >= 2 takes the text encoder's n-th last layer.
            prompt_style: the prompt's grammar: "a1111", "comfy" or "plain" (none at all).
            guidance: darkroom.Guidance(rescale, interval, projection, pag_scale, ..., threshold, ..., image_scale):
                how prompts guide, besides the scale.
            inpaint: darkroom.Inpaint(fill, only_masked, mask_padding, mask_blur, outpaint): how a masked part is drawn
                anew, and what is added around the image.
            noise: darkroom.Noise(start, stop, exact_steps, level, variation_seed, source, brownian, ...): which noise
                levels are gone through, and what the noise is; "nv" alone is Noise(source="nv").
            tiling: darkroom.Tiling(tile, overlap): the U-Net sees overlapping windows, for large pictures.
            speed: darkroom.Speed(cache_interval, token_merging): faster, and lossy.
            sizes: darkroom.SizeConditioning(original_size, crop, target_size, ...): what SDXL is told of the picture.
            on_progress: called with a Progress(step, steps, preview, index) after every step of every picture.
            output: "pil", "pt" (float32 [N, 3, H, W] in 0..1) or "latent" ([N, C, h, w], scaled as the U-Net sees it).
            deterministic: a seed gives the same bits in any company (docs/determinism.md); None: on a CPU, where that
                costs little.

        Arguments that are in a group now work until the next version, with a DeprecationWarning.
        Raises RequestError, in one sentence, for anything that can't be done.
        """
        prompts, negatives = texts(prompt, negative_prompt)
        count = len(prompts) * whole("num_images", num_images, 1, MAX_IMAGES)
        if count > MAX_IMAGES:
            raise RequestError(f"{count:,} pictures are asked for at once; ask for {MAX_IMAGES:,} or fewer a call")
        check_known(asked, _TAKEN)
        first = Request(prompt=prompts[0], negative_prompt=negatives[0], **ungrouped(asked))
        if first.hires is not None and first.hires.network is not None:
            self.upscaler(first.hires.network)
        if first.enlarge is not None and first.enlarge.upscaler is not None:
            self.upscaler(first.enlarge.upscaler)
        first = first.seeded()
        requests = [
            first.numbered(i, prompt=prompts[i // num_images], negative_prompt=negatives[i // num_images])
            for i in range(count)
        ]
        shared = self.inputs(depth=depth, controls=controls, loras=loras, embeddings=embeddings)
        told = unused(shared.embeddings, [(text, first.prompt_style) for text in (*prompts, *negatives)])
        images = pictures(image, "image", partial(open_picture, tell=told.append), len(prompts))
        masks = pictures(mask, "mask", partial(open_mask, tell=told.append), len(prompts))
        inputs = [
            replace(shared, latents=start, image=images[i // num_images], mask=masks[i // num_images])
            for i, start in enumerate(starting_noises(latents, count))
        ]
        return self._drawn(requests, inputs, told, on_progress, output, deterministic, 4)

    __call__ = generate

    @overload
    def upscale(
        self, image: Picture, prompt: str = "", *, output: Literal["pil"] = "pil", **asked: Unpack[UpscaleKeywords]
    ) -> Result[list[Image.Image]]: ...

    @overload
    def upscale(
        self, image: Picture, prompt: str = "", *, output: Tensors, **asked: Unpack[UpscaleKeywords]
    ) -> Result[Tensor]: ...

    @overload
    def upscale(
        self, image: Picture, prompt: str = "", *, output: Output, **asked: Unpack[UpscaleKeywords]
    ) -> Result[list[Image.Image]] | Result[Tensor]: ...
    @with_keywords(UpscaleKeywords)
    def upscale(
        self,
        image: Picture,
        prompt: str = "",
        *,
        scale: float | None = None,
        strength: float | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        noise_level: int | None = None,
        **asked: Any,
    ) -> Result[Any]:
        """Make a picture larger.

        An upscaling model (seven input channels, such as stable-diffusion-x4-upscaler) does what it was trained for:
        four times as large. Any other model refines: the picture is enlarged (Lanczos), and image-to-image gives it
        detail, in windows of the model's own size that agree at every step.

        Args:
            image: a PIL picture or a path.
            prompt: what the picture shows; with an empty one nothing but the picture guides.
            scale: the factor for each side, above 0; None: 2, or an upscaling model's own.
            strength: of refinement, 0 to 1: how much is drawn anew; None: what the model's folder recommends, or 0.3.
            tile, overlap: the windows' side and what neighbours share, in pixels of the result; None: the model's own
                size, and a quarter of it. An upscaling model sees pictures up to 512x512 whole.
            noise_level: of an upscaling model, 0 to 350: how much noise the picture is given before; None: 20.
            asked: the others of `generate`, which this is a call of.

        Raises RequestError, in one sentence, for anything that can't be done.
        """
        for name in ("width", "height", "size", "mask", "outpaint"):
            if asked.get(name) is not None or getattr(asked.get("inpaint"), name, None) is not None:
                raise RequestError(f"{name} is given, which upscale doesn't take; use scale, or generate with an image")
        image = open_picture(image)
        windows, noise = asked.pop("tiling", None) or Tiling(), asked.pop("noise", None) or Noise()
        fields = upscaling(self, image.size, scale, strength, windows.tile if tile is None else tile)
        windows = Tiling(tile=fields.pop("tile"), overlap=windows.overlap if overlap is None else overlap)
        noise = replace(noise, level=noise.level if noise_level is None else noise_level)
        return self.generate(prompt, image=image, tiling=windows, noise=noise, **fields, **asked)

    def inputs(
        self,
        *,
        latents: Tensor | None = None,
        image: Picture | None = None,
        mask: Picture | None = None,
        depth: Picture | NDArray[Any] | Tensor | None = None,
        controls: Control | Sequence[Control] = (),
        loras: Loras = (),
        embeddings: Embeddings = (),
    ) -> Inputs:
        """What one picture is made from beside its request, read and opened: the keywords of `generate`, for `draw`.

        Raises RequestError, ImageError and CheckpointError.
        """
        told: list[str] = []
        return Inputs(
            latents=latents,
            image=None if image is None else open_picture(image, "image", told.append),
            mask=None if mask is None else open_mask(mask, "mask", told.append),
            depth=None if depth is None else depth_map(depth),
            controls=listed_controls(controls),
            loras=tuple(self.loras.get(lora) for lora in listed_loras(loras)),
            embeddings=learned_words(embeddings),
            told=tuple(told),
        )

    @overload
    def draw(
        self,
        requests: Requests,
        inputs: Sequence[Inputs] = (),
        *,
        output: Literal["pil"] = "pil",
        **asked: Unpack[DrawKeywords],
    ) -> Result[list[Image.Image]]: ...
    @overload
    def draw(
        self, requests: Requests, inputs: Sequence[Inputs] = (), *, output: Tensors, **asked: Unpack[DrawKeywords]
    ) -> Result[Tensor]: ...
    @overload
    def draw(
        self, requests: Requests, inputs: Sequence[Inputs] = (), *, output: Output, **asked: Unpack[DrawKeywords]
    ) -> Result[list[Image.Image]] | Result[Tensor]: ...
    def draw(
        self,
        requests: Requests,
        inputs: Sequence[Inputs] = (),
        *,
        on_progress: Callable[[Progress], None] | None = None,
        output: Output = "pil",
        deterministic: bool | None = None,
    ) -> Result[Any]:
        """Draw requests, such as those of an earlier result, or recipes that `read_recipe` found.

        Args:
            inputs: what each of them is made from beside the request, one for each picture; none: nothing.
            on_progress, output, deterministic: as in `generate`.

        The first picture that fails ends the call with its error. What of a recipe isn't followed is in the result's
        `warnings`.
        """
        told = [sentence for one in requests if isinstance(one, Recipe) for sentence in one.warnings]
        plain = [one.request if isinstance(one, Recipe) else one for one in requests]
        return self._drawn(plain, inputs, told, on_progress, output, deterministic)

    def _drawn(
        self,
        requests: Sequence[Request],
        inputs: Sequence[Inputs],
        told: Sequence[str],
        on_progress: Callable[[Progress], None] | None,
        output: Output,
        deterministic: bool | None,
        stacklevel: int = 3,
    ) -> Result[Any]:
        """`draw`, with the warnings that are known before. To be called by what a user calls."""
        choice("output", output, OUTPUTS)
        if not requests:
            raise RequestError("no picture is asked for; give one prompt or more")
        if inputs and len(inputs) != len(requests):
            raise RequestError(
                f"there are inputs for {len(inputs)} pictures, and {len(requests)} requests; give as many"
            )
        if deterministic is None:
            deterministic = self.device.type == "cpu"
        engine = Engine(self, deterministic=deterministic)
        places: dict[str, int] = {}
        sentences = dict.fromkeys(told)
        for i, request in enumerate(requests):
            id = engine.add(request, inputs[i] if inputs else None, output=output)
            places[id] = i
            sentences |= dict.fromkeys(engine.jobs[id].warnings)
        for sentence in sentences:
            warnings.warn(sentence, stacklevel=stacklevel)
        images: dict[int, Image.Image | Tensor] = {}
        recipes: dict[int, Request] = {}
        for event in engine.run():
            i = places[event.id]
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                images[i], recipes[i] = event.result, event.request
            elif on_progress is not None:
                on_progress(replace(event, index=i))
        order = range(len(requests))
        return Result(gathered([images[i] for i in order]), [recipes[i] for i in order], tuple(sentences))

    @with_keywords(Keywords)
    def sweep(
        self,
        prompt: str,
        x: Given,
        y: Given | None = None,
        z: Given | None = None,
        **asked: Unpack[Keywords],
    ) -> Sweep:
        """Draw one request with every combination of some values; `.image` is all of them on a labelled sheet.

        Args:
            x, y, z: what varies along columns, rows and blocks: "steps=10,20,30", "guidance=1..7:2",
                "prompt=fox,owl" (replaces the first by each), or a name and values: ("steps", [10, 20, 30]).
            asked: what all cells have in common, as in `generate`; without a seed, one is drawn for all. A Progress has
                its cell's number for an index.

        Raises RequestError, naming axis and value, before anything is drawn. A cell that fails later is gray, and its
        error in `errors`.
        """
        axes = [parse_axis(letter, given) for letter, given in zip("xyz", (x, y, z), strict=True) if given is not None]
        options: dict[str, Any] = {**asked}
        on_progress, deterministic = options.pop("on_progress", None), options.pop("deterministic", None)
        inputs = {field.name: options.pop(field.name) for field in fields(Inputs) if field.name in options}
        sweep = Sweep.plan(Request.from_dict({"prompt": prompt, **ungrouped(options)}), axes)
        if deterministic is None:
            deterministic = self.device.type == "cpu"
        places = {cell.place: i for i, cell in enumerate(sweep.cells)}
        for cell, event in sweep.draw(Engine(self, deterministic=deterministic), self.inputs(**inputs)):
            if isinstance(event, Progress) and on_progress is not None:
                on_progress(replace(event, index=places[cell.place]))
        return sweep


# Taken here, once: what overrides or wraps `generate` may have another signature, and passes keywords on to it.
_TAKEN = list(inspect.signature(Pipeline.generate).parameters)[1:]  # without self
