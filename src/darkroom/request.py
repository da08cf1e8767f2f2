"""What a user asks for, checked: every error a user can cause in a request ends here, in one sentence. No torch.

A `Request` is one picture. What it leaves open (None) the model and the engine fill in; the filled-in request is
the picture's recipe: asked again, it gives the same picture.
"""

from __future__ import annotations

import math
import numbers
import operator
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import RequestError, nearest
from .errors import shown as _shown

MIN_SIDE, MAX_SIDE = 8, 8192  # pixels
MAX_PIXELS = 4096 * 4096
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_PROMPT = 32_000  # characters
MAX_CLIP_SKIP = 12
MAX_IMAGES = 1000  # pictures a call
MAX_LORA_SCALE = 100.0
MAX_CONTROL = 10.0  # a ControlNet's scale
SEEDS = 2**64
PROMPT_STYLES = ("a1111", "comfy", "plain")
OUTPUTS = ("pil", "pt", "latent")
FILLS = ("original", "fill", "noise")
UPSCALERS = ("latent", "lanczos")
MAX_SCALE = 16.0  # of a second pass
MAX_MARGIN = 1024  # pixels around a mask, and of its edge
MAX_CACHE_INTERVAL = 100
MAX_MERGING = 0.75  # of four neighbouring tokens one stays
MAX_NOISE_LEVEL = 350  # of upscaling models, as in diffusers
# Fields that say something about a picture that is given.
OF_AN_IMAGE = ("strength", "exact_steps", "fill", "only_masked", "mask_padding", "mask_blur", "outpaint")


SIZES = (  # two pixel numbers each, told to SDXL
    "original_size", "crop", "target_size", "negative_original_size", "negative_crop", "negative_target_size"
)  # fmt: skip
SCORES = ("aesthetic_score", "negative_aesthetic_score")  # told to its refiner


def whole(name: str, value: object, low: int, high: int, what: str = "") -> int:
    """`value` as an int in low..high (numpy's integers too; no bools, no floats, no strings), or a RequestError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise RequestError(f"{name} is {_shown(value)}; it must be a whole number from {low} to {high}{what}")
    number = operator.index(value)
    if not low <= number <= high:
        raise RequestError(f"{name} is {_shown(number)}; it must be from {low} to {high}{what}")
    return number


def real(name: str, value: object, low: float, high: float, what: str = "") -> float:
    """`value` as a finite float in low..high, or a RequestError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise RequestError(f"{name} is {_shown(value)}; it must be a number from {low:g} to {high:g}{what}")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond any float
        number = math.inf
    if not low <= number <= high:  # NaN is refused here too
        raise RequestError(f"{name} is {_shown(value)}; it must be from {low:g} to {high:g}{what}")
    return number


def text(name: str, value: object, longest: int = MAX_PROMPT) -> str:
    """`value` as a string of at most `longest` characters, or a RequestError."""
    if not isinstance(value, str):
        raise RequestError(f"{name} is {_shown(value)}; it must be a text")
    if len(value) > longest:
        raise RequestError(f"{name} has {len(value):,} characters; shorten it to {longest:,} or fewer")
    return value


