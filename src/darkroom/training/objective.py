"""What every training of a U-Net, or of something attached to one, minimises.

The network is asked about x0 + sigma noise, and the squared distance of its own output (noise, v, x0 or velocity:
`diffusion.scalings`) from what the perfect one would say is weighed by the noise level. Everything else here is a
choice in a recipe: which noise levels, which noise (paired with its picture at the least cost, if asked), which weight.

Shapes: N rows, C latent channels, h w latent size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..diffusion.condition import Batch
from ..diffusion.denoiser import Denoiser
from ..diffusion.scalings import Scaling
from ..diffusion.schedule import Schedule
from ..settings import setting
from .parallel import Rank
from .recipe import ABOVE_ZERO, FRACTION, LoopConfig, either, flag, number


def assign(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each row of cost [n, n] its column, each used once, so that the sum of the costs is least.

    Shortest augmenting paths (Jonker and Volgenant 1987, Computing 38, 325-340): rows come in one by one, and each
    makes room for itself along the cheapest chain of moves; the prices of rows and columns keep every reduced cost at 0
    or above. O(n^3), a few milliseconds for 64 rows. All costs must be finite.
    """
    n = len(cost)
    row_price, column_price = np.zeros(n), np.zeros(n)
    owner = np.full(n, -1)  # of each column: its row
    for row in range(n):
        distance = np.full(n, np.inf)  # of the cheapest chain from `row` to each column
        before = np.full(n, -1)  # the column that comes before each on that chain
        reached = np.zeros(n, bool)
        at, column, length = row, -1, 0.0
        while True:
            through = length + cost[at] - row_price[at] - column_price
            nearer = ~reached & (through < distance)
            distance[nearer], before[nearer] = through[nearer], column
            column = int(np.argmin(np.where(reached, np.inf, distance)))
            length, reached[column] = distance[column], True
            if owner[column] < 0:
                break
            at = int(owner[column])
        # Prices: every column that was reached gets cheaper by what the chain's end was farther away.
        column_price[reached] -= length - distance[reached]
        row_price[row] += length
        moved = reached & (owner >= 0)
        row_price[owner[moved]] += length - distance[moved]
        while column >= 0:
            last = int(before[column])
            owner[column] = row if last < 0 else owner[last]
            column = last
    answer = np.empty(n, np.int64)
    answer[owner] = np.arange(n)
    return answer


# --- the loss


WEIGHTS = ("constant", "min-snr", "snr-plus-one", "debiased")
TIMES = ("uniform", "logit-normal")
BANDS = (0.3, 1.0, 3.0)  # noise levels that part the bands of the log: details, shapes, layout, nearly nothing seen
_TINY = 1e-6  # how near to 0 and 1 a time may come before it is bent


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingRecipe(LoopConfig):
    """What every training against `denoising_loss` has. The defaults are the plain loss of Stable Diffusion."""

    heading: ClassVar[str] = "The loss"

    dropout: float = setting(0.1, FRACTION, "Fraction of captions replaced by the empty one, so that guidance works.")
    weight: str = setting("constant", either(WEIGHTS), "Of a noise level in the loss (see `weight_of`).")
    gamma: float = setting(
        5.0,
        ABOVE_ZERO,
        'Where the weights "min-snr" and "snr-plus-one" are cut off.',
        beside=(("weight", "min-snr", "snr-plus-one"),),
    )
    times: str = setting("uniform", either(TIMES), "How timesteps are drawn (see `times_of`).")
    times_mean: float = setting(
        0.0,
        number("between -10 and 10", lambda v: -10 <= v <= 10),
        'Of "logit-normal": below 0, low noise comes more.',
        beside=(("times", "logit-normal"),),
    )
    times_std: float = setting(
        1.0,
        number("above 0, at most 10", lambda v: 0 < v <= 10),
        'Of "logit-normal".',
        beside=(("times", "logit-normal"),),
    )
    times_from: float = setting(
        0.0, FRACTION, "Timesteps are of this part of the schedule: 0 is the least noise, 1 the most."
    )
    times_to: float = setting(1.0, FRACTION, "The other end of that part.")
    noise_offset: float = setting(0.0, FRACTION, "Deviation of noise that is one number a channel (see `noise_of`).")
    perturbation: float = setting(
        0.0, FRACTION, "Deviation of noise that the network is shown and not asked for (see `denoising_loss`)."
    )
    immiscible: bool = setting(False, flag(), "Give each picture of a batch the noise nearest to it (see `noise_of`).")


def weight_of(recipe: DenoisingRecipe, scaling: Scaling, sigma: Tensor) -> Tensor | None:
    """The weights [N] on the squared error of the network's own output at noise levels sigma [N]; None: all 1.

    With SNR = sigma^-2, whatever the network predicts:

    - "constant": 1, on the network's own output; for epsilon the simple loss of Ho et al. 2020 (2006.11239, eq. 14).
    - "min-snr": the error of x0 weighs min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556, eq. 8): on epsilon's
      min(SNR, gamma) / SNR, on v's min(SNR, gamma) / (SNR + 1).
    - "snr-plus-one": the error of x0 weighs min(SNR + 1, gamma): Salimans and Ho 2022 (arXiv 2202.00512, sec. 4), cut
      off as Min-SNR is. On v's it is 1 where noise rules (docs/decisions/0008).
    - "debiased": the error of x0 weighs sqrt(SNR), on epsilon's 1 / sqrt(SNR) (Yu et al. 2023, arXiv 2310.08442).

    An error of the output is an error of x0 times c_out (Karras et al. 2022, arXiv 2206.00364, eq. 7), hence c_out^2.
    """
    if recipe.weight == "constant":
        return None
    snr = sigma**-2
    of_x0 = {
        "min-snr": lambda: snr.clamp(max=recipe.gamma),
        "snr-plus-one": lambda: (snr + 1).clamp(max=recipe.gamma),
        "debiased": snr.sqrt,
    }[recipe.weight]()
    return of_x0 * scaling.c_out(sigma).square()


