"""Two sides in one loop: each learns by its own optimizer, exact resume of both, bad steps of either."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from darkroom.training import state
from darkroom.training.loop import train
from darkroom.training.parallel import Rank, launch

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyStage, toy_config, toy_network


@dataclass
class Game(ToyStage):
    """The toy, and a judge that takes part from step 4 on."""

    judge: nn.Module = field(default_factory=toy_network)
    nan_at: int = -1  # step at which the judge's loss is not finite
    discriminator_lr = 0.05

    @property
    def discriminators(self) -> dict[str, nn.Module]:
        return {"judge": self.judge}

    def loss(self, batch: Tensor, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        loss, figures = super().loss(batch, step, rank)
        if step < 4:
            return loss, figures
        answer = self.judge(batch)
        against = (answer.detach() * self.network(batch)).mean()
        judging = (answer - self.network(batch).detach() + 1).square().mean()
        return loss + 0.1 * against + judging * (float("nan") if step == self.nan_at else 1.0), figures


def saved(folder: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint, by their paths."""
    found: dict[str, Tensor] = {}

    def walk(path: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{path}/{key}", inner)
        elif isinstance(value, Tensor):
            found[path] = value

    walk("", state.load_last(folder))
    return found


def test_a_resumed_game_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    config = toy_config(optimizer="adamw")
    train(Game(config), tmp_path / "straight")
    for stop in (3, 7):
        assert train(Game(config), tmp_path / "parts", until=stop) == stop
        torch.manual_seed(9)
    train(Game(config), tmp_path / "parts")
    one, other = saved(tmp_path / "straight"), saved(tmp_path / "parts")
    assert one.keys() == other.keys()
    assert "/opponents/optimizer/state/0/exp_avg" in one
    assert "/ema/judge/0.weight" not in one
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_each_side_takes_its_own_step(tmp_path: Path) -> None:
    """The judge's is AdamW's by hand, on the gradient of its own loss, clipped by itself."""
    config = toy_config(optimizer="adamw", steps=5, warmup=0, cooldown=0.0, clip=0.01)
    game = Game(config)
    train(game, tmp_path, until=4)
    judge, before = copy.deepcopy(game.judge), copy.deepcopy(game.network)
    assert all(torch.equal(p, q) for p, q in zip(judge.parameters(), toy_network().parameters(), strict=True))
    train(game, tmp_path)
    assert not all(torch.equal(p, q) for p, q in zip(before.parameters(), game.network.parameters(), strict=True))
    batch = game.batch(4, Rank())
    (judge(batch) - before(batch).detach() + 1).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(judge.parameters(), 0.01)
    torch.optim.AdamW(judge.parameters(), lr=0.05, betas=(0.5, 0.9), weight_decay=0.0).step()
    for p, q in zip(judge.parameters(), game.judge.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_judge_that_is_not_finite_stops_both_sides_for_a_step(tmp_path: Path) -> None:
    config = toy_config(optimizer="adamw")
    train(Game(config, nan_at=5), tmp_path, until=5)
    before = saved(tmp_path)
    train(Game(config, nan_at=5), tmp_path, until=6)
    after = saved(tmp_path)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    last = state.load_last(tmp_path)
    assert last is not None
    assert last["skipped"] == 1


def _work(folder: str) -> None:
    torch.set_num_threads(1)
    train(Game(toy_config(optimizer="adamw", steps=6)), Path(folder))


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    for workers, name in ((1, "one"), (2, "two")):
        launch(_work, workers, str(tmp_path / name))
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-4, atol=1e-5, msg=key)