def choice(name: str, value: object, known: Iterable[str]) -> str:
    """`value` if it is one of the known names, or a RequestError that lists them and suggests the nearest."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        raise RequestError(
            f"{name} is {_shown(value)}; it must be one of {', '.join(known)}{nearest(str(value), known)}"
        )
    return value


def draw_seed() -> int:
    """A fresh seed, below 2**32 so that every JSON reader keeps it whole."""
    return secrets.randbelow(2**32)


def _two(name: str, value: object, low: int) -> tuple[int, int]:
    """Two pixel numbers: (width, height), or of a crop (left, top)."""
    what = "(left, top)" if name.endswith("crop") else "(width, height)"
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise RequestError(f"{name} is {_shown(value)}; it must be two numbers of pixels, {what}")
    first, second = (whole(name, number, low, 2**16, f"; {name} is {what}") for number in value)
    return first, second


def _interval(value: object) -> tuple[float, float]:
    what = "; guidance_interval is (lowest sigma, highest sigma)"
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise RequestError(f"guidance_interval is {_shown(value)}; it must be two noise levels, lowest and highest")
    low = real("the lower end of guidance_interval", value[0], 0.0, 1e6, what)
    high = (
        math.inf
        if value[1] in (None, math.inf)
        else real("the upper end of guidance_interval", value[1], 0.0, 1e6, what)
    )
    if low >= high:
        raise RequestError(f"guidance_interval is {_shown(value)}; its first number must be below its second")
    return low, high


def _levels(value: object) -> tuple[str, ...]:
    known = re.compile(r"mid|(down|up)\.\d{1,2}", re.ASCII)
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (tuple, list)) or not names:
        raise RequestError(f"pag_levels is {_shown(value)}; it must be a list of the U-Net's levels, such as ('mid',)")
    for name in names:
        if not isinstance(name, str) or not known.fullmatch(name):
            raise RequestError(
                f"pag_levels has {_shown(name)}; a level is 'mid', 'down.0' (the finest) or 'up.0' (the coarsest)"
            )
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class UsedLora:
    """A LoRA in a recipe: its file's name, the first 12 hexadecimal digits of its hash (A1111's; "" where another
    tool's recipe doesn't tell), its strengths."""

    name: str
    hash: str
    scale: float  # on the U-Net
    text_scale: float  # on the text encoders

    @property
    def words(self) -> str:
        """For people: "ink (0123456789ab) at 0.8"."""
        texts = "" if self.text_scale == self.scale else f", of the texts at {self.text_scale:g}"
        return f"{self.name} ({self.hash or 'no hash'}) at {self.scale:g}{texts}"

    @classmethod
    def checked(cls, value: object) -> UsedLora:
        """From an object of these names, or one of this class; RequestError for anything else."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or set(value) != {f.name for f in fields(cls)}:
            raise RequestError(f"loras holds {_shown(value)}; each must have name, hash, scale and text_scale")
        scales = [real("a LoRA's scale", value[n], -1e6, 1e6) for n in ("scale", "text_scale")]
        return cls(text("a LoRA's name", value["name"], 1000), text("a LoRA's hash", value["hash"], 100), *scales)


