"""Does a model draw anew, or draw its training pictures again?

Somepalli et al. (2022, arXiv 2212.03860) and Carlini et al. (2023, arXiv 2301.13188): for each drawn picture its
nearest training picture. How near is too near is told by the training pictures themselves: how near each of them is to
its own nearest other. Shapes: N drawn pictures, T training pictures, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import RequestError
from ..sweeps.sheet import Place, contact_sheet
from .pictures import Pictures

ROWS = 512
QUANTILE = 0.01  # of the distances among training pictures: a drawn one nearer than that is suspicious
THUMB = 192  # pixels, the longest side on a sheet


@dataclass(frozen=True)
class Memorisation:
    """What was found.

    Attributes:
        nearest: [N], which training picture is nearest to each drawn one.
        distances: [N], how far it is.
        among: [T], how far each training picture is from its nearest other one.
    """

    nearest: NDArray[np.int64]
    distances: NDArray[np.float64]
    among: NDArray[np.float64]

    @classmethod
    def of(cls, drawn: NDArray[Any], training: NDArray[Any]) -> Memorisation:
        """By features [N, D] and [T, D], Euclidean. Raises RequestError for fewer than two training pictures."""
        if len(training) < 2:
            raise RequestError(f"{len(training)} training picture has no other one to be compared with; give more")
        nearest, distances = _nearest(drawn, training, itself=False)
        return cls(nearest, distances, _nearest(training, training, itself=True)[1])

    @property
    def threshold(self) -> float:
        """The distance under which only a hundredth of the training pictures have another."""
        return float(np.quantile(self.among, QUANTILE))

    @property
    def suspicious(self) -> float:
        """The fraction of drawn pictures nearer to a training picture than that; about 0.01 for a fresh sample of the
        training pictures' own kind, more for copies.
        """
        return float((self.distances < self.threshold).mean())

    def closest(self, count: int) -> list[int]:
        """The drawn pictures that are nearest to a training picture, the nearest first."""
        return [int(i) for i in np.argsort(self.distances, kind="stable")[:count]]

    def told(self, drawn: Pictures, training: Pictures, pairs: int = 10) -> dict[str, Any]:
        """All of it as plain values, with the closest pairs by their names."""
        return {
            "pictures": len(self.distances),
            "training_pictures": len(self.among),
            "distance": _spread(self.distances),
            "distance_among_training": _spread(self.among),
            "threshold": self.threshold,
            "suspicious": self.suspicious,
            "closest": [
                {
                    "picture": drawn.names[i],
                    "training": training.names[int(self.nearest[i])],
                    "distance": round(float(self.distances[i]), 5),
                }
                for i in self.closest(pairs)
            ],
        }

    def sheet(self, drawn: Pictures, training: Pictures, pairs: int = 8) -> Image.Image:
        """The closest pairs side by side, each drawn picture beside its nearest training picture."""
        cells: dict[Place, Image.Image] = {}
        labels = []
        for row, i in enumerate(self.closest(pairs)):
            both = drawn.read(i), training.read(int(self.nearest[i]))
            cells |= {(column, row, 0): _thumb(picture) for column, picture in enumerate(both)}
            labels.append(f"{self.distances[i]:.3f}")
        title = f"nearest of {len(self.among)}; {self.threshold:.3f} is near among them"
        return contact_sheet(cells, (("drawn", "nearest"), labels, ()), title)


def _nearest(x: NDArray[Any], y: NDArray[Any], itself: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The row of y nearest to each of x, and its distance; `itself`: x is y, and no row is its own neighbour."""
    wide = y.astype(np.float64)
    lengths = np.square(wide).sum(axis=1)
    found, distances = [], []
    for i in range(0, len(x), ROWS):
        rows = x[i : i + ROWS].astype(np.float64)
        squares = np.square(rows).sum(axis=1)[:, None] + lengths - 2 * rows @ wide.T
        if itself:
            squares[np.arange(len(rows)), np.arange(i, i + len(rows))] = np.inf
        best = squares.argmin(axis=1)
        found.append(best)
        distances.append(np.linalg.norm(rows - wide[best], axis=1))  # exact where squares have cancelled
    return np.concatenate(found), np.concatenate(distances)


def _spread(distances: NDArray[np.float64]) -> dict[str, float]:
    return {
        "smallest": round(float(distances.min()), 5),
        "hundredth": round(float(np.quantile(distances, QUANTILE)), 5),
        "median": round(float(np.median(distances)), 5),
    }


def _thumb(picture: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(picture)
    scale = THUMB / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
