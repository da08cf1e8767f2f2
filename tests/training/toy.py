"""A network so small that its training takes no time; run as a program it trains in several processes.

python toy.py FOLDER STEPS WORKERS OPTIMIZER [SECONDS_A_STEP [FAIL_AT [SHARDING UNTIL]]]
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from darkroom.errors import TrainingError
from darkroom.models.layers import Block
from darkroom.training.loop import train
from darkroom.training.parallel import Rank, launch, together
from darkroom.training.recipe import LoopConfig
from darkroom.training.stage import Stage


def toy_config(**changes: Any) -> LoopConfig:
    known: dict[str, Any] = {
        "steps": 12, "batch_size": 8, "lr": 0.01, "warmup": 2, "precision": "float32", "log_every": 1,
    }  # fmt: skip
    return LoopConfig(**{**known, **changes})


class Hidden(Block):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(6, 11), nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(F.silu(self.wide(x)))
        return y


def toy_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Embedding(16, 6), Hidden())


@dataclass
class ToyStage(Stage):
    """Learns a fixed table; its loss draws noise, as a diffusion loss does."""

    config: LoopConfig
    network: nn.Module = field(default_factory=toy_network)
    seconds: float = 0.0  # a step takes, at least
    poison: tuple[int, ...] = ()  # steps whose loss is not finite
    fail_at: int = -1  # step whose batch can't be made

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"toy": self.network}

    def batch(self, step: int, rank: Rank) -> Tensor:
        if step == self.fail_at:
            raise TrainingError("the data is gone")
        generator = torch.Generator().manual_seed(step)
        return rank.of(torch.randint(16, (self.config.batch_size,), generator=generator))

    def loss(self, batch: Tensor, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        time.sleep(self.seconds)
        noise = rank.of(torch.randn(self.config.batch_size, 4))
        wanted = torch.stack([batch.sin(), batch.cos(), batch / 16, -batch / 16], dim=1) + 0.1 * noise
        loss = (self.network(batch) - wanted).square().mean()
        if step in self.poison:
            loss = loss * float("nan")
        return loss, {"figure": loss.detach()}

    def validation(self) -> list[Tensor]:
        n = self.config.batch_size
        return [torch.arange(n), torch.arange(n) + 16 - n]

    def sheet(self) -> Image.Image:
        shade = int(255 * torch.sigmoid(self.network(torch.tensor([3]))[0, 0]))
        return Image.new("L", (4, 4), shade)


def work(
    folder: str, steps: int, optimizer: str, seconds: float, fail_at: int, sharding: str, until: int | None
) -> None:
    sharded = sharding == "fsdp"
    config = toy_config(steps=steps, optimizer=optimizer, save_every=0.05, sharding=sharding, checkpointing=sharded)
    train(ToyStage(config, seconds=seconds, fail_at=fail_at), Path(folder), until=until)


if __name__ == "__main__":
    folder, steps, workers, optimizer, *rest = sys.argv[1:]
    seconds = float(rest[0]) if rest else 0.0
    fail_at = int(rest[1]) if rest[1:] else -1
    sharding, until = (rest[2], int(rest[3])) if rest[2:] else ("none", None)
    torch.set_num_threads(1)
    try:
        with together():
            launch(work, int(workers), folder, int(steps), optimizer, seconds, fail_at, sharding, until)
    except TrainingError as error:
        sys.exit(f"said: {error}")
