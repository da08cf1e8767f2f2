"""Is reading pictures ever what a training waits for? Pictures a second of each way to a batch.

    python benchmarks/data.py [--pictures 64] [--side 1024] [--size 512] [--rounds 5] [--smoke]

Random JPEGs are written to a temporary folder and read: decoded, scaled and cut as `data.dataset` does it; as latents
from the cache; and by a plain `DataLoader` of PyTorch over the same folder (no workers: ours uses one thread as well).
A training asks for pictures as fast as its steps use them: about 50 a second for the embedded model on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternate, machine
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from darkroom.data.buckets import Cut
from darkroom.data.dataset import open_dataset, scan_any
from darkroom.data.order import Order
from darkroom.data.shards import write_shards
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig
from darkroom.training.latents import LatentStore, fill

WANTED = 50.0  # pictures a second that the embedded model's training uses on two cores
BATCH = 8


class Plain(Dataset[Tensor]):
    """What a training script would write: open, convert, resize, crop, to a tensor."""

    def __init__(self, folder: Path, size: int) -> None:
        self.files, self.size = sorted(folder.glob("*.jpg")), size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        picture = Image.open(self.files[i]).convert("RGB")
        ratio = self.size / min(picture.size)
        picture = picture.resize(
            (round(picture.width * ratio), round(picture.height * ratio)), Image.Resampling.LANCZOS
        )
        left, top = (picture.width - self.size) // 2, (picture.height - self.size) // 2
        values = np.asarray(picture.crop((left, top, left + self.size, top + self.size)))
        return torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 127.5 - 1


def write_pictures(folder: Path, count: int, side: int) -> None:
    """JPEGs with as much in them as photographs have: noise of several sizes."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        width, height = (side, side * 3 // 4) if i % 2 else (side * 3 // 4, side)
        rough, fine = (
            Image.fromarray(rng.integers(0, 255, (height // n, width // n, 3), dtype=np.uint8)).resize((width, height))
            for n in (32, 4)
        )
        Image.blend(rough, fine, 0.3).save(folder / f"{i}.jpg", quality=92)
        (folder / f"{i}.txt").write_text("noise")


def contestants(place: Path, size: int) -> Mapping[str, Callable[[], object]]:
    """Each reads all pictures once, in batches."""
    folder, shards = place / "pictures", place / "shards"
    dataset = open_dataset(str(folder), (size, size), Cut(buckets=True))
    shards.mkdir()
    write_shards(scan_any(str(folder)).examples, shards, 1 << 30, 10_000)
    packed = open_dataset(str(shards), (size, size), Cut(buckets=True))
    torch.manual_seed(0)
    # The size of the latents is what counts here, not what made them.
    net = Autoencoder(AutoencoderConfig(block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2)).eval()
    fill(place / "cache", dataset, net.requires_grad_(False))
    store = LatentStore(place / "cache", dataset, net)
    order = Order(dataset.sizes, dataset.repeats, BATCH, 0)
    steps = range(max(round(order.steps_a_round), 1))
    loader = DataLoader(Plain(folder, size), batch_size=BATCH, shuffle=True)
    return {
        "plain DataLoader": lambda: [batch.shape for batch in loader],
        "folder, decoded and cut": lambda: [[dataset.picture(int(i)) for i in order.rows(step)] for step in steps],
        "shards, decoded and cut": lambda: [[packed.picture(int(i)) for i in order.rows(step)] for step in steps],
        "latents from the cache": lambda: [store.draw(order.rows(step), step, 0) for step in steps],
        "looking at a folder": lambda: scan_any(str(folder)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures a second of each way to a batch.")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--side", type=int, default=1024, help="longest side of the files, pixels")
    parser.add_argument("--size", type=int, default=512, help="side that is trained at, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="that it runs, in seconds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.pictures, arguments.side, arguments.size, arguments.rounds = 8, 320, 128, 1
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_pictures(place / "pictures", arguments.pictures, arguments.side)
        seconds = alternate(contestants(place, arguments.size), arguments.rounds)
    pace = {key: arguments.pictures / statistics.median(values) for key, values in seconds.items()}
    if arguments.json:
        answer: dict[str, Any] = {**vars(arguments), "machine": machine(), "pictures_a_second": pace}
        print(json.dumps(answer, indent=2))
        return
    print(f"{arguments.pictures} JPEGs of {arguments.side} px, cut to {arguments.size}; one thread; {machine()}")
    for key, value in pace.items():
        print(f"  {key:28} {value:8.0f} pictures/s   x {value / WANTED:.1f} of what the embedded model's training uses")


if __name__ == "__main__":
    main()
