"""Averages of any length out of snapshots, against those that were tracked all along."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom.errors import TrainingError
from darkroom.training import ema, state
from darkroom.training.ema import Average, exponent, power
from darkroom.training.loop import Trainer, train

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyStage, toy_config


def profile(t: float, length: float, points: int = 20_000) -> np.ndarray[Any, Any]:
    """(tau, p(tau) dtau) on a fine grid up to t."""
    g = exponent(length)
    tau = (np.arange(points) + 0.5) / points * t
    return np.stack([tau, (g + 1) * tau**g / t ** (g + 1) * t / points])


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.25])
def test_a_length_is_the_deviation_of_the_profile(length: float) -> None:
    tau, p = profile(1.0, length)
    mean = (tau * p).sum()
    assert p.sum() == pytest.approx(1, rel=1e-3)
    assert np.sqrt(((tau - mean) ** 2 * p).sum()) == pytest.approx(length, rel=1e-2)


def test_known_exponents() -> None:
    # Karras et al. 2024, sec. 3.1: lengths of 0.05 and 0.10 are exponents of 16.97 and 6.94.
    assert (exponent(0.05), exponent(0.10)) == (pytest.approx(16.97, abs=0.01), pytest.approx(6.94, abs=0.01))
    for wrong in (0.0, -0.1, 0.3, float("nan")):
        with pytest.raises(ValueError, match="above 0 and below"):
            exponent(wrong)


def test_products_are_integrals() -> None:
    one, other = [(300.0, 0.05), (700.0, 0.1)], [(500.0, 0.2), (300.0, 0.05), (1000.0, 0.02)]
    found = ema.products(one, other)
    for i, (ta, sa) in enumerate(one):
        for j, (tb, sb) in enumerate(other):
            m, g, h = min(ta, tb), exponent(sa), exponent(sb)
            tau = (np.arange(200_000) + 0.5) / 200_000 * m
            p = (g + 1) * tau**g / ta ** (g + 1) * (h + 1) * tau**h / tb ** (h + 1)
            assert found[i, j] == pytest.approx(p.sum() * m / 200_000, rel=1e-4)


def test_what_was_saved_is_found_again() -> None:
    saved = [(100.0 * t, s) for t in range(1, 6) for s in (0.05, 0.1)]
    assert ema.mixture(saved, (500.0, 0.1)) == pytest.approx([0.0] * 9 + [1.0], abs=1e-6)


def test_a_run_s_average_of_any_length(tmp_path: Path) -> None:
    """Against averages of the lengths that are wanted, tracked beside the same run."""
    lengths = (0.03, 0.07, 0.2)
    changes = {"steps": 240, "ema_lengths": (0.05, 0.1), "snapshot_every": 8, "cooldown": 0.0, "lr": 0.02}
    trainer = Trainer(ToyStage(toy_config(log_every=100, **changes)), tmp_path)
    for length in lengths:
        trainer.powers[length] = Average(trainer.stage.modules, power(length))
    tracked = {length: trainer.powers[length] for length in lengths}
    save, kept = trainer._look, (0.05, 0.1)

    def look() -> dict[str, float]:
        every, trainer.powers = trainer.powers, {s: trainer.powers[s] for s in kept}
        found = save()
        trainer.powers = every
        return found

    trainer._look = look  # type: ignore[method-assign]
    assert trainer.run() == 240
    last = state.load_last(tmp_path)
    assert last is not None
    for length in lengths:
        made = ema.average_of_length(tmp_path, length, 240)["toy"]
        exact = tracked[length].weights["toy"]
        off = sum(float((made[k] - exact[k]).square().sum()) for k in exact) ** 0.5
        apart = sum(float((last["modules"]["toy"][k] - exact[k]).square().sum()) for k in exact) ** 0.5
        near = min(
            sum(float((last["powers"][s]["toy"][k] - exact[k]).square().sum()) for k in exact) ** 0.5 for s in kept
        )
        assert off < 0.1 * apart, length
        assert off < 0.5 * near, length
    # The same through the recipe: chosen when all is done.
    chosen = toy_config(ema_length=0.07, **changes)
    saved = ema.result(tmp_path, chosen)
    again = ema.average_of_length(tmp_path, 0.07, 240)
    assert all(torch.equal(saved["ema"]["toy"][k], v) for k, v in again["toy"].items())
    assert train(ToyStage(chosen), tmp_path) == 240
    with pytest.raises(TrainingError, match="has 1 snapshots up to step 8"):
        ema.average_of_length(tmp_path, 0.07, 8)


def test_no_snapshots_no_choice(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        ema.result(tmp_path)
    train(ToyStage(toy_config(steps=2)), tmp_path)
    with pytest.raises(TrainingError, match="no best checkpoint"):
        ema.result(tmp_path, toy_config(best=True, validate_every=1))
    with pytest.raises(TrainingError, match=r"ema_lengths=\(\), not \(0\.05, 0\.1\)"):
        train(ToyStage(toy_config(ema_lengths=(0.05, 0.1))), tmp_path)
