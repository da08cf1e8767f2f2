"""Values of a request with settings of their own: a second pass, enlarging, what was attached. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, ClassVar, Self, get_args

from . import settings as kind
from .errors import RequestError, shown
from .names import HiresUpscaler
from .settings import Kind, SettingError, check, setting, settings

EMBEDDED_UPSCALER = "embedded:upscaler"  # what enlarges where no other is named
MAX_STEPS = 1000
MAX_CONTROL = 10.0  # a ControlNet's scale
MAX_SCALE = 16.0  # of a second pass


def _upscaler() -> Kind:
    """A name or a file of a network that enlarges, or a way that needs none."""
    word = kind.text(1000)

    def check(name: str, value: Any) -> str:
        text: str = word.check(name, value)
        if not text.strip() or "\0" in text:
            raise SettingError(f"{name} is {shown(value)}; give {', '.join(get_args(HiresUpscaler))}, or a file")
        return text

    return replace(word, check=check)


class _Part:
    """A value of a request with settings of its own, made from an object of their names where a recipe is read."""

    __slots__ = ()
    refused: ClassVar[str]  # the sentence for anything else

    def __post_init__(self) -> None:
        check(self, RequestError)

    @classmethod
    def checked(cls, value: object) -> Self:
        """From an object of these names, or one of this class; RequestError for anything else."""
        if isinstance(value, cls):
            return value
        needed = {f.name for f in fields(cls) if f.default is MISSING}  # type: ignore[arg-type]  # all are dataclasses
        if not isinstance(value, Mapping) or not needed <= set(value) <= settings(cls).keys():
            raise RequestError(cls.refused.format(shown(value)))
        return cls(**value)


@dataclass(frozen=True, slots=True)
class UsedLora(_Part):
    """A LoRA in a recipe: its file's name, the first 12 hexadecimal digits of its hash (A1111's; "" where another
    tool's recipe doesn't tell), its strengths."""

    refused: ClassVar[str] = "loras holds {}; each must have name, hash, scale and text_scale"
    name: str = setting(kind=kind.text(1000), called="a LoRA's name")
    hash: str = setting(kind=kind.text(100), called="a LoRA's hash")
    scale: float = setting(kind=kind.real(-1e6, 1e6), help="On the U-Net.", called="a LoRA's scale")
    text_scale: float = setting(kind=kind.real(-1e6, 1e6), help="On the text encoders.", called="a LoRA's scale")

    @property
    def words(self) -> str:
        """For people: "ink (0123456789ab) at 0.8"."""
        texts = "" if self.text_scale == self.scale else f", of the texts at {self.text_scale:g}"
        return f"{self.name} ({self.hash or 'no hash'}) at {self.scale:g}{texts}"


@dataclass(frozen=True, slots=True)
class UsedControl(_Part):
    """A ControlNet in a recipe: its file's or folder's name, ten hexadecimal digits of its SHA-256 (None for a network
    that was given loaded), the fingerprint of the picture it was shown, before that was resized."""

    refused: ClassVar[str] = (
        "controls holds {}; in a request each must have name, hash, hint, scale, start, stop, guess"
    )
    name: str = setting(kind=kind.text(1000), called="a control's name")
    hash: str | None = setting(kind=kind.or_none(kind.text(100)), called="a control's hash")
    hint: str = setting(kind=kind.text(1000), called="a control's hint")
    scale: float = setting(kind=kind.real(-MAX_CONTROL, MAX_CONTROL), called="a control's scale")
    start: float = setting(kind=kind.real(0.0, 1.0), help="A fraction of the steps.", called="a control's start")
    stop: float = setting(kind=kind.real(0.0, 1.0), help="A fraction of the steps.", called="a control's stop")
    guess: bool = setting(kind=kind.flag(), called="a control's guess")

    @property
    def words(self) -> str:
        """For people: "canny (0123456789) at 0.8 after the picture 0123456789abcdef"."""
        when = "" if (self.start, self.stop) == (0.0, 1.0) else f" from {self.start:g} to {self.stop:g} of the steps"
        guess = ", guess mode" if self.guess else ""
        return f"{self.name} ({self.hash or 'no hash'}) at {self.scale:g}{when} after the picture {self.hint}{guess}"


@dataclass(frozen=True, slots=True)
class Hires(_Part):
    """A second pass over a finished picture, larger: more detail than the model draws at once, and one composition.

    Attributes:
        scale: 1 to 16, of each side.
        strength: 0 to 1, how much of the enlarged picture is drawn anew.
        steps: 1 to 1000, of which steps * strength are taken; None: the first pass's.
        upscaler: what is enlarged: the latent (bilinear), or the picture: by "lanczos", or by a network, a file or
            "embedded:upscaler" (docs/upscaling.md).
        upscaler_hash: of a finished recipe: ten hexadecimal digits of the network's SHA-256.
    """

    refused: ClassVar[str] = "hires is {}; give scale, strength, steps and upscaler, or some of them"
    scale: float = setting(
        2.0,
        kind.real(1.0, MAX_SCALE),
        "Then enlarge X times, and draw it over once more.",
        option="--hires",
        key="Hires upscale",
        called="hires scale",
    )
    strength: float = setting(
        0.7,
        kind.real(0.0, 1.0),
        "Of that. [default: 0.7]",
        option="--hires-strength",
        key=None,  # A1111 writes it as the "Denoising strength"
        called="hires strength",
    )
    steps: int | None = setting(
        None,
        kind.whole(1, MAX_STEPS),
        "Of that. [default: --steps]",
        option="--hires-steps",
        key="Hires steps",
        called="hires steps",
    )
    upscaler: HiresUpscaler | str = setting(
        "latent",
        _upscaler(),
        "By latent, lanczos, or a network: FILE or embedded:upscaler. [default: latent]",
        option="--hires-upscaler",
        metavar="HOW",
        key="Hires upscaler",
        called="hires upscaler",
    )
    upscaler_hash: str | None = setting(None, kind.or_none(kind.text(100)), called="hires upscaler_hash")

    @property
    def network(self) -> str | None:
        """The name or the file of the network that enlarges, if one does."""
        return None if self.upscaler in get_args(HiresUpscaler) else self.upscaler

    @property
    def words(self) -> str:
        """For people: "2 times as large, strength 0.7, latent"."""
        steps = "" if self.steps is None else f", {self.steps} steps"
        how = self.upscaler if self.upscaler_hash is None else f"{self.upscaler} ({self.upscaler_hash})"
        return f"{self.scale:g} times as large, strength {self.strength:g}{steps}, {how}"


@dataclass(frozen=True, slots=True)
class Enlarge(_Part):
    """The finished picture made larger by a network that does nothing else.

    Attributes:
        scale: above 0, at most 16, of each side.
        upscaler: the network, a file or "embedded:upscaler"; None: that.
        upscaler_hash: of a finished recipe: ten hexadecimal digits of its SHA-256.
    """

    refused: ClassVar[str] = "enlarge is {}; give a scale, such as 4, or scale and upscaler"
    scale: float = setting(
        4.0,
        kind.real(0.01, MAX_SCALE),
        "In the end, enlarge X times by a network (--upscaler).",
        option="--upscale",
        key="Postprocess upscale by",
        called="enlarge scale",
    )
    upscaler: str | None = setting(
        None, kind.or_none(_upscaler()), key="Postprocess upscaler", called="enlarge upscaler"
    )
    upscaler_hash: str | None = setting(None, kind.or_none(kind.text(100)), called="enlarge upscaler_hash")

    @classmethod
    def checked(cls, value: object) -> Self:
        """A number is a scale."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return cls(value)
        return super(Enlarge, cls).checked(value)  # a class with slots is not the one that this is written in

    @property
    def words(self) -> str:
        """For people: "4 times as large by embedded:upscaler"."""
        told = "" if self.upscaler_hash is None else f" ({self.upscaler_hash})"
        return f"{self.scale:g} times as large by {self.upscaler or EMBEDDED_UPSCALER}{told}"
