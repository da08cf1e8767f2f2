"""Distances between two sets of pictures, by the features that a network sees in them. All in float64.

Shapes: N and M pictures, D features.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..files import whole_file

Features = NDArray[np.floating[Any]]
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # Jayasumana et al.'s
KID_SUBSETS, KID_SIZE = 100, 1000  # torch-fidelity's
ROWS = 1024  # of a kernel matrix at a time
_MOST_WIDTH = 16_384  # features of a file of statistics; Inception has 2048


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] of a set's features: all that FID asks of it."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, features: Features) -> Moments:
        """Of [N, D], by the unbiased estimate. Raises RequestError for fewer than two pictures."""
        if len(features) < 2:
            raise RequestError(f"{len(features)} picture has no covariance; give two or more")
        wide = features.astype(np.float64)
        return cls(wide.mean(axis=0), np.cov(wide, rowvar=False).reshape(wide.shape[1], wide.shape[1]))

    @classmethod
    def read(cls, path: str | Path) -> Moments:
        """From a file of pytorch-fid's: an .npz with `mu` and `sigma`. Raises RequestError."""
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(info.file_size for info in archive.infolist()) > 16 * _MOST_WIDTH**2:
                    raise ValueError(f"it would unpack to more than {16 * _MOST_WIDTH**2:,} bytes")
            with np.load(path, allow_pickle=False) as file:
                mean, covariance = file["mu"], file["sigma"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RequestError(f"{str(path)[:200]!r} holds no statistics of features (mu, sigma): {error}") from None
        numbers = all(a.dtype.kind == "f" and np.isfinite(a).all() for a in (mean, covariance))
        if not numbers or mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise RequestError(
                f"{str(path)[:200]!r} has mu of {list(mean.shape)} and sigma of {list(covariance.shape)}; they must be "
                "finite numbers [D] and [D, D]"
            )
        return cls(mean.astype(np.float64), covariance.astype(np.float64))

    def save(self, path: str | Path) -> None:
        """Write pytorch-fid's file of statistics. Raises RequestError where it can't be written."""
        with whole_file(Path(path), RequestError) as draft, open(draft, "wb") as file:
            np.savez_compressed(file, mu=self.mean, sigma=self.covariance)


def frechet(a: Moments, b: Moments) -> float:
    """The Frechet distance of two Gaussians, squared as FID has it (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    The trace of sqrt(A B) is the sum of the square roots of the eigenvalues of sqrt(A) B sqrt(A), which is symmetric:
    no general matrix root, which loses digits where covariances are singular (fewer pictures than features).
    """
    if a.mean.shape != b.mean.shape:
        raise RequestError(f"features of {len(a.mean)} and {len(b.mean)} numbers can't be compared; use one network")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ b.covariance @ root)
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(shared.clip(min=0)).sum()
    return float(difference @ difference + traces)


def kernel_distance(
    a: Features, b: Features, subsets: int = KID_SUBSETS, size: int = KID_SIZE, seed: int = 0
) -> tuple[float, float]:
    """KID: the mean over random subsets and its standard deviation (Binkowski et al. 2018, arXiv 1801.01401, sec. 4).

    The unbiased estimate of the squared MMD with the kernel (x . y / D + 1)^3; it may be negative. Subsets have `size`
    pictures, or half of the smaller set where that is less, so that they differ. RequestError for fewer than four.
    """
    few = min(len(a), len(b))
    if few < 4:
        raise RequestError(f"KID compares random halves of the sets, and one has {few} pictures; give four or more")
    size = min(size, few // 2)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        x = a[rng.choice(len(a), size, replace=False)].astype(np.float64)
        y = b[rng.choice(len(b), size, replace=False)].astype(np.float64)
        found.append(_unbiased(_cubic(x, x), _cubic(y, y), _cubic(x, y)))
    return float(np.mean(found)), float(np.std(found))


def _cubic(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def _unbiased(xx: NDArray[np.float64], yy: NDArray[np.float64], xy: NDArray[np.float64]) -> float:
    """Squared MMD without the pairs of a picture with itself (Gretton et al. 2012, JMLR 13, eq. 3)."""
    within = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy))
    return float(within - 2 * xy.mean())


def cmmd(a: Features, b: Features) -> float:
    """CMMD of CLIP embeddings of unit length (Jayasumana et al. 2024, arXiv 2401.09603, sec. 4).

    The squared MMD with the kernel exp(-|x - y|^2 / (2 * 10^2)), times 1000; as in the authors' code all pairs count,
    those of a picture with itself too (the estimate of least variance: 0 for equal sets, never negative).
    """
    x, y = (_unit(v) for v in (a, b))
    return float(CMMD_SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y)))


def _mean_kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The mean of the kernel less 1 over all pairs; the ones cancel in the sum, and small differences keep digits."""
    total = 0.0
    lengths = np.square(y).sum(axis=1)
    for i in range(0, len(x), ROWS):
        rows = x[i : i + ROWS]
        squares = np.square(rows).sum(axis=1)[:, None] + lengths - 2 * rows @ y.T
        total += float(np.expm1(-squares.clip(min=0) / (2 * CMMD_SIGMA**2)).sum())
    return total / (len(x) * len(y))


def clip_score(pictures: Features, texts: Features) -> float:
    """The mean of 100 max(cos, 0) between pictures [N, D] and their texts [N, D], as torchmetrics has it.

    Hessel et al. (2021, arXiv 2104.08718, eq. 1) weigh with 2.5 instead of 100: their CLIP-S is a fortieth of this.
    """
    cosines = (_unit(pictures) * _unit(texts)).sum(axis=1)
    return float(100 * cosines.clip(min=0).mean())


def _unit(features: Features) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True).clip(min=1e-12)
    return unit