@dataclass(frozen=True, slots=True)
class UsedControl:
    """A ControlNet in a recipe."""

    name: str  # its file's or folder's
    hash: str | None  # ten hexadecimal digits of its SHA-256; None for a network that was given loaded
    hint: str  # the fingerprint of the picture it was shown, before it was resized
    scale: float
    start: float  # fractions of the steps
    stop: float
    guess: bool

    @property
    def words(self) -> str:
        """For people: "canny (0123456789) at 0.8 after the picture 0123456789abcdef"."""
        when = "" if (self.start, self.stop) == (0.0, 1.0) else f" from {self.start:g} to {self.stop:g} of the steps"
        guess = ", guess mode" if self.guess else ""
        return f"{self.name} ({self.hash or 'no hash'}) at {self.scale:g}{when} after the picture {self.hint}{guess}"

    @classmethod
    def checked(cls, value: object) -> UsedControl:
        """From such a one, or from a mapping of its fields. Raises RequestError."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or set(value) != {f.name for f in fields(cls)}:
            names = ", ".join(f.name for f in fields(cls))
            raise RequestError(f"controls holds {_shown(value)}; in a request each must have {names}")
        scale = real("a control's scale", value["scale"], -MAX_CONTROL, MAX_CONTROL)
        start, stop = (real(f"a control's {name}", value[name], 0.0, 1.0) for name in ("start", "stop"))
        name, hint = (text(f"a control's {name}", value[name], 1000) for name in ("name", "hint"))
        hash = None if value["hash"] is None else text("a control's hash", value["hash"], 100)
        return cls(name, hash, hint, scale, start, stop, _flag("a control's guess", value["guess"]))


@dataclass(frozen=True, slots=True)
class Hires:
    """A second pass over a finished picture, larger: more detail than the model draws at once, and one composition."""

    scale: float = 2.0  # 1..16: of each side
    strength: float = 0.7  # 0..1: how much of the enlarged picture is drawn anew
    steps: int | None = None  # 1..1000, of which steps * strength are taken; None: the first pass's
    upscaler: str = "latent"  # what is enlarged: the latent (bilinear), or the picture ("lanczos")

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", real("hires scale", self.scale, 1.0, MAX_SCALE))
        object.__setattr__(self, "strength", real("hires strength", self.strength, 0.0, 1.0))
        if self.steps is not None:
            object.__setattr__(self, "steps", whole("hires steps", self.steps, 1, MAX_STEPS))
        choice("hires upscaler", self.upscaler, UPSCALERS)

    @property
    def words(self) -> str:
        """For people: "2 times as large, strength 0.7, latent"."""
        steps = "" if self.steps is None else f", {self.steps} steps"
        return f"{self.scale:g} times as large, strength {self.strength:g}{steps}, {self.upscaler}"

    @classmethod
    def checked(cls, value: object) -> Hires:
        """From an object of these names, or one of this class; RequestError for anything else."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or not set(value) <= {f.name for f in fields(cls)}:
            raise RequestError(f"hires is {_shown(value)}; give scale, strength, steps and upscaler, or some of them")
        return cls(**value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {_shown(value)}; it must be True or False")
    return value


def margins(value: object) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels from a sequence of four or a mapping of those names, or a RequestError."""
    sides = ("left", "top", "right", "bottom")
    if isinstance(value, Mapping):
        for name in value:
            if name not in sides:
                raise RequestError(f"outpaint has no side {_shown(name)}; there are {', '.join(sides)}")
        value = [value.get(side, 0) for side in sides]
    if not isinstance(value, (tuple, list)) or len(value) != 4:
        raise RequestError(
            f"outpaint is {_shown(value)}; give pixels for left, top, right and bottom, such as {{'left': 128}}"
        )
    left, top, right, bottom = (
        whole(f"outpaint {side}", pixels, 0, MAX_SIDE, " pixels") for side, pixels in zip(sides, value, strict=True)
    )
    if not left + top + right + bottom:
        raise RequestError("outpaint is 0 pixels on every side; give one side or more, such as {'left': 128}")
    return left, top, right, bottom


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One picture. Raises RequestError on anything that can't be done; numbers are plain ints and floats afterwards."""

    prompt: str  # at most 32,000 characters; any length of tokens (encoded in chunks of 75)
    negative_prompt: str = ""  # what guidance leads away from
    width: int | None = None  # pixels, 8..8192; None: the model's own size
    height: int | None = None
    steps: int | None = None  # 1..1000; None: the sampler's usual number
    guidance_scale: float | None = None  # 0..100; 1 or below: no guidance (one row a step, not two); None: 7.5
    guidance_rescale: float = 0.0  # 0..1: Lin et al. 2023 (arXiv 2305.08891), sec. 3.4
    guidance_interval: tuple[float, float] | None = None  # sigmas between which guidance acts; None: all
    guidance_projection: float | None = None  # 0..1: how much of guidance's part along the picture is left out
    pag_scale: float | None = None  # 0..100: perturbed-attention guidance, Ahn et al. 2024 (arXiv 2403.17377)
    pag_adaptive_scale: float | None = None  # 0..1: by how much pag_scale falls with every training timestep
    pag_levels: tuple[str, ...] | None = None  # levels of the U-Net: "mid", "down.1", "up.0"; None: the middle
    threshold: float | None = None  # 0..1: the percentile of dynamic thresholding, such as 0.995
    threshold_mimic: float | None = None  # the guidance scale whose range is kept; None: 1
    image_guidance_scale: float | None = None  # 0..100: of editing models, how closely to follow the picture; None: 1.5
    sampler: str | None = None  # a name of darkroom.samplers(); None: what the checkpoint's scheduler says
    schedule: str | None = None  # the spacing of noise levels; None: the sampler's or the checkpoint's
    seed: int | None = None  # 0..2**64 - 1; None or -1: drawn, and reported in the recipe
    clip_skip: int = 0  # 0..12: n >= 2 takes the text encoder's n-th last layer
    prompt_style: str = "a1111"  # the prompt's grammar: "a1111", "comfy" or "plain"
    start: float | None = None  # 0..1: go on with `latents` that another call stopped at this fraction of the way
    stop: float | None = None  # 0..1: stop there, with noise in the picture, for another model to go on
    # What SDXL is told of the picture (docs/sdxl.md), with the prompt and with the negative one.
    original_size: tuple[int, int] | None = None  # (width, height) of what it was cut out of; None: its own size
    crop: tuple[int, int] | None = None  # (left, top) of the cut; None: (0, 0)
    target_size: tuple[int, int] | None = None  # (width, height) it was meant for; None: its own size
    aesthetic_score: float | None = None  # 0..10, told to the refiner; None: 6
    negative_original_size: tuple[int, int] | None = None  # None: as without negative_
    negative_crop: tuple[int, int] | None = None
    negative_target_size: tuple[int, int] | None = None
    negative_aesthetic_score: float | None = None  # None: 2.5
    # Faster, and lossy (docs/faster.md).
    cache_interval: int = 1  # 1..100: deep features are computed in every n-th evaluation only; 1: in every one
    token_merging: float = 0.0  # 0..0.75: how many tokens of the finest self-attention are merged; 0: none
    loras: tuple[UsedLora, ...] = ()  # in a recipe: what was attached, by files and by <lora:...> in the prompt
    controls: tuple[UsedControl, ...] = ()  # in a recipe: the ControlNets that steered
    strength: float | None = None  # 0..1, of a picture given: how much of its making is done anew; None: 0.75
    exact_steps: bool | None = None  # with a picture: all `steps` are taken, not `steps * strength`; None: no
    fill: str | None = None  # what a masked part begins as: "original", "fill" or "noise"; None: "original"
    only_masked: bool | None = None  # the mask's surroundings are worked on at the model's own size; None: no
    mask_padding: int | None = None  # 0..1024 pixels, with only_masked: how much of the surroundings; None: 32
    mask_blur: int | None = None  # 0..1024 pixels of soft edge, inside the masked part; None: 4
    outpaint: tuple[int, int, int, int] | None = None  # pixels added left, top, right, bottom, within the size
    tile: int | None = None  # 8..8192 pixels: the network sees overlapping windows of this side; None: the whole
    overlap: int | None = None  # pixels, below tile: what neighbouring windows share; None: a quarter of tile
    noise_level: int | None = None  # 0..350, of upscaling models: how much noise the picture is given; None: 20
    hires: Hires | None = None  # a second pass that draws it larger; width and height are the first one's
    image: str | None = None  # in a recipe: the fingerprint of the picture that was given,
    mask: str | None = None  # and of its mask
    depth: str | None = None  # and of the depth map
    embeddings: tuple[str, ...] = ()  # in a recipe: "name:hash" of each learned word that its texts use
    latents: str | None = None  # in a recipe: the fingerprint of starting noise that was given instead of the seed's
    model: str | None = None  # in a recipe: the model's name,
    model_hash: str | None = None  # the first ten hexadecimal digits of its SHA-256,
    vae: str | None = None  # the name of an autoencoder that was put in place of the model's own,
    vae_hash: str | None = None  # the first ten digits of its hash,
    version: str | None = None  # and the version of Darkroom that drew the picture

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        text("prompt", self.prompt)
        text("negative_prompt", self.negative_prompt)
        for name in ("width", "height"):
            if getattr(self, name) is not None:
                put(name, whole(name, getattr(self, name), MIN_SIDE, MAX_SIDE, " pixels"))
        if self.width and self.height and self.width * self.height > MAX_PIXELS:
            raise RequestError(
                f"{self.width}x{self.height} is {self.width * self.height:,} pixels; "
                f"ask for {MAX_PIXELS:,} or fewer (such as 4096x4096)"
            )
        if self.steps is not None:
            put("steps", whole("steps", self.steps, 1, MAX_STEPS))
        if self.guidance_scale is not None:
            put("guidance_scale", real("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE))
        put("guidance_rescale", real("guidance_rescale", self.guidance_rescale, 0.0, 1.0))
        if self.guidance_interval is not None:
            put("guidance_interval", _interval(self.guidance_interval))
        for name, low, high in (
            ("guidance_projection", 0.0, 1.0),
            ("pag_scale", 0.0, MAX_GUIDANCE),
            ("pag_adaptive_scale", 0.0, 1.0),
            ("threshold", 0.0, 1.0),
            ("threshold_mimic", 1.0, MAX_GUIDANCE),
            ("image_guidance_scale", 0.0, MAX_GUIDANCE),
        ):
            if getattr(self, name) is not None:
                put(name, real(name, getattr(self, name), low, high))
        if self.pag_levels is not None:
            put("pag_levels", _levels(self.pag_levels))
        for name, needed, usual in (
            ("pag_levels", "pag_scale", 3.0),
            ("pag_adaptive_scale", "pag_scale", 3.0),
            ("threshold_mimic", "threshold", 0.995),
        ):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise RequestError(f"{name} is given without {needed}; give it too, such as {needed}={usual}")
        if self.seed is not None:
            seed = whole("seed", self.seed, -1, SEEDS - 1, " (-1 draws one)")
            put("seed", None if seed == -1 else seed)
        put("clip_skip", whole("clip_skip", self.clip_skip, 0, MAX_CLIP_SKIP))
        choice("prompt_style", self.prompt_style, PROMPT_STYLES)
        for name in ("start", "stop"):
            if getattr(self, name) is not None:
                put(name, real(name, getattr(self, name), 0.0, 1.0))
        for name in SIZES:
            if getattr(self, name) is not None:
                put(name, _two(name, getattr(self, name), 0 if name.endswith("crop") else 1))
        for name in SCORES:
            if getattr(self, name) is not None:
                put(name, real(name, getattr(self, name), 0.0, 10.0))
        put("cache_interval", whole("cache_interval", self.cache_interval, 1, MAX_CACHE_INTERVAL))
        put("token_merging", real("token_merging", self.token_merging, 0.0, MAX_MERGING))
        if not isinstance(self.loras, tuple | list):
            raise RequestError(f"loras is {_shown(self.loras)}; it must be a list")
        put("loras", tuple(UsedLora.checked(lora) for lora in self.loras))
        if not isinstance(self.controls, tuple | list):
            raise RequestError(f"controls is {_shown(self.controls)}; it must be a list")
        put("controls", tuple(UsedControl.checked(control) for control in self.controls))
        if not isinstance(self.embeddings, tuple | list):
            raise RequestError(f"embeddings is {_shown(self.embeddings)}; in a request it must be a list of name:hash")
        put("embeddings", tuple(text("an embedding", used, longest=1000) for used in self.embeddings))
        if self.strength is not None:
            put("strength", real("strength", self.strength, 0.0, 1.0))
        for name in ("exact_steps", "only_masked"):
            if getattr(self, name) is not None:
                put(name, _flag(name, getattr(self, name)))
        if self.fill is not None:
            choice("fill", self.fill, FILLS)
        for name in ("mask_padding", "mask_blur"):
            if getattr(self, name) is not None:
                put(name, whole(name, getattr(self, name), 0, MAX_MARGIN, " pixels"))
        if self.outpaint is not None:
            put("outpaint", margins(self.outpaint))
        sides = ("tile", MIN_SIDE, MAX_SIDE), ("overlap", 0, MAX_SIDE)
        for name, low, high in (*sides, ("noise_level", 0, MAX_NOISE_LEVEL)):
            if getattr(self, name) is not None:
                put(name, whole(name, getattr(self, name), low, high))
        if self.overlap is not None and self.tile is None:
            raise RequestError("overlap is given without tile; give it too, or leave it out")
        if self.overlap is not None and self.tile is not None and self.overlap >= self.tile:
            raise RequestError(f"overlap is {self.overlap}; it must be below tile, which is {self.tile}")
        if self.hires is not None:
            put("hires", Hires.checked(self.hires))
        recorded = ("image", "mask", "depth", "latents", "model", "model_hash", "vae", "vae_hash", "version")
        for name in ("sampler", "schedule", *recorded):
            if getattr(self, name) is not None:
                text(name, getattr(self, name), longest=1000)

    def to_dict(self) -> dict[str, Any]:
        """The request as a plain JSON object, open (None) fields left out; an endless interval ends in null."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            values["guidance_interval"] = [low, None if math.isinf(high) else high]
        values["loras"] = [asdict(lora) for lora in self.loras] or None
        values["controls"] = [asdict(control) for control in self.controls] or None
        values["embeddings"] = list(self.embeddings) or None
        if self.hires is not None:
            values["hires"] = {name: value for name, value in asdict(self.hires).items() if value is not None}
        values |= {name: list(getattr(self, name)) for name in SIZES if getattr(self, name) is not None}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Request:
        """The inverse of `to_dict`. A key that is no field is refused, with the nearest field's name.

        The key `schema`, with which files say what form they are in, is passed over.
        """
        if not isinstance(values, Mapping):
            raise RequestError(f"a request is {_shown(values)}; it must be an object of names and values")
        known = [f.name for f in fields(cls)]
        values = {key: value for key, value in values.items() if key != "schema"}
        for key in values:
            if key not in known:
                raise RequestError(f"a request has no field {_shown(key)}{nearest(str(key), known)}")
        if "prompt" not in values:
            raise RequestError("a request needs a prompt, and this one has none; give it a text (an empty one is fine)")
        return cls(**values)
