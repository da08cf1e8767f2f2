"""A picture on its way: what a request brings along, the request as it is parsed, and the job that is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from .. import hints
from ..adapters import Scaled
from ..diffusion.condition import Condition, Controls
from ..diffusion.guidance import Guidance
from ..diffusion.regions import Known, Windows
from ..errors import RequestError
from ..masks import Composite
from ..models.controlnet import ControlNet
from ..models.unet import CachedFeatures
from ..names import Hint
from ..prompts.embeddings import LearnedWord
from ..prompts.grammar import Prompt
from ..request import MAX_CONTROL, Request, UsedControl, real
from ..samplers.state import Noise, Sampler, SamplerState


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A ControlNet, and the picture by which it steers.

    Args:
        net: a diffusers folder, a file, "org/name" on the hub, "embedded:NAME" for one of the embedded model's, or a
            loaded `models.controlnet.ControlNet`.
        image: what the network is shown: PIL or a path, any mode; resized to what is drawn (Lanczos).
        scale: how strongly it acts, -10 to 10; 1: as it was trained.
        start, stop: the fractions of the steps between which it acts, diffusers' rule: in evaluation i of n if
            i / n >= start and (i + 1) / n <= stop.
        guess: it acts on what the prompt asks for alone, weakly at fine sizes: guess mode, to go without a prompt.
        hint: makes the hint from an ordinary picture: a name of `darkroom.hints`, such as "canny".
    """

    net: str | Path | ControlNet
    image: Image.Image | str | Path
    scale: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    guess: bool = False
    hint: Hint | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.net, str | Path | ControlNet) or not str(self.net) or "\0" in str(self.net)[:1000]:
            raise RequestError(f"a ControlNet is {str(self.net)[:60]!r}; give a path, or a loaded ControlNet")
        object.__setattr__(self, "scale", real("a control's scale", self.scale, -MAX_CONTROL, MAX_CONTROL))
        for name in ("start", "stop"):
            object.__setattr__(self, name, real(f"a control's {name}", getattr(self, name), 0.0, 1.0))
        if self.start >= self.stop:
            raise RequestError(f"a control starts at {self.start:g} and stops at {self.stop:g}; let it start before")
        if not isinstance(self.guess, bool):
            raise RequestError(f"a control's guess is {str(self.guess)[:60]!r}; it must be True or False")
        if self.hint is not None:
            object.__setattr__(self, "hint", hints.known(self.hint))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """One picture's inputs beside its Request; which of them are there decides the task (`prepare`).

    A finished recipe holds their fingerprints and names only, so a picture can be drawn again when the same inputs
    are given again.
    """

    latents: Tensor | None = None  # [C, h, w], unit-variance noise to start from instead of the seed's
    embeddings: tuple[LearnedWord, ...] = ()  # learned words that the prompts may use (textual inversion)
    image: Image.Image | None = None  # what is to be changed: any size, any mode (`images.open_picture`)
    mask: Image.Image | None = None  # the aspect of `image`, any mode (`images.open_mask`): white is repainted
    depth: Tensor | None = None  # [H, W] float32, any size and range, larger is nearer: a depth map
    controls: tuple[Control, ...] = ()  # ControlNets and their hints
    loras: tuple[Scaled, ...] = ()  # attached to U-Net and text encoders (`Pipeline.lora` reads them)
    told: tuple[str, ...] = ()  # what was found when they were opened that a user should know, one sentence each


class LoadedControlNet(NamedTuple):
    """A ControlNet ready to steer, where it is from, and ten hexadecimal digits of its file's SHA-256."""

    net: ControlNet
    name: str
    hash: str | None


@dataclass(frozen=True, slots=True, eq=False)
class OpenedControl:
    """A `Control` whose network is loaded and whose hint is made."""

    net: ControlNet
    hint: Image.Image
    used: UsedControl  # what a recipe says of it


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ParsedRequest:
    """A request on its way to a job: its texts parsed, what it brings opened, and nothing filled in yet."""

    id: str  # the job's
    asked: Request
    prompt: Prompt
    negative: Prompt
    words: tuple[LearnedWord, ...]  # those that the texts use
    controls: tuple[OpenedControl, ...]
    inputs: Inputs  # pictures as `images` opens them; all LoRAs, those that the prompt names too
    output: str  # what becomes of the picture in the end: "pil", "pt" or "latent"
    warnings: tuple[str, ...] = ()  # what a user should know of it, one sentence each


