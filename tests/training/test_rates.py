"""The learning rate over a run, beside diffusers' schedules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from darkroom.training.optim import rate

sys.path.insert(0, str(Path(__file__).parent))
from toy import toy_config


def test_stable_rates_rise_stay_and_fall() -> None:
    config = toy_config(steps=100, warmup=10, cooldown=0.4)
    rates = [rate(config, step) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(rates[10:61]) == {1.0}
    assert rates[60:] == pytest.approx([1 - i / 40 for i in range(41)])
    assert rate(config, 101) == 0.0
    assert rate(toy_config(steps=1, warmup=0, cooldown=0.0), 0) == 1.0
    # Until its cool-down begins, a longer run is the same run.
    longer = toy_config(steps=200, warmup=10, cooldown=0.4)
    assert rates[:61] == [rate(longer, step) for step in range(61)]


def test_a_constant_rate_only_rises() -> None:
    config = toy_config(steps=100, warmup=4, schedule="constant")
    assert [rate(config, step) for step in (0, 1, 3, 50, 99)] == [0.25, 0.5, 1, 1, 1]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("linear", "linear"), ("cosine", "cosine"), ("restarts", "cosine_with_restarts")],
)
@pytest.mark.parametrize("warmup", [0, 7])
def test_after_the_warm_up_rates_are_those_of_diffusers(ours: str, theirs: str, warmup: int) -> None:
    from diffusers.optimization import get_scheduler

    config = toy_config(steps=60, warmup=warmup, schedule=ours, cycles=3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=60, num_cycles=3)
    expected = []
    for _ in range(60):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    found = [rate(config, step) for step in range(60)]
    assert found[warmup:] == pytest.approx(expected[warmup:])
    assert found[:warmup] == pytest.approx([e + 1 / 7 for e in expected[:warmup]])  # the first step is one already
