"""A network so small that its training takes no time; run as a program it trains in several processes.

python toy.py FOLDER STEPS WORKERS OPTIMIZER [SECONDS_A_STEP]
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darkroom.errors import TrainingError
from darkroom.training.loop import LoopConfig, train
from darkroom.training.parallel import Share, launch


def toy_config(**changes: Any) -> LoopConfig:
    known: dict[str, Any] = {
        "steps": 12, "batch_size": 8, "lr": 0.01, "warmup": 2, "precision": "float32", "log_every": 1,
    }  # fmt: skip
    return LoopConfig(**{**known, **changes})


def toy_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Embedding(16, 6), nn.Linear(6, 10), nn.SiLU(), nn.Linear(10, 4))


@dataclass
class ToyStage:
    """Learns a fixed table; its loss draws noise, as a diffusion loss does."""

    config: LoopConfig
    network: nn.Module = field(default_factory=toy_network)
    seconds: float = 0.0  # a step takes, at least
    poison: tuple[int, ...] = ()  # steps whose loss is not finite
    fail_at: int = -1  # step whose batch can't be made

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"toy": self.network}

    def batch(self, step: int, share: Share) -> Tensor:
        if step == self.fail_at:
            raise TrainingError("the data is gone")
        generator = torch.Generator().manual_seed(step)
        return share.of(torch.randint(16, (self.config.batch_size,), generator=generator))

    def loss(self, batch: Tensor, step: int, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        time.sleep(self.seconds)
        noise = share.of(torch.randn(self.config.batch_size, 4))
        wanted = torch.stack([batch.sin(), batch.cos(), batch / 16, -batch / 16], dim=1) + 0.1 * noise
        loss = (self.network(batch) - wanted).square().mean()
        if step in self.poison:
            loss = loss * float("nan")
        return loss, {"figure": loss.detach()}


def work(folder: str, steps: int, optimizer: str, seconds: float, fail_at: int) -> None:
    config = toy_config(steps=steps, optimizer=optimizer, save_every=0.05)
    train(ToyStage(config, seconds=seconds, fail_at=fail_at), Path(folder))


if __name__ == "__main__":
    folder, steps, workers, optimizer, *rest = sys.argv[1:]
    seconds = float(rest[0]) if rest else 0.0
    fail_at = int(rest[1]) if rest[1:] else -1
    torch.set_num_threads(1)
    try:
        launch(work, int(workers), folder, int(steps), optimizer, seconds, fail_at)
    except TrainingError as error:
        sys.exit(f"said: {error}")
