"""Distances: closed forms, scipy's matrix root, the sums written out, and what must hold of any distance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from darkroom.errors import RequestError
from darkroom.evaluate import distances
from darkroom.evaluate.distances import Moments, clip_score, cmmd, frechet, kernel_distance


def gaussian(seed: int, count: int, width: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, width)) * scale + shift).astype(np.float32)


def spread(seed: int, width: int) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(width, width))
    return a @ a.T / width


def test_frechet_of_gaussians_in_closed_form() -> None:
    d = 6
    eye, zero = np.eye(d), np.zeros(d)
    a = Moments(zero, 4 * eye)
    assert frechet(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet(a, Moments(np.full(d, 3.0), 4 * eye)) == pytest.approx(9 * d)  # means apart
    assert frechet(a, Moments(zero, 9 * eye)) == pytest.approx(d * (3 - 2) ** 2)  # deviations 2 and 3
    one, two = np.diag([1.0, 4, 9, 16, 25, 36]), np.diag([36.0, 25, 16, 9, 4, 1])  # commuting
    expected = np.square(np.sqrt(np.diag(one)) - np.sqrt(np.diag(two))).sum()
    assert frechet(Moments(zero, one), Moments(zero, two)) == pytest.approx(expected)


@pytest.mark.parametrize("few", [False, True])
def test_frechet_equals_scipys_matrix_root(few: bool) -> None:
    from scipy.linalg import sqrtm

    if few:  # singular covariances: 12 pictures of 20 features
        a, b = (Moments.of(gaussian(s, 12, 20, shift=s / 9)) for s in (1, 2))
    else:
        a, b = Moments(np.arange(20.0), spread(1, 20)), Moments(np.ones(20), spread(2, 20))
    root = sqrtm(a.covariance @ b.covariance).real
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-5)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-8)


def test_frechet_of_samples_comes_to_the_gaussians() -> None:
    a, b = gaussian(1, 40_000, 4), gaussian(2, 40_000, 4, shift=0.5, scale=2.0)
    assert frechet(Moments.of(a), Moments.of(b)) == pytest.approx(4 * (0.25 + 1), rel=0.03)


def test_moments_are_numpys_and_come_back_from_a_file(tmp_path: Path) -> None:
    features = gaussian(3, 50, 5, shift=100)
    found = Moments.of(features)
    assert found.mean == pytest.approx(features.astype(np.float64).mean(axis=0))
    assert np.allclose(found.covariance, np.cov(features.astype(np.float64).T))
    found.save(tmp_path / "stats.npz")
    with np.load(tmp_path / "stats.npz") as file:
        assert sorted(file.files) == ["mu", "sigma"]  # pytorch-fid's names
    again = Moments.read(tmp_path / "stats.npz")
    assert np.array_equal(again.mean, found.mean)
    assert np.array_equal(again.covariance, found.covariance)


def test_broken_statistics_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stats.npz"
    for content in (b"", b"no archive", b"PK\x03\x04" + bytes(40)):
        path.write_bytes(content)
        with pytest.raises(RequestError, match="holds no statistics"):
            Moments.read(path)
    with pytest.raises(RequestError, match="holds no statistics"):
        Moments.read(tmp_path / "nowhere.npz")
    good = {"mu": np.zeros(3), "sigma": np.eye(3)}
    for change in ({"mu": np.zeros(4)}, {"sigma": np.full((3, 3), np.nan)}, {"mu": np.zeros((3, 1))}):
        np.savez(path, **(good | change))
        with pytest.raises(RequestError, match="must be finite numbers"):
            Moments.read(path)
    np.savez(path, mu=np.array([object()]), sigma=np.eye(1))  # a pickle inside
    with pytest.raises(RequestError, match="holds no statistics"):
        Moments.read(path)
    np.savez(path, mu=np.zeros(3))
    with pytest.raises(RequestError, match="sigma"):
        Moments.read(path)
    np.savez(path, **good)
    monkeypatch.setattr(distances, "_MOST_WIDTH", 2)
    with pytest.raises(RequestError, match="would unpack to more than"):
        Moments.read(path)
    with pytest.raises(RequestError, match="features of 3 and 4 numbers"):
        frechet(Moments(np.zeros(3), np.eye(3)), Moments(np.zeros(4), np.eye(4)))
    with pytest.raises(RequestError, match="1 picture has no covariance"):
        Moments.of(np.zeros((1, 3)))


def test_kid_is_the_sum_over_pairs() -> None:
    x, y = gaussian(1, 10, 3), gaussian(2, 14, 3, shift=1)
    mean, deviation = kernel_distance(x, y, subsets=1, size=5, seed=7)
    rng = np.random.default_rng(7)
    a, b = (v[rng.choice(len(v), 5, replace=False)].astype(float) for v in (x, y))

    def k(u: np.ndarray, v: np.ndarray) -> float:
        return (float(u @ v) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    within = sum(k(a[i], a[j]) + k(b[i], b[j]) for i, j in pairs) / 20
    across = sum(k(u, v) for u in a for v in b) / 25
    assert mean == pytest.approx(within - 2 * across)
    assert deviation == 0


def test_kid_has_no_bias() -> None:
    """Of two samples of one distribution the mean is 0 within its error; of others it is what the kernel says."""
    same = [kernel_distance(gaussian(s, 40, 2), gaussian(s + 1000, 40, 2), subsets=5)[0] for s in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
    assert min(same) < 0 < max(same)
    far = kernel_distance(gaussian(1, 400, 2), gaussian(2, 400, 2, shift=1.0), subsets=20)
    assert far[0] > 5 * far[1]
    with pytest.raises(RequestError, match="one has 3 pictures"):
        kernel_distance(gaussian(1, 3, 2), gaussian(2, 9, 2))


def test_cmmd_is_the_sum_over_pairs_times_a_thousand() -> None:
    x, y = gaussian(1, 9, 4), gaussian(2, 7, 4, shift=1)
    a, b = (v / np.linalg.norm(v.astype(float), axis=1, keepdims=True) for v in (x, y))

    def mean(u: np.ndarray, v: np.ndarray) -> float:
        return float(np.mean([np.exp(-np.square(p - q).sum() / 200) for p in u for q in v]))

    assert cmmd(x, y) == pytest.approx(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b)), rel=1e-6)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
    assert cmmd(x, x[::-1] * 3) == pytest.approx(0, abs=1e-9)  # lengths and order don't count
    one, other = np.array([[1.0, 0]]), np.array([[0, 1.0]])
    assert cmmd(one, other) == pytest.approx(2000 * (1 - np.exp(-2 / 200)))
    many = gaussian(3, 1100, 3)  # more than one block of rows
    assert cmmd(many, many[:40]) == pytest.approx(cmmd(many[:40], many), rel=1e-6)


def test_clip_score_is_a_hundred_times_the_cosine() -> None:
    pictures = np.array([[1.0, 0], [1, 1], [1, 0]])
    texts = np.array([[2.0, 0], [1, 0], [-1, 0]])
    assert clip_score(pictures, texts) == pytest.approx(100 * (1 + np.sqrt(0.5) + 0) / 3)
