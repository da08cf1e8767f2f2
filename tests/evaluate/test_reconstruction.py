"""What an autoencoder keeps: SSIM against scipy's Gaussian filter, LPIPS's place, pictures of odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from darkroom.errors import RequestError
from darkroom.evaluate.reconstruction import psnr, reconstruct, reconstruction, ssim
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig, LpipsConfig
from darkroom.models.lpips import Lpips


def noise(seed: int, height: int = 40, width: int = 33) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def test_ssim_is_that_of_a_gaussian_filter() -> None:
    from scipy.ndimage import gaussian_filter

    a = noise(1)
    b = np.clip(a.astype(int) + np.random.default_rng(2).integers(-60, 60, a.shape), 0, 255).astype(np.uint8)
    means = []
    for channel in range(3):
        x, y = a[..., channel].astype(float), b[..., channel].astype(float)

        def blur(v: np.ndarray) -> np.ndarray:
            return gaussian_filter(v, 1.5, truncate=3.5)  # a radius of 5 pixels

        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        likeness = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        means.append(likeness[5:-5, 5:-5].mean())
    assert ssim(a, b) == pytest.approx(np.mean(means), rel=1e-9)
    assert 0 < ssim(a, b) < 1


def test_ssim_of_known_pictures() -> None:
    a = noise(3)
    assert ssim(a, a) == pytest.approx(1)
    flat, lighter = np.full_like(a, 100), np.full_like(a, 150)
    c1 = 2.55**2
    assert ssim(flat, lighter) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))
    assert ssim(a, 255 - a) < 0
    for other in (a[:10], a[:, :20]):
        with pytest.raises(RequestError, match="have no SSIM; give two of one size, 11 a side"):
            ssim(a[:10] if len(other) == 10 else a, other)


def tiny() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4))


def test_pictures_of_odd_sizes_keep_their_size() -> None:
    network = tiny()
    back = reconstruct(network, [noise(1), noise(2)])
    assert [p.shape for p in back] == [(40, 33, 3)] * 2
    padded = np.concatenate([noise(1), np.repeat(noise(1)[:, -1:], 7, axis=1)], axis=1)
    assert np.abs(reconstruct(network, [padded])[0][:, :33].astype(int) - back[0]).max() <= 1


def test_all_three_of_a_set() -> None:
    network = tiny()
    torch.manual_seed(1)
    lpips = Lpips(LpipsConfig("alex"))
    pictures, told = [noise(i, 48, 48) for i in range(5)], []
    found = reconstruction(network, iter(pictures), lpips, rows=2, report=told.append)
    back = reconstruct(network, pictures)
    assert found["pictures"] == 5
    assert found["psnr"] == pytest.approx(psnr(pictures, back), abs=1e-3)
    assert found["ssim"] == pytest.approx(np.mean([ssim(p, q) for p, q in zip(pictures, back, strict=True)]), abs=1e-3)
    x, y = (torch.from_numpy(np.stack(p)).permute(0, 3, 1, 2).float() / 127.5 - 1 for p in (pictures, back))
    with torch.no_grad():
        assert found["lpips"] == pytest.approx(float(lpips(x, y).mean()), abs=1e-4)
    assert told == [2, 4, 5]
    assert set(reconstruction(network, pictures)) == {"pictures", "psnr", "ssim"}
    with pytest.raises(RequestError, match="no picture"):
        reconstruction(network, [])
