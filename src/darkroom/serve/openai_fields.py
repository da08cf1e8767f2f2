"""What OpenAI's clients ask for: the fields of `images.generate`, `.edit` and `.create_variation`, to a job, and to how
its pictures are wanted. Fields of a `darkroom.Request` may stand beside them.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from ..errors import ImageError, RequestError, shown
from ..formats.picture import encoded, load_recipe
from ..request import MAX_PIXELS, MAX_SIDE, MIN_SIDE, Hires, Request
from ..settings import Kind, SettingError, flag, one_of, read_size, setting, settings, text, whole
from .answers import Refused
from .bodies import parse
from .jobs import STRENGTH, Wanted, complete, read_wanted
from .models import Found, ModelIndex
from .uploads import Upload, received

# What is asked -> (what is told of it, the model's usual steps times this).
QUALITIES = {
    "auto": ("medium", 1.0), "standard": ("medium", 1.0), "medium": ("medium", 1.0), "low": ("low", 0.5),
    "high": ("high", 1.5), "hd": ("high", 1.5), "xhigh": ("xhigh", 2.0), "max": ("max", 2.0),
}  # fmt: skip
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
# A model draws about so many times its own pixels well; beyond, what it draws repeats itself.
FAR = 2.5
FIDELITY = 0.7  # of the strength, where the input is to be kept closely
# Asked of a service that draws other things than pictures; whoever sends them would wait for what never comes.
REFUSED = {
    "frame_count": "pictures here have one frame; leave it out",
    "frame_duration_ms": "pictures here have one frame; leave it out",
    "svg": "pictures here are made of pixels; leave it out",
    "markup": "drawings over the picture are not read; give a mask, transparent where to edit",
}
ALIASES = {"num_inference_steps": "steps", "true_cfg_scale": "guidance_scale"}  # vLLM-Omni's names
OURS = {name: s for name, s in settings(Request).items() if s.axis and s.joint is None}
_NAMES = {*settings(Request), "size", "loras", "n"}  # image, mask and model are among a request's
_FOREIGN = re.compile(r"(dall-e|gpt-image|chatgpt-image)\b.*")


def _size() -> Kind:
    def read(name: str, given: Any) -> tuple[int, int] | None:
        if given == "auto":
            return None
        if not isinstance(given, str):
            raise SettingError(f"{name} is {shown(given)}; it must be auto, or such as 512x512")
        width, height = read_size(name, given)
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in (width, height)) or width * height > MAX_PIXELS:
            raise SettingError(
                f"{name} is {width}x{height}; sides must be from {MIN_SIDE} to {MAX_SIDE}, and all pixels "
                f"{MAX_PIXELS:,} at most"
            )
        return width, height

    return Kind(read, lambda name, given: given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """OpenAI's fields that change something here. `style`, `moderation`, `complexity` and others are passed over."""

    model: str | None = setting(None, text(300))
    n: int = setting(1, whole(1, 10))
    size: tuple[int, int] | None = setting(None, _size())
    quality: str = setting("auto", one_of(QUALITIES))
    background: str = setting("auto", one_of(("auto", "opaque")))
    response_format: str | None = setting(None, one_of(("b64_json", "url")))
    output_format: str = setting("png", one_of(FORMATS))
    output_compression: int | None = setting(None, whole(0, 100))
    stream: bool = setting(False, flag())
    partial_images: int = setting(0, whole(0, 3))
    input_fidelity: str = setting("low", one_of(("low", "high")))
    user: str = setting("", text(1000))
    safety_identifier: str = setting("", text(1000))

    @property
    def by_url(self) -> bool:
        """Whether pictures are told by their addresses: what clients of DALL-E read where they don't ask."""
        return (self.response_format or ("url" if (self.model or "").startswith("dall-e") else "")) == "url"


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a finished picture is wanted.

    Attributes:
        format: png, jpeg or webp.
        compression: OpenAI's 0 to 100; None: 95 in JPEG, and WebP without loss.
        size: that it is enlarged to, [width, height]; None: as it was drawn.
    """

    format: str = "png"
    compression: int | None = None
    size: tuple[int, int] | None = None

    def make(self, png: bytes, recipe: str) -> bytes:
        """A drawn picture's file as it is wanted, its recipe in it."""
        if self.format == "png" and self.size is None:
            return png
        picture: Image.Image = Image.open(io.BytesIO(png))
        if self.size is not None:
            picture = picture.resize(self.size, Image.Resampling.LANCZOS)
        quality = None if self.compression is None else max(1, self.compression)
        try:
            return encoded(picture, FORMATS[self.format], load_recipe(recipe), quality=quality)
        except ImageError:  # a JPEG has 64 KB for a recipe; the gallery has it whole
            return encoded(picture, FORMATS[self.format], {}, quality=quality)

    def sketch(self, jpeg: bytes, size: tuple[int, int]) -> bytes:
        """A preview at the finished picture's size and format."""
        buffer = io.BytesIO()
        picture = Image.open(io.BytesIO(jpeg)).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        picture.save(buffer, FORMATS[self.format])
        return buffer.getvalue()


