"""What `Pipeline`'s calls that draw take by name: declared once, with types; and values as users give them, checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, cast

from PIL import Image
from torch import Tensor

from .adapters import Lora
from .elsewhere import by_our_names
from .engine.job import Control
from .errors import RequestError
from .formats.embedding import Embedding
from .images import Picture
from .request import Request
from .settings import default, settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .arguments import Guidance, Inpaint, Noise, SizeConditioning, Speed, Tiling
    from .engine.engine import Progress
    from .names import NoiseSource, PromptStyle, SamplerName, ScheduleName
    from .request import Enlarge, Hires

F = TypeVar("F", bound=Callable[..., Any])
Texts = str | Sequence[str]
Loras = Lora | str | Path | Sequence[Lora | str | Path]
Embeddings = Embedding | str | Path | Sequence[Embedding | str | Path]
Tensors = Literal["pt", "latent"]  # of `Output`, what gives tensors


class DrawKeywords(TypedDict, total=False):
    """What all calls take that draw pictures; `Pipeline.generate` says what each is."""

    on_progress: Callable[[Progress], None] | None
    deterministic: bool | None


class CommonKeywords(DrawKeywords, total=False):
    """What is the same for a picture from a text and for one made larger."""

    steps: int | None
    guidance_scale: float | None
    sampler: SamplerName | None
    schedule: ScheduleName | None
    seed: int | None
    num_images: int
    latents: Tensor | None
    depth: Picture | NDArray[Any] | Tensor | None
    hires: Hires | None
    enlarge: Enlarge | float | None
    controls: Control | Sequence[Control]
    loras: Loras
    embeddings: Embeddings
    clip_skip: int
    prompt_style: PromptStyle
    guidance: Guidance | None
    inpaint: Inpaint | None
    noise: Noise | NoiseSource | None
    tiling: Tiling | None
    speed: Speed | None
    sizes: SizeConditioning | None


class UpscaleKeywords(CommonKeywords, total=False):
    """What `Pipeline.upscale` takes by name; it says what its own are."""

    scale: float | None
    strength: float | None
    tile: int | None
    overlap: int | None
    noise_level: int | None


class Keywords(CommonKeywords, total=False):
    """What `Pipeline.generate` takes by name, and the calls that pass theirs on to it."""

    width: int | None
    height: int | None
    size: tuple[int, int] | None
    image: Picture | Sequence[Picture] | None
    mask: Picture | Sequence[Picture] | None
    strength: float | None


_USUAL: dict[str, Any] = {name: default(Request, name) for name in settings(Request)}
_USUAL |= {"num_images": 1, "controls": (), "loras": (), "embeddings": ()}


def with_keywords(keywords: Any) -> Callable[[F], F]:
    """Let a call take its keywords by other programs' names, too (`elsewhere`); and let `help`, and whoever else asks
    for its signature, see the keywords where it takes any."""

    def tell(function: F) -> F:
        shape = inspect.signature(function)
        own = [p for p in shape.parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_USUAL.get(name), annotation=kind)
            for name, kind in keywords.__annotations__.items()
            if name not in shape.parameters
        ]
        known = frozenset((*(p.name for p in (*own, *more)), *settings(Request)))

        @wraps(function)
        def call(*args: Any, **asked: Any) -> Any:
            return function(*args, **asked if asked.keys() <= known else by_our_names(asked, known))

        call.__signature__ = shape.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return cast("F", call)

    return tell


# --- values as users give them, brought to one form


def texts(prompt: Texts, negative: Texts) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts as lists of one length; what is in them a Request checks."""
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    if not prompts:
        raise RequestError("the list of prompts is empty; give one prompt or more")
    negatives = list(negative) if isinstance(negative, (list, tuple)) else [negative] * len(prompts)
    if len(negatives) != len(prompts):
        raise RequestError(
            f"there are {len(negatives)} negative prompts for {len(prompts)} prompts; give one, or as many"
        )
    return prompts, negatives  # type: ignore[return-value]


def pictures(
    given: Picture | Sequence[Picture] | None, name: str, opened: Callable[..., Image.Image], count: int
) -> list[Image.Image | None]:
    """Each prompt's picture, opened, or None. Raises RequestError and ImageError."""
    if given is None:
        return [None] * count
    if not isinstance(given, (list, tuple)):
        return [opened(given, name)] * count
    if len(given) != count:
        raise RequestError(f"there are {len(given)} pictures as {name} for {count} prompts; give one, or as many")
    return [opened(picture, name) for picture in given]


def listed_controls(given: object) -> tuple[Control, ...]:
    """The ControlNets of a call; one alone is no list. Raises RequestError."""
    given = [given] if isinstance(given, Control) else given
    if not isinstance(given, list | tuple) or not all(isinstance(control, Control) for control in given):
        raise RequestError(f"controls is {str(given)[:60]!r}; it must be a list of darkroom.Control(net, image)")
    return tuple(given)


def listed_loras(loras: object) -> Sequence[Lora | str | Path]:
    """The LoRAs of a call; one alone is no list."""
    if isinstance(loras, Lora | str | Path):
        return [loras]
    if not isinstance(loras, list | tuple) or not all(isinstance(lora, Lora | str | Path) for lora in loras):
        raise RequestError(f"loras is {str(loras)[:60]!r}; it must be a list of darkroom.Lora(path, scale) or of paths")
    return loras


def starting_noises(latents: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """Each picture's given noise [C, h, w], or None."""
    if latents is None:
        return [None] * count
    if not isinstance(latents, Tensor) or latents.ndim != 4:
        raise RequestError("latents must be a tensor [N, C, h, w], one starting noise for each picture")
    if len(latents) != count:
        raise RequestError(f"latents hold {len(latents)} starting noises for {count} pictures; give as many")
    return list(latents)
