"""The k-th noise draw of a picture, as a function of (seed, k) alone.

Independent draws are all that any sampler here needs; a Brownian tree (`brownian`) is for drawing other tools' pictures
again. Samplers that draw once an
interval (Euler a, DDIM, DPM2 a, DPM++ 2M SDE, 3M SDE, ...) look at increments of a Brownian path over disjoint
intervals, which are independent. DPM++ SDE looks at two overlapping increments, over [sigma, mid] and over
[sigma, next]; the second is the first plus an independent one over [mid, next]:

    W(sigma, next) = sqrt(sigma - mid) n1 + sqrt(mid - next) n2,

so two independent draws an interval give it the joint distribution a Brownian tree would.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SeededNoise:
    """k -> the k-th sequential `torch.randn` of a CPU generator seeded with `seed`, [C, H, W] float32 on the CPU.

    k = 0 is the starting noise, exactly the latent that diffusers draws from `torch.Generator("cpu").manual_seed(seed)`
    for one picture, and k = 1, 2, ... are what its ancestral schedulers draw next from that generator.
    Sequential access costs one draw each; going back starts again from the seed. Pickles as its arguments.

    Args:
        seed: -2**63 to 2**64 - 1, torch's own range.
        shape: (C, H, W).
        before: the shape of a draw that comes before draw 0, for something else than this noise.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], before: tuple[int, ...] | None = None) -> None:
        self.seed = seed
        self.shape = tuple(shape)
        self.before = before
        self._rewind()

    def _rewind(self) -> None:
        self._generator = torch.Generator("cpu").manual_seed(self.seed)
        if self.before is not None:
            torch.randn(self.before, generator=self._generator, dtype=torch.float32)
        self._drawn = 0  # draws taken from the generator so far
        self._last: Tensor | None = None  # draw number _drawn - 1

    def __call__(self, k: int) -> Tensor:
        """The k-th draw (k >= 0). The tensor is the caller's own."""
        if k < 0:
            raise ValueError(f"noise draws are numbered from 0, not {k}")
        if k < self._drawn - 1:
            self._rewind()
        while self._drawn <= k:
            self._last = torch.randn(self.shape, generator=self._generator, dtype=torch.float32)
            self._drawn += 1
        assert self._last is not None
        return self._last.clone()

    def __reduce__(self) -> tuple[type[SeededNoise], tuple[int, tuple[int, ...], tuple[int, ...] | None]]:
        return SeededNoise, (self.seed, self.shape, self.before)

    def __repr__(self) -> str:
        return f"SeededNoise(seed={self.seed}, shape={self.shape})"


def slerp(strength: float, low: Tensor, high: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985, eq. 1.1) from `low` to `high` [C, H, W], which keeps noise's variance.

    Each column of H numbers is turned by itself: A1111's definition, whose variations these are. Where the two are all
    but parallel the angle says nothing, and they are mixed.
    """
    dot = (low / low.norm(dim=1, keepdim=True) * (high / high.norm(dim=1, keepdim=True))).sum(1)  # [C, W]
    if dot.mean() > 0.9995:
        return low * (1 - strength) + high * strength
    omega = torch.acos(dot)
    first, second = (torch.sin(part * omega) / torch.sin(omega) for part in (1 - strength, strength))
    return first[:, None] * low + second[:, None] * high


def centred(small: Tensor, noise: Tensor) -> Tensor:
    """`noise` [C, H, W] with another [C, h, w] in its middle, cut where that is larger (A1111's "Resize seed from")."""
    into, of = [], []
    for inner, outer in zip(small.shape[1:], noise.shape[1:], strict=True):
        left = (outer - inner) // 2  # rounded down, as there
        length = inner if left >= 0 else inner + 2 * left
        into.append(slice(max(left, 0), max(left, 0) + length))
        of.append(slice(max(-left, 0), max(-left, 0) + length))
    whole = noise.clone()
    whole[:, into[0], into[1]] = small[:, of[0], of[1]]
    return whole


def first_draw(kind: type[SeededNoise] | type[PhiloxNoise], seed: int, shape: tuple[int, ...]) -> Tensor:
    """A seed's first draw of any shape."""
    return kind(seed, shape)(0)


class PhiloxNoise:
    """k -> the k-th `torch.randn` of a CUDA generator seeded with `seed`, [C, H, W] float32, computed on the CPU.

    What A1111 draws where its random numbers are the GPU's or "NV", and stable-diffusion.cpp where they are "cuda".
    Philox 4x32 of ten rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", sec. 3.3) with the
    draw's number k and the value's place as counter and the seed as key; each counter gives one value by Box and
    Muller's transform. Equal to CUDA's, which computes in float32, within 5e-7.

    The arguments are `SeededNoise`'s.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], before: tuple[int, ...] | None = None) -> None:
        self.seed = seed
        self.shape = tuple(shape)
        self.before = before

    def __call__(self, k: int) -> Tensor:
        """The k-th draw (k >= 0)."""
        if k < 0:
            raise ValueError(f"noise draws are numbered from 0, not {k}")
        count = int(np.prod(self.shape))
        counter = np.zeros((4, count), np.uint32)
        counter[0] = k + (self.before is not None)
        counter[2] = np.arange(count, dtype=np.uint32)
        first, second, _, _ = _philox(counter, self.seed % 2**64)
        return torch.from_numpy(_normal(first, second).reshape(self.shape))

    def __repr__(self) -> str:
        return f"PhiloxNoise(seed={self.seed}, shape={self.shape})"


_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # what the two halves of the key grow by from round to round
_WORD = 2.0**-32  # of a random word: to 0..1


def _philox(counter: NDArray[np.uint32], key: int) -> NDArray[np.uint32]:
    """Philox 4x32-10 of counters [4, N]: four random words each."""
    low, high = key & 0xFFFFFFFF, key >> 32
    c0, c1, c2, c3 = counter
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # 64 bits each: high word and low word
        c0, c1, c2, c3 = (
            (second >> np.uint64(32)).astype(np.uint32) ^ c1 ^ np.uint32(low),
            second.astype(np.uint32),
            (first >> np.uint64(32)).astype(np.uint32) ^ c3 ^ np.uint32(high),
            first.astype(np.uint32),
        )
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def _normal(x: NDArray[np.uint32], y: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Box and Muller's transform (1958) of two random words, the sine's half.

    In float64, and rounded at the end: a float32 logarithm would take a word near 2^32 for 1.
    """
    u, v = (x + 0.5) * _WORD, (y + 0.5) * _WORD
    values: NDArray[np.float64] = np.sqrt(-2 * np.log(u)) * np.sin(2 * np.pi * v)
    return values.astype(np.float32)
