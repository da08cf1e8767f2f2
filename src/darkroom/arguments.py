"""What few people use of `Pipeline.generate`, in groups: one argument each, with the field's names. No torch.

    pipe.generate("a fox", guidance=darkroom.Guidance(rescale=0.7), speed=darkroom.Speed(cache_interval=2))

A request, and with it a recipe, is flat: a `Request`'s fields say which group holds them (`settings.Setting.group`).
What a value may be is checked there, once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .elsewhere import DRAWING
from .errors import RequestError, closest, shown
from .names import Fill, NoiseSource
from .request import Request
from .settings import Brief, SettingError, joined, settings


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Guidance(Brief):
    """How prompts guide, besides the `guidance_scale`; docs/guidance.md tells of all of it.

    Attributes:
        rescale: 0 to 1, against overexposure at high guidance (arXiv 2305.08891, sec. 3.4).
        interval: guidance acts at noise levels low < sigma <= high only (arXiv 2404.07724); None: at all.
        projection: 0 to 1: how much of guidance's part along the picture is left out (arXiv 2410.02416).
        pag_scale: 0 to 100: perturbed-attention guidance (arXiv 2403.17377), such as 3.0.
        pag_adaptive_scale: 0 to 1: by how much that falls with every training timestep.
        pag_levels: the U-Net's levels it perturbs: "mid", "down.1", "up.0"; None: the middle.
        threshold: 0 to 1: dynamic thresholding (arXiv 2205.11487, sec. 2.3): a percentile, such as 0.995.
        threshold_mimic: the guidance scale whose range it keeps; None: 1.
        image_scale: of editing models (InstructPix2Pix), which follow an instruction and the image: how closely the
            image, 0 to 100; None: 1.5. Below 1 nothing guides.
    """

    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    projection: float | None = None
    pag_scale: float | None = None
    pag_adaptive_scale: float | None = None
    pag_levels: Sequence[str] | None = None
    threshold: float | None = None
    threshold_mimic: float | None = None
    image_scale: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Inpaint(Brief):
    """How a masked part of a picture is drawn anew, and what is added around it (docs/inpainting.md).

    Attributes:
        fill: what the masked part begins as: "original" (None), "fill" (the colours around it), or "noise".
        only_masked: work on the mask's surroundings alone, at the model's own size, and put them back.
        mask_padding: with only_masked: how many pixels around the mask are surroundings, 0 to 1024; None: 32.
        mask_blur: width in pixels of the mask's soft edge, inside the masked part, 0 to 1024; None: 4.
        outpaint: pixels to add around the image, such as {"left": 128}, or (left, top, right, bottom). width and
            height, if given, are those of the larger picture.
    """

    fill: Fill | None = None
    only_masked: bool | None = None
    mask_padding: int | None = None
    mask_blur: int | None = None
    outpaint: Mapping[str, int] | Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Noise(Brief):
    """Which of a picture's noise levels are gone through, and what its noise is.

    Attributes:
        start: 0 to 1: go on with `latents` that another call stopped at this fraction of the way (docs/sdxl.md).
        stop: 0 to 1: stop there, with output="latent" for another model to go on.
        exact_steps: with an image: take exactly `steps` steps below the strength's noise level, not steps * strength.
        level: of upscaling models, 0 to 350: how much noise the image is given before; None: 20 (docs/upscaling.md).
        variation_seed: the starting noise is led towards this seed's: other versions of one picture. Picture i of a
            call has the same seed and the variation seed + i. None: drawn, and reported in the requests.
        variation_strength: 0 to 1: how far, along the great circle between the two (A1111's variation strength).
        source: whose random numbers the noise is made of: "cpu", torch's on a processor, which diffusers and ComfyUI
            draw too; "nv", those of an NVIDIA GPU, which A1111 takes where it isn't told otherwise. The same on every
            machine either way. `generate(noise="nv")` says this alone.
        sampler_source: whose random numbers samplers draw on the way, beginning with the seed's first draw (as ComfyUI,
            and stable-diffusion.cpp where it is asked); None: the source's that come after the starting noise.
        brownian: the SDE samplers' noise is the increments of one Brownian path, as in A1111 and ComfyUI; needs the
            extra `torchsde`. Pictures are as good without: it is for drawing theirs again.
        ensd: added to the seed for what samplers draw on the way (A1111's eta noise seed delta).
        eta: 0 to 1: how much of their noise ancestral and SDE samplers and DDIM draw on the way; None: all of it, and
            DDIM none.
        seed_resize: (width, height) in pixels: the starting noise of a picture of that size stands in the middle of
            this one's (A1111's "Resize seed from").
        discard_penultimate: with a `schedule`: one noise level more is made, and the last but one left out; None: as
            A1111 does for the sampler (DPM2, DPM2 a, DPM++ 3M SDE).
        sgm_noise_multiplier: from the model's highest level on, pictures begin with noise times sqrt(1 + sigma^2), the
            variance of training, as in ComfyUI, instead of times sigma; diffusers' samplers say themselves which.
    """

    start: float | None = None
    stop: float | None = None
    exact_steps: bool | None = None
    level: int | None = None
    variation_seed: int | None = None
    variation_strength: float | None = None
    source: NoiseSource = "cpu"
    sampler_source: NoiseSource | None = None
    brownian: bool = False
    ensd: int = 0
    eta: float | None = None
    seed_resize: tuple[int, int] | None = None
    discard_penultimate: bool | None = None
    sgm_noise_multiplier: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Tiling(Brief):
    """Overlapping windows that the U-Net sees instead of the whole, for pictures larger than the model is good at
    (docs/upscaling.md).

    Attributes:
        tile: a window's side, 8 to 8192 pixels; None: the whole picture at once.
        overlap: how many of them neighbours share; None: a quarter.
    """

    tile: int | None = None
    overlap: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Speed(Brief):
    """Faster, and lossy; docs/faster.md has what each costs.

    Attributes:
        cache_interval: the U-Net's deep features are computed in every n-th evaluation and reused in between
            (DeepCache, arXiv 2312.00858). 1: never reused. 2 or 3 are modest. Not with ControlNets.
        token_merging: for large pictures: 0 to 0.75, the fraction of the finest self-attention's tokens that are merged
            into similar ones (arXiv 2303.17604).
    """

    cache_interval: int = 1
    token_merging: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SizeConditioning(Brief):
    """What SDXL is told of the picture, its "micro-conditioning" (docs/sdxl.md). What begins with negative_ goes with
    the negative prompt.

    Attributes:
        original_size: (width, height) in pixels of what it was cut out of; None: its own size.
        crop: (left, top) of the cut; None: (0, 0).
        target_size: (width, height) it was meant for; None: its own size.
        aesthetic_score: how beautiful it is, 0 to 10, told to the refiner in place of the target size; None: 6.
        negative_original_size, negative_crop, negative_target_size: None: as without negative_.
        negative_aesthetic_score: None: 2.5.
    """

    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    aesthetic_score: float | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_crop: tuple[int, int] | None = None
    negative_target_size: tuple[int, int] | None = None
    negative_aesthetic_score: float | None = None


# The arguments that hold a group.
GROUPS: dict[str, type] = {
    "guidance": Guidance,
    "inpaint": Inpaint,
    "noise": Noise,
    "tiling": Tiling,
    "speed": Speed,
    "sizes": SizeConditioning,
}


def ungrouped(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with the groups among them opened: all by the names of `Request`'s fields.

    What fields say together (`settings.Joint`, a size) is taken apart. One that is in a group now may still be given by
    itself, in this version, with a warning. A group that is called as one of its fields may be given as that one's
    value: noise="nv". Raises RequestError for a group that is none.
    """
    found: dict[str, Any] = {}
    for name, group in GROUPS.items():
        if (value := given.get(name)) is None:
            continue
        if name in _PLACES and isinstance(value, str):
            found[name] = value
            continue
        if not isinstance(value, group):
            raise RequestError(f"{name} is {shown(value)}; it must be a darkroom.{group.__name__}")
        for field, place in _PLACES.items():
            if place[0] == name:
                found[field] = getattr(value, place[1])
    for name, value in given.items():
        if name in GROUPS:
            continue
        if name in _JOINT:
            if value is not None:
                found |= _apart(name, value, given)
            continue
        if name in _PLACES:
            argument, member = _PLACES[name]
            warnings.warn(
                f"{name} is in a group now, and its own argument goes with the next version; "
                f"say {argument}=darkroom.{GROUPS[argument].__name__}({member}=...)",
                DeprecationWarning,
                stacklevel=4,  # past `generate` and what reads other programs' names
            )
        found[name] = value
    return found


