"""`darkroom evaluate`: do a model's pictures show what the prompts say?"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, cast

from ..evaluate.call import Asked, EvaluationProgress, evaluate_asked
from . import options
from .command import App, Argument, Option

if TYPE_CHECKING:
    from ..evaluate.call import Resize
    from ..names import DType, Metric, SamplerName

app = App()
# What sentences call by an option's name.
_NAMES = ("before", "count", "data", "glyph", "metrics", "object", "pictures", "resize", "word")


@app.command()
def evaluate(
    model: Annotated[
        str | None, Argument(metavar="[MODEL]", help="A model (folder, file, ORG/NAME). [default: embedded]")
    ] = None,
    metrics: Annotated[
        str,
        Option(
            metavar="M,M",
            help="Of adherence, reconstruction, fid, kid, cmmd, clip, memorisation. [default: adherence]",
            show_default=False,
        ),
    ] = "adherence",
    count: Annotated[
        int | None,
        Option(
            "--count",
            "-n",
            metavar="N",
            parser=options.whole_number,
            help="Pictures to draw, a category. [default: 100; with --data one for each of its pictures]",
        ),
    ] = None,
    data: Annotated[
        str | None,
        Option(
            metavar="FOLDER", help="Pictures to compare with, or pytorch-fid's .npz. [default: the built-in scenes]"
        ),
    ] = None,
    pictures: Annotated[str | None, Option(metavar="FOLDER", help="Measure these pictures; no model is asked.")] = None,
    features: Annotated[
        list[str] | None,
        Option(metavar="FILE", help="A network that judges: Inception, CLIP or LPIPS; may come several times."),
    ] = None,
    resize: Annotated[
        str, Option(metavar="R", help="How Inception gets its pictures: tensorflow or pytorch-fid.")
    ] = "tensorflow",
    keep: Annotated[
        str | None, Option(metavar="DIR", help="Keep drawn pictures here; the same command goes on with them.")
    ] = None,
    cache: Annotated[
        str | None, Option(metavar="DIR", help="Keep features here, so that nothing is looked at twice.")
    ] = None,
    statistics: Annotated[
        str | None, Option(metavar="FILE", help="Write the data's statistics (.npz) for later --data.")
    ] = None,
    sheet: Annotated[
        str | None,
        Option(metavar="FILE", help="A picture of a new object before and after; of memorisation's closest pairs."),
    ] = None,
    object_: Annotated[
        str | None,
        Option("--object", metavar="NOUN", help="Judge a new object instead, and what it cost the old ones."),
    ] = None,
    glyph: options.NewGlyph = None,
    word: options.NewWord = None,
    before: Annotated[
        str | None,
        Option(metavar="M", help="The model before it learned. [default: MODEL without --lora and --embedding]"),
    ] = None,
    vae: options.Vae = None,
    lora: options.Loras = None,
    embedding: options.Embeddings = None,
    steps: Annotated[
        int | None,
        Option(metavar="N", parser=options.whole_number, help="Sampling steps. [default: the model's]"),
    ] = None,
    guidance: Annotated[
        float | None,
        Option(metavar="X", parser=options.real_number, help="Guidance scale. [default: the model's]"),
    ] = None,
    sampler: Annotated[str | None, Option(metavar="NAME", help="See `darkroom samplers`.")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Measure a model or a folder of pictures.

    Adherence judges pictures of the built-in scenes, seen and held-out combinations, beside the ceiling and chance: one
    is right when its background, its objects, their number, size and places are all as the caption says. The other
    metrics work with any pictures (docs/evaluation.md).
    """
    with options.named_as_options(*_NAMES):
        asked = Asked(
            model=model,
            metrics=cast("list[Metric]", [part.strip() for part in metrics.split(",") if part.strip()]),
            count=count,
            data=data,
            pictures=pictures,
            features=features or (),
            resize=cast("Resize", resize),
            keep=keep,
            cache=cache,
            statistics=statistics,
            sheet=sheet,
            object=object_,
            glyph=glyph,
            word=word,
            before=before,
            embeddings=embedding or (),
            steps=steps,
            guidance_scale=guidance,
            sampler=cast("SamplerName | None", sampler),
            vae=vae,
            device=device,
            dtype=cast("DType", dtype),
        )
    files = options.loras(lora)
    from .display import Display

    with Display("loading the model") as display:
        options.set_threads(threads)

        def show(progress: EvaluationProgress) -> None:
            if progress.total:
                display.steps(progress.done, progress.total, progress.task)

        with options.named_as_options():
            from ..adapters import Lora

            found = evaluate_asked(replace(asked, loras=[Lora(file, scale) for file, scale in files]), show)
    print(json.dumps(dict(found), indent=2) if as_json else found)
