"""What frozen networks say of training pictures and captions, encoded once and kept on disk: latents as moments, and,
where no text encoder learns, encoded texts.

Shapes: N rows of a batch, C latent channels, h w latent size; T tokens, D width of what the U-Net attends to, P width
of the pooled text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.buckets import LIVE
from ..data.dataset import Dataset
from ..errors import TrainingError
from ..images import from_pixels
from ..models.autoencoder import Autoencoder
from ..prompts.encoder import Encoded
from .background import interruptible
from .cache import Cache, fingerprint, key_of, missing, stacked_rows
from .loop import Stopped
from .parallel import Rank

Pixels = NDArray[np.uint8]
ROWS = 8  # pictures encoded at once on a GPU; on a CPU it is one: there a latent's bits don't depend on its neighbours


class Latents(Protocol):
    """Where a training's latents come from."""

    dataset: Dataset

    def draw(self, rows: Sequence[int] | NDArray[np.int64], step: int, seed: int) -> Tensor:
        """Latents [N, C, h, w] float32 of some pictures of one size, scaled as the U-Net sees them.

        Drawn anew for every step from what the autoencoder says: mean + deviation * noise, of the version of the
        picture that `dataset.version(row, step, seed)` says. A pure function of its arguments; a picture's draw does
        not depend on the others'.
        """


class LatentStore:
    """Moments of pictures, kept on disk under hashes of the picture, of what is cut out of it, and of the autoencoder.

    Raises Stopped where some are missing: `fill` makes them, and was interrupted.
    """

    def __init__(self, folder: Path, dataset: Dataset, autoencoder: Autoencoder, bfloat16: bool = False) -> None:
        self.dataset = dataset
        self.cache = Cache(place(folder, autoencoder, bfloat16))
        self._keys = keys(dataset)
        if absent := missing(self.cache, self._keys):
            raise Stopped(
                f"stopped: {len(absent)} of {len(self._keys)} latents are still missing in {folder}; the same command "
                "goes on"
            )

    def moments(self, i: int, version: int = 0) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Mean and deviation [C, h, w] of a picture's latent, scaled. Raises TrainingError for a damaged cache."""
        found = self.cache.get(self._keys[i * self.dataset.cut.versions + version])
        return found["mean"], found["deviation"]

    def draw(self, rows: Sequence[int] | NDArray[np.int64], step: int, seed: int) -> Tensor:
        """As `Latents.draw`."""
        pairs = [self.moments(int(i), self.dataset.version(int(i), step, seed)) for i in rows]
        means, deviations = (stacked_rows(part) for part in zip(*pairs, strict=True))
        return means + deviations * _noise(rows, step, seed, means.shape[1:])


class LiveLatents:
    """Latents encoded whenever they are drawn: for pictures that never come twice in the same crop."""

    def __init__(self, dataset: Dataset, autoencoder: Autoencoder) -> None:
        self.dataset, self.autoencoder = dataset, autoencoder

    def draw(self, rows: Sequence[int] | NDArray[np.int64], step: int, seed: int) -> Tensor:
        """As `Latents.draw`."""
        pictures = (self.dataset.picture(int(i), self.dataset.version(int(i), step, seed)) for i in rows)
        pairs = list(moments_of(self.autoencoder, pictures))
        means, deviations = (torch.cat(part).float() for part in zip(*pairs, strict=True))
        return means + deviations * _noise(rows, step, seed, means.shape[1:])


def latents_of(dataset: Dataset, autoencoder: Autoencoder, folder: Path, bfloat16: bool = False) -> Latents:
    """The latents of pictures: those of a cache that `fill` has filled, or live where versions have no end."""
    if dataset.cut.versions == LIVE:
        return LiveLatents(dataset, autoencoder)
    return LatentStore(folder, dataset, autoencoder, bfloat16)


def place(folder: Path, autoencoder: Autoencoder, bfloat16: bool = False) -> Path:
    """Where in a cache's folder the latents of an autoencoder lie: under a hash of its weights and its scaling."""
    c = autoencoder.config
    told = f"{fingerprint(autoencoder)} {c.scaling_factor} {c.shift_factor} {c.latents_mean} {c.latents_std}"
    told += " bfloat16" if bfloat16 else ""
    return folder / f"latents-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def keys(dataset: Dataset) -> list[str]:
    """The keys of all pictures in all their versions: those of the first picture, of the second, ..."""
    return [
        key_of(dataset.digests[i], dataset.sizes[i], dataset.crop(i, version))
        for i in range(len(dataset))
        for version in range(dataset.cut.versions)
    ]