def check_known(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise RequestError for a keyword that is none of the `known` ones and never was, with the nearest."""
    known = [*known, *_PLACES]
    for name in given:
        if name not in known:
            theirs = {other: ours for ours in known for other in DRAWING.of(ours)}
            near = closest(name.lower(), [*known, *theirs])
            meant = f"; did you mean {(near if near in known else theirs[near])!r}?" if near else ""
            raise RequestError(f"there is no argument {name!r}{meant}")


# What several fields say together -> them, and what may be said.
_JOINT = {name: (fields, declared.kind) for name, fields, declared in joined(Request) if len(fields) > 1}


def _apart(name: str, value: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of what was said for several together. Raises RequestError."""
    fields, kind = _JOINT[name]
    for other in fields:
        if given.get(other) is not None:
            raise RequestError(f"{name} and {other} are both given; give {name} alone, or {' and '.join(fields)}")
    try:
        values = kind.check(name, kind.read(name, value) if isinstance(value, str) else value)
    except SettingError as wrong:
        raise RequestError(str(wrong)) from None
    return dict(zip(fields, values, strict=True))


# Field of a request -> (argument, name in it).
_PLACES: dict[str, tuple[str, str]] = {
    field: (place[0], place[2])
    for field, declared in settings(Request).items()
    if declared.group is not None and (place := declared.group.partition("."))
}


def grouped(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request as `Pipeline.generate` takes them: the inverse of `ungrouped`."""
    found = {name: value for name, value in fields.items() if name not in _PLACES}
    members: dict[str, dict[str, Any]] = {}
    for name in fields.keys() & _PLACES.keys():
        argument, member = _PLACES[name]
        members.setdefault(argument, {})[member] = fields[name]
    return found | {argument: GROUPS[argument](**values) for argument, values in members.items()}
