"""From what somebody asks to a job's row: looked up, completed, priced. After this a job is a pure function of its row.

Seeds, size, steps, sampler and guidance are filled in here from the model's description, so that no later default can
change a job that waits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..arguments import GROUPS, ungrouped
from ..diffusion import AUTOMATIC, spacing_name
from ..errors import RequestError, did_you_mean, shown
from ..formats.picture import dump_recipe
from ..prompts.grammar import Prompt, parse
from ..request import EMBEDDED_UPSCALER, MAX_CONTROL, MAX_IMAGES, Request, real, whole
from ..samplers import entry
from ..settings import Setting, default, settings
from .models import ModelIndex
from .uploads import Upload

GUIDANCE_SCALE = 7.5  # where neither the request nor the model says
STRENGTH = 0.75
ROLES = ("image", "mask", "depth")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlAsked:
    """A ControlNet of a job: its name here, and how it acts (`darkroom.Control`)."""

    net: str
    scale: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    guess: bool = False
    hint: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.net, str):
            raise RequestError(f"a control's net is {shown(self.net)}; give the name of a ControlNet")
        real("a control's scale", self.scale, -MAX_CONTROL, MAX_CONTROL)
        if real("a control's start", self.start, 0, 1) >= real("a control's stop", self.stop, 0, 1):
            raise RequestError(f"a control starts at {self.start:g} and stops at {self.stop:g}; let it start before")
        if not isinstance(self.guess, bool):
            raise RequestError(f"a control's guess is {shown(self.guess)}; it must be true or false")
        if self.hint is not None and not isinstance(self.hint, str):
            raise RequestError(f"a control's hint is {shown(self.hint)}; give the name of one")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAsked:
    """A LoRA of a job: its name here and its strengths."""

    name: str
    scale: float = 1.0
    text_scale: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise RequestError(f"a LoRA's name is {shown(self.name)}; give a text")
        for scale in (self.scale, self.text_scale):
            if scale is not None:
                real("a LoRA's scale", scale, -100, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A job as it is asked for.

    Attributes:
        request: the first picture's; picture i has seed + i.
        n: how many pictures.
        model: a name of the index; None: the default one.
        upscale: scale (None: 2, or the model's own) where the picture is to be made larger; None: it isn't.
        pictures: role (image, mask, depth, control.0, ...) -> what was sent, as bytes or received already, or the
            SHA-256 of an input.
    """

    request: Request
    n: int = 1
    model: str | None = None
    controls: tuple[ControlAsked, ...] = ()
    loras: tuple[LoraAsked, ...] = ()
    upscale: Mapping[str, float | None] | None = None
    pictures: Mapping[str, bytes | str | Upload] = field(default_factory=dict)


# --- the own dialect's JSON: the arguments of Pipeline.generate


_BESIDE = ("n", "num_images", "model", "controls", "loras", "upscale", *ROLES)


_JSON = {int: "integer", float: "number", str: "string", bool: "boolean"}


def asked_settings() -> dict[str, Setting]:
    """The settings that somebody can ask for in a job, by name."""
    found = settings(Request).items()
    return {name: one for name, one in found if one.option is not None or name in ("prompt", "hires", "enlarge")}


def usual_settings() -> dict[str, Any]:
    """What each setting is where nothing is said of it; None: the model decides. The prompt has to be given."""
    return {name: default(Request, name) for name in asked_settings() if name != "prompt"}


def body_schema() -> dict[str, Any]:
    """JSON Schema of a job, for `/openapi.json`: from where a request's settings are declared."""
    picture = {"type": "string", "description": "A picture as base64, a data URL, or input:SHA256."}
    beside: dict[str, Any] = {
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_IMAGES, "description": "How many pictures."},
        "model": {"type": "string", "description": "A model's name; absent: the default one."},
        "controls": {
            "type": "array",
            "items": {"type": "object"},
            "description": "ControlNets: net, image, scale, ...",
        },
        "loras": {"type": "array", "description": "Names, or objects of name, scale, text_scale."},
        "upscale": {"type": "number", "description": "Make `image` so many times as large."},
        **dict.fromkeys(ROLES, picture),
    }
    own = {
        name: {"description": one.help}
        | ({"type": _JSON[one.kind.of]} if one.kind.of in _JSON and one.kind.count == 1 else {})
        for name, one in asked_settings().items()
        if name not in beside
    }
    return {"type": "object", "required": ["prompt"], "properties": own | beside}


