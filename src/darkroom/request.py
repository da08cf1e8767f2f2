"""What a user asks for, checked: every error a user can cause in a request ends here, in one sentence. No torch.

A `Request` is one picture. What it leaves open (None) the model and the engine fill in; the filled-in request is
the picture's recipe: asked again, it gives the same picture.

Each field is declared once (`settings.setting`): its values, a line of help, the commands' option, A1111's key. The
commands' options, the line of parameters in a picture, the axes of sweeps and the groups of `Pipeline.generate` follow
from that (docs/adding-a-setting.md).
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, get_args

from . import settings as kind
from .errors import RequestError, shown
from .names import Fill, NoiseSource, Output, PromptStyle, SamplerName, ScheduleName
from .request_kinds import margins, noise_levels, unet_levels
from .request_parts import EMBEDDED_UPSCALER as EMBEDDED_UPSCALER
from .request_parts import MAX_CONTROL as MAX_CONTROL
from .request_parts import MAX_SCALE as MAX_SCALE
from .request_parts import MAX_STEPS as MAX_STEPS
from .request_parts import Enlarge as Enlarge
from .request_parts import Hires as Hires
from .request_parts import UsedControl as UsedControl
from .request_parts import UsedLora as UsedLora
from .settings import Joint, Kind, Setting, SettingError, check, from_plain, setting, settings, to_plain

MIN_SIDE, MAX_SIDE = 8, 8192  # pixels
MAX_PIXELS = 4096 * 4096
MAX_GUIDANCE = 100.0
MAX_PROMPT = 32_000  # characters
MAX_CLIP_SKIP = 12
MAX_IMAGES = 1000  # pictures a call
MAX_LORA_SCALE = 100.0
SEEDS = 2**64
OUTPUTS = get_args(Output)
MAX_MARGIN = 1024  # pixels around a mask, and of its edge
MAX_CACHE_INTERVAL = 100
MAX_MERGING = 0.75  # of four neighbouring tokens one stays
MAX_NOISE_LEVEL = 350  # of upscaling models, as in diffusers


def draw_seed() -> int:
    """A fresh seed, below 2**32 so that every JSON reader keeps it whole."""
    return secrets.randbelow(2**32)


# --- single values, checked outside of a request


def whole(name: str, value: object, low: int, high: int, what: str = "") -> int:
    """`value` as an int in low..high (numpy's integers too; no bools, no floats, no strings), or a RequestError."""
    return _checked(kind.whole(low, high, what), name, value)  # type: ignore[no-any-return]


def real(name: str, value: object, low: float, high: float, what: str = "") -> float:
    """`value` as a finite float in low..high, or a RequestError."""
    return _checked(kind.real(low, high, what), name, value)  # type: ignore[no-any-return]


def choice(name: str, value: object, known: Iterable[str]) -> str:
    """`value` if it is one of the known names, or a RequestError that lists them and suggests the nearest."""
    return _checked(kind.one_of(known), name, value)  # type: ignore[no-any-return]


def _checked(wanted: Kind, name: str, value: object) -> Any:
    try:
        return wanted.check(name, value)
    except SettingError as wrong:
        raise RequestError(str(wrong)) from None


# --- kinds of values that only a request has (request_kinds has those of several parts)


def _seed() -> Kind:
    number = kind.whole(-1, SEEDS - 1, " (-1 draws one)")

    def check(name: str, value: Any) -> int | None:
        found = number.check(name, value)
        return None if found == -1 else found

    return replace(number, check=check)


def _several(one: Callable[[Any], Any], wanted: str, of: type = str) -> Kind:
    """Lists of what only a finished recipe holds."""

    def check(name: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, tuple | list):
            raise SettingError(f"{name} is {shown(value)}; {wanted}")
        return tuple(one(part) for part in value)

    return Kind(check, kind.read_nothing, of=of, count=0)


# --- the request

_PROMPT = replace(kind.text(MAX_PROMPT), wanted="a text (an empty one is fine)")
_FRACTION = kind.real(0.0, 1.0)
_GUIDANCE = kind.real(0.0, MAX_GUIDANCE)
_SCORE = kind.real(0.0, 10.0)
_SIDE = kind.whole(MIN_SIDE, MAX_SIDE, " pixels")
_MARGIN = kind.whole(0, MAX_MARGIN, " pixels")
_SIZE = kind.pixels(1, "(width, height)", kind.read_size, "WxH")
_CROP = kind.pixels(0, "(left, top)", kind.read_two("pixels", "64,0"), "LEFT,TOP")
_WORD = kind.text(1000)
_HIRES = Kind(lambda name, value: Hires.checked(value), kind.read_nothing, wanted="a darkroom.Hires", of=Hires)
_ENLARGE = Kind(
    lambda name, value: Enlarge.checked(value),
    kind.read_nothing,
    wanted="a darkroom.Enlarge, or how many times",
    of=Enlarge,
)

SIZE = Joint(
    "size",
    ("width", "height"),
    Setting(_SIZE, "In pixels. [default: the model's]", option="--size", key="Size"),
)


def _named(what: str) -> Kind:
    """Names that the rooms know which have what is named."""
    return replace(_WORD, wanted=f"a {what}'s name")


# A field that people ask for has an option and a key of its name, where it doesn't say another.
_asked = functools.partial(setting, option="", key="")


def _recorded(help: str, key: str | None = None, of: Kind = _WORD, default: Any = None) -> Any:
    """A field that a finished recipe tells and nobody asks for."""
    return setting(default, of, help, option=None, key=key, axis=False)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Request(kind.Brief):
    """One picture. Raises RequestError on anything that can't be done; numbers are plain ints and floats afterwards."""

    # Any length of tokens is possible: they are encoded in chunks of 75.
    prompt: str = _asked(kind=_PROMPT, help="What to draw.", option=None, key=None)
    negative_prompt: str = _asked("", _PROMPT, "What to lead away from.", option="--negative", key=None)
    width: int | None = _asked(None, _SIDE, joint=SIZE)
    height: int | None = _asked(None, _SIDE, joint=SIZE)
    steps: int | None = _asked(None, kind.whole(1, MAX_STEPS), "[default: the sampler's]")
    # At 1 or below there is no guidance: one row a step, not two.
    guidance_scale: float | None = _asked(
        None,
        _GUIDANCE,
        "How closely to follow the prompt; 1: no guidance. [default: the model's, or 7.5]",
        option="--guidance",
        key="CFG scale",
    )
    guidance_rescale: float = _asked(
        0.0, _FRACTION, "0 to 1: against overexposure at high guidance.", key="CFG rescale", group="guidance.rescale"
    )
    guidance_interval: tuple[float, float] | None = _asked(
        None,
        noise_levels(),
        "Guide at noise levels (sigma) above LOW, up to HIGH. [default: all]",
        key="CFG interval",
        group="guidance.interval",
    )
    guidance_projection: float | None = _asked(
        None,
        _FRACTION,
        "0 to 1: against oversaturation at high guidance.",
        key="CFG projection",
        group="guidance.projection",
    )
    pag_scale: float | None = _asked(
        None, _GUIDANCE, "Perturbed-attention guidance, such as 3.", option="--pag", key="PAG scale", group="guidance"
    )
    pag_adaptive_scale: float | None = _asked(
        None,
        _FRACTION,
        "With --pag: by how much it falls a timestep.",
        option="--pag-adaptive",
        key="PAG adaptive scale",
        group="guidance",
    )
    pag_levels: tuple[str, ...] | None = _asked(
        None,
        unet_levels(),
        "With --pag: U-Net levels, such as mid,up.1. [default: mid]",
        key="PAG levels",
        group="guidance",
    )
    threshold: float | None = _asked(
        None, _FRACTION, "Dynamic thresholding: a percentile, as 0.995.", key="Dynamic threshold", group="guidance"
    )
    threshold_mimic: float | None = _asked(
        None,
        kind.real(1.0, MAX_GUIDANCE),
        "With --threshold: the guidance whose range stays; else 1.",
        key="Dynamic threshold mimic",
        group="guidance",
    )
    image_guidance_scale: float | None = _asked(
        None,
        _GUIDANCE,
        "Of editing models: how closely to follow --image; else 1.5.",
        option="--image-guidance",
        key="Image CFG scale",
        group="guidance.image_scale",
    )
    sampler: SamplerName | None = _asked(
        None,
        _named("sampler"),
        "See `darkroom samplers`. [default: the model's]",
        metavar="NAME",
    )
    schedule: ScheduleName | None = _asked(
        None,
        _named("schedule"),
        "Spacing of the noise levels: karras, exponential, ...",
        metavar="NAME",
        key="Schedule type",
    )
    # None or -1: drawn, and reported in the recipe.
    seed: int | None = _asked(None, _seed(), "The first picture's; the next takes the next.")
    variation_seed: int | None = _asked(
        None, _seed(), "Lead the starting noise towards this seed's; the next picture takes the next.", group="noise"
    )
    variation_strength: float | None = _asked(
        None, _FRACTION, "0 to 1: how far it is led there.", key="Variation seed strength", group="noise"
    )
    noise: NoiseSource = _asked(
        "cpu",
        kind.one_of(get_args(NoiseSource)),
        "Whose random numbers: cpu (torch's) or nv (a GPU's, A1111's usual).",
        metavar="HOW",
        key="RNG",
        group="noise.source",
    )
    sampler_noise: NoiseSource | None = _asked(
        None,
        kind.one_of(get_args(NoiseSource)),
        "Whose samplers draw on the way, from the seed's first. [default: --noise, the draws that come next]",
        metavar="HOW",
        key="Sampler RNG",
        group="noise.sampler_source",
    )
    brownian: bool = _asked(
        False,
        kind.flag(),
        "SDE samplers' noise is that of a Brownian tree, as A1111's (needs torchsde).",
        key="Brownian noise",
        group="noise",
    )
    ensd: int = _asked(
        0,
        kind.whole(-SEEDS // 2, SEEDS // 2),
        "Samplers draw their noise from the seed plus N (A1111's eta noise seed delta).",
        key="ENSD",
        group="noise",
    )
    eta: float | None = _asked(
        None,
        _FRACTION,
        "0 to 1: the share of noise that ancestral and SDE samplers and DDIM add on the way. [default: the sampler's]",
        group="noise",
    )
    seed_resize: tuple[int, int] | None = _asked(
        None,
        _SIZE,
        "Begin with this size's noise, in the middle of the picture's own.",
        key="Seed resize from",
        group="noise",
    )
    discard_penultimate: bool | None = _asked(
        None,
        kind.flag(),
        "With --schedule: make one level more, and leave out the last but one. [default: as A1111]",
        key="Discard penultimate sigma",
        group="noise",
    )
    sgm_noise_multiplier: bool = _asked(
        False,
        kind.flag(),
        "Begin with unit variance from the highest level, as ComfyUI, not with the level's noise alone.",
        key="SGM noise multiplier",
        group="noise",
    )
    clip_skip: int = _asked(0, kind.whole(0, MAX_CLIP_SKIP), "2: the text encoder's last layer but one.")
    prompt_style: PromptStyle = _asked(
        "a1111", kind.one_of(get_args(PromptStyle)), "The prompt's grammar: a1111, comfy or plain.", metavar="STYLE"
    )
    start: float | None = _asked(
        None,
        _FRACTION,
        "Go on with `latents` that another call stopped at this fraction of the way.",
        option=None,
        key="Starts at",
        group="noise",
    )
    stop: float | None = _asked(
        None,
        _FRACTION,
        "Stop at this fraction of the way, with noise in the picture, for another model to go on.",
        option=None,
        key="Stops at",
        group="noise",
    )
    # What SDXL is told of the picture (docs/sdxl.md), with the prompt and with the negative one.
    original_size: tuple[int, int] | None = _asked(
        None, _SIZE, "Told to SDXL: what the picture was cut out of. [default: --size]", group="sizes"
    )
    crop: tuple[int, int] | None = _asked(
        None, _CROP, "Told to SDXL: where it was cut out. [default: 0,0]", group="sizes"
    )
    target_size: tuple[int, int] | None = _asked(
        None, _SIZE, "Told to SDXL: the size it is for. [default: --size]", group="sizes"
    )
    aesthetic_score: float | None = _asked(None, _SCORE, "Told to SDXL's refiner, 0 to 10. [default: 6]", group="sizes")
    negative_original_size: tuple[int, int] | None = _asked(
        None, _SIZE, "The same with --negative. [default: --original-size]", group="sizes"
    )
    negative_crop: tuple[int, int] | None = _asked(
        None, _CROP, "The same with --negative. [default: --crop]", group="sizes"
    )
    negative_target_size: tuple[int, int] | None = _asked(
        None, _SIZE, "The same with --negative. [default: --target-size]", group="sizes"
    )
    negative_aesthetic_score: float | None = _asked(
        None, _SCORE, "The same with --negative. [default: 2.5]", group="sizes"
    )
    # Faster, and lossy (docs/faster.md).
    cache_interval: int = _asked(
        1, kind.whole(1, MAX_CACHE_INTERVAL), "Faster, lossy: deep features every N-th step.", group="speed"
    )
    token_merging: float = _asked(
        0.0,
        kind.real(0.0, MAX_MERGING),
        "Faster, lossy: 0 to 0.75 of the finest tokens.",
        key="Token merging ratio",
        group="speed",
    )
    loras: tuple[UsedLora, ...] = _recorded(
        "What was attached, by files and by <lora:...> in the prompt.",
        "Lora hashes",
        _several(UsedLora.checked, "it must be a list", UsedLora),
        (),
    )
    controls: tuple[UsedControl, ...] = _recorded(
        "The ControlNets that steered.", of=_several(UsedControl.checked, "it must be a list", UsedControl), default=()
    )
    strength: float | None = _asked(
        None,
        _FRACTION,
        "0 to 1: how much --image changes. [default: 0.75]",
        key="Denoising strength",
        aliases=("denoise", "denoising"),
        of_image=True,
    )
    exact_steps: bool | None = _asked(
        None, kind.flag(), "With --image: take all --steps, not steps x strength.", group="noise", of_image=True
    )
    fill: Fill | None = _asked(
        None,
        kind.one_of(get_args(Fill)),
        "What the masked part begins as: original, fill or noise.",
        metavar="HOW",
        key="Masked content",
        group="inpaint",
        of_image=True,
    )
    only_masked: bool | None = _asked(
        None,
        kind.flag(),
        "Redraw around the mask at the model's own size, and put it back.",
        key="Inpaint area",
        group="inpaint",
        of_image=True,
    )
    mask_padding: int | None = _asked(
        None,
        _MARGIN,
        "With --only-masked: pixels around it. [default: 32]",
        key="Masked area padding",
        group="inpaint",
        of_image=True,
    )
    mask_blur: int | None = _asked(
        None, _MARGIN, "The mask's soft edge in pixels, inside it. [default: 4]", group="inpaint", of_image=True
    )
    outpaint: tuple[int, int, int, int] | None = _asked(
        None, margins(MAX_SIDE), "Extend --image: left=128,top=64,right=0,bottom=0.", group="inpaint", of_image=True
    )
    tile: int | None = _asked(
        None, kind.whole(MIN_SIDE, MAX_SIDE), "Draw in overlapping windows of N pixels that agree.", group="tiling"
    )
    overlap: int | None = _asked(
        None, kind.whole(0, MAX_SIDE), "What windows share. [default: a quarter]", key="Tile overlap", group="tiling"
    )
    noise_level: int | None = _asked(
        None, kind.whole(0, MAX_NOISE_LEVEL), "0 to 350, of upscaling models. [default: 20]", group="noise.level"
    )
    hires: Hires | None = setting(
        None, _HIRES, "A second pass that draws it larger; width and height are the first one's."
    )
    enlarge: Enlarge | None = setting(None, _ENLARGE, "The finished picture made larger by a network.")
    image: str | None = _recorded("The fingerprint of the picture that was given.", "Image fingerprint")
    mask: str | None = _recorded("The fingerprint of its mask.", "Mask fingerprint")
    depth: str | None = _recorded("The fingerprint of the depth map.", "Depth fingerprint")
    embeddings: tuple[str, ...] = _recorded(
        '"name:hash" of each learned word that its texts use.',
        "TI hashes",
        _several(lambda used: _checked(_WORD, "an embedding", used), "in a request it must be a list of name:hash"),
        (),
    )
    latents: str | None = _recorded(
        "The fingerprint of starting noise that was given instead of the seed's.", "Noise fingerprint"
    )
    model: str | None = _recorded("The model's name.", "Model")
    model_hash: str | None = _recorded("The first ten hexadecimal digits of the model's SHA-256.", "Model hash")
    vae: str | None = _recorded("The name of an autoencoder that was put in place of the model's own.", "VAE")
    vae_hash: str | None = _recorded("The first ten digits of its hash.", "VAE hash")
    version: str | None = _recorded("The version of Darkroom that drew the picture.", "Version")

    def __post_init__(self) -> None:
        check(self, RequestError)
        if self.width and self.height and self.width * self.height > MAX_PIXELS:
            raise RequestError(
                f"{self.width}x{self.height} is {self.width * self.height:,} pixels; "
                f"ask for {MAX_PIXELS:,} or fewer (such as 4096x4096)"
            )
        if self.seed_resize is not None and self.seed_resize[0] * self.seed_resize[1] > MAX_PIXELS:
            width, height = self.seed_resize
            raise RequestError(f"seed_resize is {width}x{height}; ask for {MAX_PIXELS:,} pixels or fewer")
        for name, needed, usual in (
            ("pag_levels", "pag_scale", 3.0),
            ("pag_adaptive_scale", "pag_scale", 3.0),
            ("threshold_mimic", "threshold", 0.995),
            ("variation_seed", "variation_strength", 0.1),
        ):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise RequestError(f"{name} is given without {needed}; give it too, such as {needed}={usual}")
        if self.overlap is not None and self.tile is None:
            raise RequestError("overlap is given without tile; give it too, or leave it out")
        if self.overlap is not None and self.tile is not None and self.overlap >= self.tile:
            raise RequestError(f"overlap is {self.overlap}; it must be below tile, which is {self.tile}")

    def seeded(self) -> Self:
        """The same with the seeds that were left open drawn."""
        varied = bool(self.variation_strength) and self.variation_seed is None
        return replace(
            self,
            seed=draw_seed() if self.seed is None else self.seed,
            variation_seed=draw_seed() if varied else self.variation_seed,
        )

    def numbered(self, i: int, **changes: Any) -> Self:
        """The i-th picture of a call that begins with this one, whose seeds are given: its seed is i further. With a
        variation its variation seed is, so that all vary one picture (A1111's counting).
        """
        counted = "variation_seed" if self.variation_strength else "seed"
        return replace(self, **{counted: (getattr(self, counted) + i) % SEEDS}, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The request as a plain JSON object, open (None) fields left out; an endless interval ends in null."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. A key that is no field is refused, with the nearest field's name.

        The key `schema`, with which files say what form they are in, is passed over.
        """
        return from_plain(cls, values, "a request", RequestError)


Request.__doc__ = f"{Request.__doc__}\n\n{kind.documented(Request)}"

# What engines and tasks ask of the declarations.
OF_AN_IMAGE = tuple(name for name, declared in settings(Request).items() if declared.extra.get("of_image"))
_TOLD = {name: declared.kind for name, declared in settings(Request).items() if declared.of_group("sizes")}
SIZES = tuple(name for name, of in _TOLD.items() if of.count == 2)  # two pixel numbers each, told to SDXL
SCORES = tuple(name for name, of in _TOLD.items() if of.count == 1)  # told to its refiner