def times_of(recipe: DenoisingRecipe, schedule: Schedule, rows: int) -> Tensor:
    """Timesteps [rows] float32, from torch's generator; whole ones but for flow models.

    They are spread evenly over the law of the recipe, one in each of `rows` equal parts of it: less variance than
    independent ones. "logit-normal": the fraction of the schedule's length is sigmoid(mean + std * normal) (Esser et
    al. 2024, arXiv 2403.03206, eq. 19). A flow model's are moved by its shift (eq. 23).
    """
    u = (torch.arange(rows) + torch.rand(())) / rows
    if recipe.times == "logit-normal":
        normal = torch.special.ndtri(u.double().clamp(_TINY, 1 - _TINY))
        u = torch.sigmoid(recipe.times_mean + recipe.times_std * normal).float()
    u = recipe.times_from + (recipe.times_to - recipe.times_from) * u
    if schedule.prediction_type == "flow":
        s = schedule.shift * u / (1 + (schedule.shift - 1) * u)
        # A level beyond the schedule's ends is one at its end.
        return schedule.sigma_to_t(schedule.t_to_sigma(schedule.steps * s))
    last = min(schedule.steps - 1, max(0, math.ceil(recipe.times_to * schedule.steps) - 1))
    return (u * schedule.steps).floor().clamp(max=last)


def noise_of(recipe: DenoisingRecipe, x0: Tensor, rank: Rank) -> Tensor:
    """Noise [N, C, h, w] for this process's latents, its part of one draw for the whole batch from torch's generator.

    `noise_offset` adds a number for each channel of each picture, so that a model learns what is as bright or dark all
    over (Guttenberg 2023, "Diffusion with offset noise", crosslabs.org). `immiscible` deals the noises out so that the
    sum of squared distances to the pictures is least (Li et al. 2024, arXiv 2406.12303), among the rows
    that are computed together: other numbers of processes or parts, other partners.
    """
    rows = len(x0) * rank.world_size
    noise = rank.of(torch.randn(rows, *x0.shape[1:]))
    if recipe.noise_offset:
        noise = noise + recipe.noise_offset * rank.of(torch.randn(rows, x0.shape[1], 1, 1))
    if recipe.immiscible:
        # |x0 - noise|^2, without what is the same for every way to deal them out
        cost = -(x0.detach().cpu().flatten(1).double() @ noise.flatten(1).double().T)
        noise = noise[torch.from_numpy(assign(cost.numpy()))]
    return noise.to(x0.device)


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    batch: Batch,
    rank: Rank,
    recipe: DenoisingRecipe,
    rows: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over rows of weight * |network's output - target|^2, at timesteps spread over the schedule.

    The target is made of the noise without `perturbation`, which the network is shown in addition: as if its own
    earlier answers had been off (Ning et al. 2023, arXiv 2301.11706).

    Args:
        x0: this process's latents [N, C, h, w], scaled as the U-Net sees them, float32.
        batch: what they are conditioned on; gradients go through it.
        rank: which part of the whole batch this is. All that is drawn comes from torch's generator for the whole
            batch, so that every process sees its part of the same draw.
        recipe: times, noise, weight.
        rows: weights [N] of the rows, beside that of their noise level (DreamBooth); None: 1.

    Returns the loss and, detached, the unweighted error: of all rows, and by `bands` of noise.
    """
    schedule, scaling, count = denoiser.schedule, denoiser.scaling, len(x0) * rank.world_size
    noise = noise_of(recipe, x0, rank)
    t = rank.of(times_of(recipe, schedule, count)).to(x0.device)
    sigma = schedule.t_to_sigma(t).float()
    level = sigma.view(-1, 1, 1, 1)
    shown = noise
    if recipe.perturbation:
        shown = noise + recipe.perturbation * rank.of(torch.randn(count, *x0.shape[1:])).to(x0.device)
    answer = denoiser.raw(x0 + level * shown, sigma, batch, t=t)
    error = (answer - scaling.target(x0, noise, level)).square().mean(dim=(1, 2, 3))
    loss = error
    for weight in (weight_of(recipe, scaling, sigma), rows):
        loss = loss if weight is None else weight.to(loss.device) * loss
    return loss.mean(), {"error": error.detach().mean(), **bands(sigma, error.detach())}


def bands(sigma: Tensor, error: Tensor) -> dict[str, Tensor]:
    """The errors [N] by band of noise level, for the log: for each band a pair [2], their sum and how many they are."""
    edges = (0.0, *BANDS, float("inf"))
    found = {}
    for low, high in pairwise(edges):
        inside = ((sigma >= low) & (sigma < high)).float()
        name = f"error_{low:g}" if high == edges[-1] else f"error_{low:g}_{high:g}"
        found[name] = torch.stack([(inside * error).sum(), inside.sum()])
    return found