def read_wanted(values: Mapping[str, Any], decode: Any) -> Wanted:
    """A job from JSON with the arguments of `Pipeline.generate`: groups as objects, or their fields flat.

    decode: what makes bytes, or an input's hash, of a picture that is given as text.
    Raises RequestError, naming the field.
    """
    values = {name: value for name, value in values.items() if value is not None}
    beside = {name: values.pop(name) for name in _BESIDE if name in values}
    groups = {name: values.pop(name) for name in list(values) if name in GROUPS and isinstance(values[name], Mapping)}
    flat = ungrouped({name: _made(GROUPS[name], name, group) for name, group in groups.items()})
    request = Request.from_dict(_seeds_read({**values, **{k: v for k, v in flat.items() if v is not None}}))
    if "n" in beside and "num_images" in beside:
        raise RequestError("n and num_images are both given, and mean the same; give one")
    controls, pictures = [], {}
    for i, control in enumerate(_objects("controls", beside.get("controls", []))):
        image = control.pop("image", None)
        if image is None:
            raise RequestError("a control needs the image that it is shown; give one")
        pictures[f"control.{i}"] = decode(f"controls[{i}].image", image)
        controls.append(_made(ControlAsked, "a control", control))
    loras = beside.get("loras", [])
    loras = [{"name": lora} if isinstance(lora, str) else lora for lora in loras] if isinstance(loras, list) else loras
    upscale = beside.get("upscale")
    if upscale is not None:
        upscale = {"scale": upscale} if isinstance(upscale, int | float) else upscale
        if not isinstance(upscale, Mapping) or set(upscale) - {"scale"}:
            raise RequestError(f"upscale is {shown(upscale)}; give a factor, such as 2")
        if upscale.get("scale") is not None:
            real("upscale", upscale["scale"], 0.01, 16)
    for role in ROLES:
        if role in beside:
            pictures[role] = decode(role, beside[role])
    model = beside.get("model")
    if model is not None and not isinstance(model, str):
        raise RequestError(f"model is {shown(model)}; give a model's name")
    return Wanted(
        request=request,
        n=whole("n", beside.get("n", beside.get("num_images", 1)), 1, MAX_IMAGES),
        model=model,
        controls=tuple(controls),
        loras=tuple(_made(LoraAsked, "a LoRA", lora) for lora in _objects("loras", loras)),
        upscale=upscale,
        pictures=pictures,
    )


def _seeds_read(values: dict[str, Any]) -> dict[str, Any]:
    """Seeds may come as the texts that the server tells them as: 2^64 doesn't fit into a JavaScript number."""
    texts = {name: values.get(name) for name in ("seed", "variation_seed")}
    return values | {k: int(v) for k, v in texts.items() if isinstance(v, str) and re.fullmatch(r"-?[0-9]{1,20}", v)}


def _objects(name: str, given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or len(given) > 16 or not all(isinstance(one, Mapping) for one in given):
        raise RequestError(f"{name} is {shown(given)}; give a list of objects, 16 at most")
    return [dict(one) for one in given]


def _made(kind: Any, what: str, values: Mapping[str, Any]) -> Any:
    known = kind.__dataclass_fields__
    for name in values:
        if name not in known:
            raise RequestError(f"{what} has no field {shown(name)}{did_you_mean(str(name), known)}")
    try:
        return kind(**values)
    except TypeError:
        raise RequestError(f"{what} needs {next(iter(known))}; give it") from None


# --- completing and pricing


@dataclass(frozen=True, slots=True)
class Priced:
    """A job ready for the queue."""

    document: str  # JSON, what a row keeps
    request: Request  # the first picture's, complete
    seeds: tuple[int, ...]
    steps: int
    width: float  # of one evaluation of one picture: rows x megapixels
    cost: float  # rows x megapixels x evaluations of all pictures


def priced(
    wanted: Wanted, description: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]], index: ModelIndex
) -> Priced:
    """Complete a job for a model, and say what it costs.

    sizes: (width, height) of the pictures that it brings, by role. Raises RequestError for what can be told already.
    """
    request = complete(wanted.request, description, sizes)
    for lora in wanted.loras:
        index.get("lora", lora.name)
    for control in wanted.controls:
        index.get("controlnet", control.net)
    for name in upscalers_of(request):
        index.upscaler(name)
    _check_pictures(request, sizes, wanted)
    _check_texts(request, index)
    steps, width, evaluations = _work(request, wanted, description, sizes)
    seed = request.seed
    assert seed is not None
    document = {
        "request": json.loads(dump_recipe(request.to_dict())),
        "n": wanted.n,
        "controls": [asdict(control) for control in wanted.controls],
        "loras": [asdict(lora) for lora in wanted.loras],
        "upscale": wanted.upscale if wanted.upscale is None else dict(wanted.upscale),
    }
    counted = [request.numbered(i).seed for i in range(wanted.n)]
    seeds = tuple(seed if one is None else one for one in counted)
    return Priced(json.dumps(document), request, seeds, steps, width, width * evaluations * wanted.n)