@dataclass(frozen=True, slots=True, eq=False)
class Next:
    """The pass that follows another one, which gives it a picture or a latent to begin from."""

    parsed: ParsedRequest
    steps: int
    upscaler: str  # how the first one's result is enlarged


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A branch's cached features from an earlier evaluation (DeepCache), and what it was asked then."""

    features: Tensor  # [C, h, w]
    text: Tensor
    identity: tuple[str, ...]

    def serves(self, condition: Condition) -> bool:
        """Whether a branch is still the one that the features are of."""
        return self.text is condition.text and self.identity == condition.identity


@dataclass
class Job:
    """All there is to know about one picture in progress. Picklable between any two steps, and resumable elsewhere.

    A task (text-to-image, ...) is a function of `prepare` that fills a Job; the engine knows no tasks.
    """

    id: str
    request: Request  # the recipe: what was asked for, with all that was left open filled in
    sampler: Sampler
    sigmas: tuple[float, ...]  # steps + 1 noise levels, descending
    state: SamplerState
    guidance: Guidance
    noise: Noise
    # sigma -> the timestep that the network is told there, where it is not the schedule's
    timesteps: Mapping[float, float] = field(default_factory=dict)
    final_scale: float = 1.0  # state.x * final_scale is the latent, for samplers that end above zero noise
    start: int = 0  # the interval it began in
    stop: int | None = None  # the interval it doesn't enter any more; None: it goes on to the end
    controls: Controls | None = None  # what steers the U-Net
    windows: Windows | None = None  # which parts of it the U-Net is shown; None: the whole
    known: Known | None = None  # what is not to change
    kept: Mapping[tuple[int, int], Kept] = field(default_factory=dict)  # cached features by (window, branch)
    composite: Composite | None = None  # where in which picture the result belongs
    output: str = "pil"  # what becomes of the latent: "pil", "pt" or "latent"
    next: Next | None = None  # the pass that its result goes into
    first: Tensor | None = None  # in a second pass: where the first one ended, from which it was made
    before: int = 0  # the steps of the passes before it,
    enlarged: tuple[int, int] | None = None  # and (width, height) in pixels if it draws larger than its request says
    warnings: tuple[str, ...] = ()  # what a user should know of it, one sentence each

    @property
    def steps(self) -> int:
        """Intervals to cross between noise levels; a sampler may look at the network more than once in each."""
        return (len(self.sigmas) - 1 if self.stop is None else self.stop) - self.start

    @property
    def total(self) -> int:
        """The steps of all passes of its picture."""
        return self.before + self.steps + (0 if self.next is None else self.next.steps)

    @property
    def crossed(self) -> int:
        """How many of them are crossed."""
        return self.state.interval - self.start

    @property
    def level(self) -> float:
        """The noise level at which guidance is asked: the state's own, or, where a sampler looks at the very end of its
        interval (Heun), one just above: a condition that changes there belongs to the next step."""
        sigma, end = self.state.sigma, self.sigmas[self.state.interval + 1]
        at_end = sigma <= end and math.isclose(sigma, end, rel_tol=1e-9)  # DPM2 a may miss it by a rounding
        return math.nextafter(end, math.inf) if at_end else sigma

    def branches(self) -> tuple[Condition, ...]:
        """The conditions to ask the network now, one row each; `guidance.combine` makes one of their answers."""
        asked = self.guidance.branches(self.level)
        return asked if self.controls is None else self.controls.steer(asked, self.state.evaluations)

    def shortened(self, condition: Condition, place: tuple[int, int]) -> Condition:
        """A branch's condition of a window, with what the request saves: see `cache_interval`, `token_merging`."""
        request = self.request
        if request.token_merging:
            condition = replace(condition, merging=request.token_merging)
        if request.cache_interval > 1:
            kept = self.kept.get(place) if self.state.evaluations % request.cache_interval else None
            old = kept.features if kept is not None and kept.serves(condition) else None
            condition = replace(condition, cached=CachedFeatures(old))
        return condition

    @property
    def rows(self) -> int:
        """How many rows it asks the network now: its branches, in each of its windows."""
        return len(self.branches()) * (1 if self.windows is None else self.windows.count)

    @property
    def units(self) -> int:
        """What that costs: rows times the pixels of their latents."""
        height, width = self.state.x.shape[-2:]
        if self.windows is not None:
            height, width = min(height, self.windows.side), min(width, self.windows.side)
        return self.rows * height * width

    @property
    def done(self) -> bool:
        """True when all intervals are crossed, and only decoding is left."""
        return self.crossed >= self.steps

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of what is drawn: the result's, or of the part that its composite works on."""
        if self.composite is not None:
            return self.composite.work
        if self.enlarged is not None:
            return self.enlarged
        assert self.request.width is not None
        assert self.request.height is not None
        return self.request.width, self.request.height
