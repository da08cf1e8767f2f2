"""The mathematics between a network and a sampler; here, by name, the noise levels that a sampler may visit.

A schedule's name is ours (ComfyUI's where there is one), A1111's, or one of its others. `spacings` makes the levels.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from ..errors import RequestError, nearest

__all__ = ["AUTOMATIC", "SPACINGS", "Spacing", "has_torchsde", "spacing_name"]


@dataclass(frozen=True, slots=True)
class Spacing:
    """One schedule: its id, A1111's name for it (None: it has none), and its other names."""

    id: str
    label: str | None = None
    aliases: tuple[str, ...] = ()


TABLE = (
    Spacing("linspace"),  # diffusers: fractional timesteps from 0 to T - 1, sigma linear between whole ones
    Spacing("leading"),  # diffusers: every (T // steps)-th timestep, from steps_offset up
    Spacing("trailing"),  # diffusers: every (T / steps)-th timestep, from T - 1 down
    # ComfyUI's normal: like linspace, with log sigma linear between whole timesteps
    Spacing("normal", "Uniform", ("uniform",)),
    # like normal, but the last timestep before 0 is one interval above it
    Spacing("sgm_uniform", "SGM Uniform", ("sgm",)),
    Spacing("simple", "Simple"),  # every (T / steps)-th training level, from the top down
    Spacing("karras", "Karras"),  # sigma^(1 / rho) evenly spaced (Karras et al. 2022, arXiv 2206.00364, eq. 5)
    Spacing("exponential", "Exponential", ("polyexponential",)),  # log sigma evenly spaced
    # ComfyUI: training levels 1, 1 + T // steps, ... up to the top; more steps than asked where those don't divide T
    Spacing("ddim_uniform", "DDIM", ("ddim",)),
    # half of the steps straight down to 0.975 of the highest level, then a parabola to 0 (arXiv 2410.13720, sec. 3.4)
    Spacing("linear_quadratic"),
    # sigma at quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173), as A1111 and diffusers
    Spacing("beta", "Beta"),
    Spacing("beta_timesteps"),  # the same in whole timesteps, as ComfyUI
    Spacing("kl_optimal", "KL Optimal"),  # arctan sigma evenly spaced (Sabour et al. 2024, arXiv 2404.14507, eq. 21)
    # a table optimised for Stable Diffusion (the same paper)
    Spacing("align_your_steps", "Align Your Steps", ("ays",)),
)
AUTOMATIC = "automatic"  # the schedule's name when it is the checkpoint's own (A1111 says "Automatic")
SPACINGS = tuple(row.id for row in TABLE)
_IDS = {name: row.id for row in TABLE for name in (row.id, *row.aliases)}


def has_torchsde() -> bool:
    """Whether torchsde is installed, which Brownian paths are made with (`brownian`)."""
    return importlib.util.find_spec("torchsde") is not None


def spacing_name(name: str) -> str:
    """The schedule that a user's word means ("Karras", "SGM Uniform", "uniform"). RequestError if there is none."""
    key = "_".join(name.replace("-", " ").replace("_", " ").lower().split())
    if key in _IDS:
        return _IDS[key]
    raise RequestError(
        f"there is no schedule {name[:80]!r}{nearest(key, _IDS) or '; there are ' + ', '.join(SPACINGS)}"
    )