def read_fields(values: Mapping[str, Any], told: bool) -> tuple[Fields, dict[str, Any]]:
    """OpenAI's fields and a request's out of a body; what neither knows is passed over.

    told: whether a prompt must be there. Raises Refused (422), naming the field.
    """
    given = {ALIASES.get(name, name): value for name, value in values.items() if name in ALIASES} | dict(values)
    given = {name: value for name, value in given.items() if value is not None}
    for name, why in REFUSED.items():
        if name in given:
            raise Refused(422, f"{name} is given, and {why}", field=name)
    if told and "prompt" not in given:
        raise Refused(422, "there is no prompt; say what to draw", field="prompt")
    found: list[dict[str, Any]] = []
    for known in (settings(Fields), OURS):
        found.append({name: _read(name, given[name], s.kind) for name, s in known.items() if name in given})
        found[-1] = {name: value for name, value in found[-1].items() if value is not None}
    fields = Fields(**found[0])
    if fields.output_format == "png" and fields.output_compression not in (None, 100):
        raise Refused(422, "PNG files lose nothing: ask for jpeg or webp, too", field="output_compression")
    if "loras" in given:
        found[1]["loras"] = _loras(given["loras"])
    return fields, {"prompt": ""} | found[1]


def _read(name: str, given: Any, kind: Kind) -> Any:
    """A value of JSON, or of a form's text; None for an empty one, which is how forms leave something out."""
    if given == "":
        return None
    try:
        if isinstance(given, str) and not (kind.of is str and kind.count == 1):
            if kind.of is Hires:
                return kind.check(name, _json(name, given))
            given = kind.read(name, given)
        return kind.check(name, given)
    except (SettingError, RequestError) as wrong:
        raise Refused(422, str(wrong), field=name) from None


def _json(name: str, given: str) -> Any:
    try:
        return parse(given.encode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        raise Refused(422, f"{name} is not valid JSON", field=name) from None


def _loras(given: Any) -> Any:
    """A list of names or objects; in a form as JSON, or a name."""
    if isinstance(given, str):
        given = _json("loras", given) if given.lstrip().startswith("[") else [given]
    if not isinstance(given, list):
        raise Refused(422, f"loras is {shown(given)}; give a list of names, or of objects with name and scale")
    return [{"name": one} if isinstance(one, str) else one for one in given]


def field_in(sentence: str) -> str | None:
    """The field that a sentence about a request names first, if any."""
    return next((word for word in re.findall(r"[a-z_]+", sentence) if word in _NAMES), None)


def find_model(index: ModelIndex, name: str | None) -> Found:
    """The model that a name means: the default one where there is none, and for OpenAI's own. Raises Refused (404)."""
    if not name:
        return index.default_model
    try:
        return index.get("model", name)
    except RequestError as error:
        if _FOREIGN.fullmatch(name):
            return index.default_model
        raise Refused(404, str(error), field="model", code="model_not_found") from None


def read_mask(data: bytes, size: tuple[int, int], max_pixels: int) -> Upload:
    """The mask of an edit, fully transparent where to edit, as ours, white where to repaint.

    size: the picture's. Raises Refused (422) and ImageError.
    """
    upload = received(data, "mask", max_pixels)
    with Image.open(io.BytesIO(upload.png)) as picture:
        if picture.mode != "RGBA":
            raise Refused(422, "the mask has no transparency; make it transparent where to edit", field="mask")
        white = picture.getchannel("A").point(lambda alpha: 0 if alpha else 255)
    if white.size != size:
        told = f"the mask is {white.width}x{white.height} and the picture {size[0]}x{size[1]}"
        raise Refused(422, f"{told}; make them the same size", field="mask")
    if white.getbbox() is None:
        raise Refused(422, "nothing of the mask is fully transparent; make it so where to edit", field="mask")
    buffer = io.BytesIO()
    white.save(buffer, "PNG", compress_level=1)
    return received(buffer.getvalue(), "mask", max_pixels)


@dataclass(frozen=True, slots=True)
class Asked:
    """A job, and how its pictures are wanted.

    Attributes:
        size: of a finished picture, [width, height], as far as that is known before.
    """

    wanted: Wanted
    delivery: Delivery
    size: tuple[int, int]


def make_job(
    fields: Fields, request: Mapping[str, Any], pictures: dict[str, Upload], model: Found, told: Mapping[str, Any]
) -> Asked:
    """The job of a request to a model.

    Args:
        request: fields of a `darkroom.Request`, and loras.
        pictures: image and mask, white where to repaint.
        told: the model's description (`engine_process`).

    Raises RequestError for what can't be drawn.
    """
    image = pictures.get("image")
    values, own = dict(request), (int(told["size"][0]), int(told["size"][1]))
    goal = fields.size or ((image.width, image.height) if image is not None else own)
    values["width"], values["height"] = (None, None) if fields.size is None else fields.size
    enlarged = None
    if goal[0] * goal[1] > FAR * own[0] * own[1] and "hires" not in values:
        if "mask" in pictures:  # what isn't masked stays as it is, at any size
            values.setdefault("only_masked", True)
        elif "outpaint" not in values:
            enlarged = goal
            values["width"], values["height"] = near(goal, own, told["downscale"])
    if image is not None:
        strength = values.get("strength", 1.0 if "mask" in pictures else STRENGTH)
        values["strength"] = strength * (FIDELITY if fields.input_fidelity == "high" else 1)
    wanted = read_wanted(values | {"n": fields.n, "model": model.name} | pictures, lambda name, given: given)
    factor = QUALITIES[fields.quality][1]
    if factor != 1 and "steps" not in values:
        sizes = {role: (one.width, one.height) for role, one in pictures.items()}
        usual = complete(wanted.request, told, sizes).steps or 1
        wanted = replace(wanted, request=replace(wanted.request, steps=max(1, round(usual * factor))))
    return Asked(wanted, Delivery(fields.output_format, fields.output_compression, enlarged), goal)


def near(goal: tuple[int, int], own: tuple[int, int], grid: int) -> tuple[int, int]:
    """A size of a goal's shape with about as many pixels as the model's own, whose sides a grid divides."""
    scale = math.sqrt(own[0] * own[1] / (goal[0] * goal[1]))
    width, height = (max(grid, round(side * scale / grid) * grid) for side in goal)
    return width, height