def fill(
    folder: Path,
    dataset: Dataset,
    autoencoder: Autoencoder,
    part: Rank = Rank(),
    report: Callable[[int, int], None] = lambda done, total: None,
    bfloat16: bool = False,
) -> None:
    """Encode this process's part of what a cache lacks of some pictures; killed at any moment, it goes on from there.

    SIGINT and SIGTERM end it early, with all on disk that was done. `report` is told of pictures done and to do.
    `bfloat16` is quicker, and good enough for thousands of pictures of which none comes often; such latents are kept
    apart. Raises TrainingError for a full disk, and for a picture that the autoencoder makes NaN of.
    """
    if dataset.cut.versions == LIVE:
        return
    cache = Cache(place(folder, autoencoder, bfloat16))
    wanted, versions = keys(dataset), dataset.cut.versions
    # Shared out before looking at what is there: another process may have begun to write.
    absent = [k for k in missing(cache, wanted) if int(wanted[k][:8], 16) % part.world_size == part.index]
    absent.sort(key=lambda k: dataset.sizes[k // versions])
    done = 0
    with interruptible() as asked, cache.writer() as writer:
        for rows in _of_one_size(absent, lambda k: dataset.sizes[k // versions]):
            if asked():
                break
            pictures = [dataset.picture(*divmod(k, versions)) for k in rows]
            found = moments_of(autoencoder, pictures, bfloat16)
            means, deviations = (torch.cat(part) for part in zip(*found, strict=True))
            if not bool((means.isfinite() & deviations.isfinite()).all()):
                raise TrainingError(
                    f"the autoencoder makes NaN or infinity of a picture with the caption "
                    f"{dataset.captions[rows[0] // versions][:60]!r} or of its neighbours; use float32"
                )
            for k, mean, deviation in zip(rows, means.numpy(), deviations.numpy(), strict=True):
                writer.add(wanted[k], {"mean": mean, "deviation": deviation})
            done += len(rows)
            report(done, len(absent))


@torch.no_grad()
def moments_of(
    autoencoder: Autoencoder, pictures: Iterable[Pixels], bfloat16: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mean and deviation of the latents of pictures [H, W, 3] of one size, in batches [n, C, h, w] float16, scaled."""
    device = next(autoencoder.parameters()).device
    waiting = iter(pictures)
    while batch := list(islice(waiting, 1 if device.type == "cpu" else ROWS)):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            moments = autoencoder.encode(stacked(batch).to(device))
        mean, logvar = moments.float().chunk(2, dim=1)
        low = autoencoder.scale(mean)
        high = autoencoder.scale(mean + torch.exp(0.5 * logvar.clamp(-30, 20)))
        yield low.half().cpu(), (high - low).half().cpu()


def _of_one_size(numbers: Sequence[int], size: Callable[[int], object]) -> Iterator[list[int]]:
    """Runs of at most ROWS neighbours of one size."""
    batch: list[int] = []
    for k in numbers:
        if batch and (len(batch) == ROWS or size(k) != size(batch[0])):
            yield batch
            batch = []
        batch.append(k)
    if batch:
        yield batch


def _noise(rows: Sequence[int] | NDArray[np.int64], step: int, seed: int, shape: Sequence[int]) -> Tensor:
    """A picture's own normal noise for a step: [N, *shape] float32."""
    drawn = [np.random.default_rng((seed, step, int(i), 6)).standard_normal(tuple(shape), np.float32) for i in rows]
    return torch.from_numpy(np.stack(drawn))


def stacked(pictures: Sequence[Pixels]) -> Tensor:
    """Pictures [H, W, 3] of one size as [P, 3, H, W] in -1..1."""
    return from_pixels(np.stack(pictures))


# --- texts


def texts_place(folder: Path, text_encoders: Sequence[nn.Module], told: object = "") -> Path:
    """Where in a cache's folder the texts of some text encoders lie. `told`: what else changes the answer."""
    names = [fingerprint(encoder) for encoder in text_encoders]
    return folder / f"texts-{hashlib.sha256(f'{names} {told}'.encode()).hexdigest()[:16]}"


class TextStore:
    """Captions through frozen text encoders: from disk where they are there, computed where not; the same bits.

    Args:
        place: the folder of a cache, as `texts_place` names it.
        encode: a caption to [T, D] and [P] or None, float32; always the same for the same caption.
    """

    def __init__(self, place: Path, encode: Callable[[str], Encoded]) -> None:
        self.cache = Cache(place)
        self.encode = encode

    def __call__(self, caption: str) -> Encoded:
        """[T, D] and [P] or None, float32; on the CPU where it was kept."""
        key = key_of(caption)
        if key not in self.cache:
            return self.encode(caption)
        found = {name: torch.from_numpy(array.copy()) for name, array in self.cache.get(key).items()}
        return found["text"], found.get("pooled")

    def fill(self, captions: Iterable[str], part: Rank = Rank()) -> None:
        """Encode this process's part of what is missing, in this order: what is of one shape best comes together, since
        a file of the cache is. SIGINT and SIGTERM end it early. Raises TrainingError.
        """
        texts = list(dict.fromkeys(captions))
        mine = [text for text in texts if int(key_of(text)[:8], 16) % part.world_size == part.index]
        absent = [mine[i] for i in missing(self.cache, (key_of(text) for text in mine))]
        with interruptible() as asked, self.cache.writer() as writer, torch.no_grad():
            for caption in absent:
                if asked():
                    break
                text, pooled = self.encode(caption)
                parts = {"text": text} if pooled is None else {"text": text, "pooled": pooled}
                writer.add(key_of(caption), {name: t.float().cpu().numpy() for name, t in parts.items()})