def complete(request: Request, description: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> Request:
    """A request with what it left open filled in as the engine would fill it, but sizes that a picture decides."""
    defaults = description["defaults"]
    sampler = request.sampler or description["sampler"]
    steps = request.steps
    if steps is None:
        recommended = request.sampler is None and "steps" in defaults
        steps = int(defaults["steps"]) if recommended else entry(sampler).steps
    guidance = request.guidance_scale
    filled: dict[str, Any] = {
        "sampler": sampler,
        "schedule": request.schedule or (description["schedule"] if request.sampler is None else None),
        "steps": steps,
        "guidance_scale": defaults.get("guidance_scale", GUIDANCE_SCALE) if guidance is None else guidance,
    }
    if "image" not in sizes and description["task"] != "upscale":
        filled["width"] = request.width or description["size"][0]
        filled["height"] = request.height or description["size"][1]
    entry(sampler)
    if request.schedule is not None and request.schedule.strip().casefold() not in (AUTOMATIC, ""):
        spacing_name(request.schedule)
    return replace(request.seeded(), **filled)


def _check_texts(request: Request, index: ModelIndex) -> None:
    """Refuse what the engine would refuse of the texts: weights that are none, LoRAs that are not here."""
    for text, negative in ((request.prompt, False), (request.negative_prompt, True)):
        read = Prompt.parse(text, request.prompt_style, negative)
        for part in read.parts:
            for stage in read.stages(part, request.steps or 1):
                parse(stage.text, read.style)
        for tag in read.loras:
            index.get("lora", tag.name)


def _check_pictures(request: Request, sizes: Mapping[str, tuple[int, int]], wanted: Wanted) -> None:
    """Refuse what the engine would refuse later for want of a picture."""
    if "mask" in sizes and "image" not in sizes:
        raise RequestError("there is a mask, but no image that it belongs to; give one")
    if wanted.upscale is not None and "image" not in sizes:
        raise RequestError("upscale needs an image; give one")
    if "image" not in sizes and "mask" not in sizes and request.outpaint is None:
        for name in ("strength", "fill", "only_masked", "mask_padding", "mask_blur", "exact_steps"):
            if getattr(request, name) is not None:
                raise RequestError(
                    f"{name} is {shown(getattr(request, name))}, but there is no image; give one, or leave it out"
                )


def _work(
    request: Request, wanted: Wanted, description: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]
) -> tuple[int, float, float]:
    """(steps, rows x megapixels of an evaluation, evaluations) of a picture, as nearly as can be told before."""
    width, height = request.width, request.height
    if "image" in sizes:
        w, h = sizes["image"]
        scale = 1.0
        if wanted.upscale is not None or description["task"] == "upscale":
            scale = (wanted.upscale or {}).get("scale") or (4.0 if description["task"] == "upscale" else 2.0)
        width, height = width or round(w * scale), height or round(h * scale)
        if request.only_masked:
            width, height = description["size"]
    assert width is not None
    assert height is not None
    if request.outpaint is not None:
        left, top, right, bottom = request.outpaint
        width, height = width + left + right, height + top + bottom
    guided = request.guidance_scale is not None and request.guidance_scale > 1
    rows = (1 + guided) + (description["task"] == "edit" and guided) + (request.pag_scale is not None)
    steps = request.steps or 1
    taken = steps
    if "image" in sizes and not request.exact_steps and description["task"] in ("text", "depth"):
        strength = request.strength if request.strength is not None else STRENGTH
        taken = max(1, int(steps * strength))
    per_step = 2 if entry(request.sampler).make.startswith("two_stage.") else 1
    evaluations = float(taken * per_step)
    if request.hires is not None:
        second = int((request.hires.steps or steps) * request.hires.strength)
        evaluations += second * per_step * request.hires.scale**2
        taken += second
    return max(taken, 1), rows * width * height / 1e6, evaluations


def wanted_for_engine(document: str, index: ModelIndex) -> tuple[dict[str, Any], dict[str, str]]:
    """What an engine is sent of a job: with the paths of what it names, and the learned words there are."""
    wanted = json.loads(document)
    for control in wanted["controls"]:
        control["path"] = index.get("controlnet", control["net"]).path
    for lora in wanted["loras"]:
        lora["path"] = index.get("lora", lora["name"]).path
    named = upscalers_of(Request.from_dict(wanted["request"]))
    wanted["upscalers"] = {name: index.upscaler(name).path for name in named}
    return wanted, {name: one.path for name, one in index.found["embedding"].items()}


def upscalers_of(request: Request) -> list[str]:
    """The networks that a request names and that are looked up here."""
    names = [request.hires and request.hires.network, request.enlarge and request.enlarge.upscaler]
    return [name for name in names if name and name != EMBEDDED_UPSCALER]


def roles_in_order(inputs: Mapping[str, str]) -> Sequence[str]:
    """The order in which a job's pictures are sent."""
    return sorted(inputs)
