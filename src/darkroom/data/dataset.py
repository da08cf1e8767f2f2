"""What networks learn from: pictures with their captions, of a folder or of shards, each scaled and cut to the size of
its bucket.

A picture is read when it is its turn, and checked to be what it was when the data set was looked through.

Shapes: P pictures, H W a picture's height and width.
"""

from __future__ import annotations

import hashlib
import io
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError, TrainingError
from ..images import FORMATS, open_picture
from ..toy.scenes import draw_scene, render_scene
from .buckets import PLAIN, Crop, Cut, Size, nearest
from .examples import Example, Remembered, Scan
from .folders import scan
from .shards import scan_shards, shard_files

log = logging.getLogger(__name__)


def scan_any(data: str, index: Path | None = None) -> Scan:
    """The pictures of a folder or of WebDataset shards ("shards/", "a-{000..015}.tar", "*.tar").

    `index`: a file that remembers what was found, so that the next scan looks at what has changed only. Raises
    TrainingError.
    """
    remembered = Remembered(index)
    shards = shard_files(data)
    return scan(data, remembered) if shards is None else scan_shards(shards, remembered)


# --- a picture, from its file to its pixels


FINER = 2  # a JPEG is decoded at no less than this many times the size that is wanted


def read_cut(example: Example, size: Size, crop: Crop) -> NDArray[np.uint8]:
    """The pixels [H, W, 3] of a picture that `crop` shows, `size` = (W, H).

    Raises TrainingError where the file has gone, has changed since it was looked at, or can't be decoded.
    """
    data = example.read()
    if example.digest and hashlib.sha256(data).hexdigest() != example.digest:
        raise TrainingError(
            f"{example.name[:200]!r} has changed since the run looked at it; leave the data alone while it runs, or "
            "begin another run"
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _draft(picture, crop)
            whole = open_picture(picture, f"the training picture {example.name[:200]!r}")
    except ImageError as error:
        raise TrainingError(str(error)) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others
        raise TrainingError(f"{example.name[:200]!r} can't be decoded any more ({error}); replace it") from error
    x, y = (w / s for w, s in zip(whole.size, crop.scaled, strict=True))  # pixels of the file in one of the scaled
    left, top = crop.corner
    if crop.flipped:
        left = crop.scaled[0] - size[0] - left
    box = (left * x, top * y, min((left + size[0]) * x, whole.size[0]), min((top + size[1]) * y, whole.size[1]))
    small = whole.resize(size, Image.Resampling.LANCZOS, box=box)
    if crop.flipped:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(small)


def _draft(picture: Image.Image, crop: Crop) -> None:
    """Let a large JPEG be decoded at a half, a quarter or an eighth of its size, which is several times quicker."""
    if picture.format == "JPEG":
        longest = FINER * max(crop.scaled)  # the file may lie on its side
        shortest = FINER * min(crop.scaled)
        wanted = (longest, shortest) if picture.width > picture.height else (shortest, longest)
        picture.draft(picture.mode, wanted)


# --- data sets


@dataclass(frozen=True)
class Dataset(ABC):
    """Pictures, read when they are asked for, and their captions. All sequences have one entry a picture.

    Attributes:
        captions: as they were found; `data.captions` makes of them what is learned.
        repeats: how often each comes in one round.
        sizes: (width, height) of each as it is shown: its bucket.
        digests: a hash of each as it is on disk.
        prior: whether it is a class picture (DreamBooth), not one of the subject.
        key: a hash of all of it: a run belongs to it.
        cut: how pictures are brought to their sizes.
        left_out: what can't be used, and why.
    """

    captions: Sequence[str]
    repeats: Sequence[int]
    sizes: Sequence[Size]
    digests: Sequence[str]
    prior: Sequence[bool]
    key: str
    cut: Cut = field(default=PLAIN)
    left_out: Sequence[tuple[Path, str]] = field(default=())

    def __len__(self) -> int:
        return len(self.captions)

    @abstractmethod
    def picture(self, i: int, version: int = 0) -> NDArray[np.uint8]:
        """Picture i, [H, W, 3]. Where crops are random or pictures mirrored, each version is another one."""

    @abstractmethod
    def crop(self, i: int, version: int = 0) -> Crop:
        """What of picture i that version shows, for a network that is told of it."""

    def name(self, i: int) -> str:
        """What to call picture i."""
        return f"picture {i}"

    def version(self, i: int, step: int, seed: int) -> int:
        """Which version of picture i a step shows; 0 where there is one only."""
        return self.cut.version(i, step, seed)

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        """All pictures in order, in their first version."""
        return (self.picture(i) for i in range(len(self)))


@dataclass(frozen=True)
class FileDataset(Dataset):
    """Pictures in files, those of a folder or of shards."""

    examples: Sequence[Example] = ()

    def picture(self, i: int, version: int = 0) -> NDArray[np.uint8]:
        """As above. Raises TrainingError where the file is no longer what it was."""
        return read_cut(self.examples[i], self.sizes[i], self.crop(i, version))

    def name(self, i: int) -> str:
        """Its file, or its place in a shard."""
        return self.examples[i].name

    def crop(self, i: int, version: int = 0) -> Crop:
        example = self.examples[i]
        return self.cut.of((example.width, example.height), self.sizes[i], example.digest, version)


@dataclass(frozen=True)
class SceneDataset(Dataset):
    """The first built-in scenes of a seed, at their own size of 128 x 128 pixels."""

    seed: int = 0

    @classmethod
    def of(cls, count: int, seed: int, lines: bool = False) -> SceneDataset:
        """`count` scenes; with `lines` every way to say what a scene shows, each on a line of its own."""
        drawn = (draw_scene(seed, i) for i in range(count))
        captions = ["\n".join(scene.captions) if lines else scene.caption for scene in drawn]
        digests = [hashlib.sha256(f"scene {seed} {i}".encode()).hexdigest() for i in range(count)]
        size = (128, 128)
        key = _key("scenes", [f"{seed} {count}", *(["lines"] if lines else [])])
        return cls(captions, [1] * count, [size] * count, digests, [False] * count, key, seed=seed)

    def picture(self, i: int, version: int = 0) -> NDArray[np.uint8]:
        return render_scene(draw_scene(self.seed, i))

    def crop(self, i: int, version: int = 0) -> Crop:
        return Crop(self.sizes[i], self.sizes[i], (0, 0))


def open_dataset(
    data: str | None,
    size: Size,
    cut: Cut = PLAIN,
    *,
    prior: str | None = None,
    caption: str = "",
    prior_caption: str = "",
    scenes: int = 20_000,
    seed: int = 0,
    lines: bool = False,
    index: Path | None = None,
) -> Dataset:
    """The training pictures that `data` names, each cut to `size` (width, height) or to the bucket nearest its shape.

    Args:
        data: a folder; WebDataset shards ("shards/", "a-{000..015}.tar", "*.tar"); None: the built-in scenes.
        prior: class pictures, named likewise.
        caption: of a picture that has none of its own; `prior_caption`: of such a class picture.
        scenes, seed: which of the built-in scenes; `lines`: with all their captions, a line each.
        index: a file that remembers what was found, so that the next time is quicker.

    Raises TrainingError in one sentence for what can't be learned from.
    """
    if data is None:
        if size != (128, 128) or cut.buckets or prior is not None:
            raise TrainingError(
                "the built-in scenes are of 128x128 pixels and suit the embedded model only; name a folder of pictures "
                "by --data"
            )
        return SceneDataset.of(scenes, seed, lines)
    examples, left_out = _cut(scan_any(data, index), size, cut)
    sizes = [cut.bucket((e.width, e.height), size) for e in examples]
    classes = [False] * len(examples)
    if prior is not None:
        others, also = _cut(scan_any(prior, index), size, cut)
        left_out += also
        # In the subject's buckets, so that a batch can hold both.
        shared = sorted(set(sizes))
        sizes += [nearest((e.width, e.height), shared) if cut.buckets else size for e in others]
        examples += others
        classes += [True] * len(others)
    if animations := [e.name for e in examples if e.frames > 1]:
        log.warning("%d are animations, of which the first frame is learned from: %s", len(animations), animations[0])
    captions = [e.caption or (prior_caption if p else caption) for e, p in zip(examples, classes, strict=True)]
    told = [
        f"{e.digest} {e.repeats} {p} {s} {c}" for e, p, s, c in zip(examples, classes, sizes, captions, strict=True)
    ]
    return FileDataset(
        captions=captions,
        repeats=[e.repeats for e in examples],
        sizes=sizes,
        digests=[e.digest for e in examples],
        prior=classes,
        key=_key("files", [f"{cut}", *told]),
        cut=cut,
        left_out=left_out,
        examples=examples,
    )


def _cut(found: Scan, size: Size, cut: Cut) -> tuple[list[Example], list[tuple[Path, str]]]:
    """What of a scan is large enough, and what was left out. Raises TrainingError where nothing is."""
    examples, left_out = [], list(found.left_out)
    for e in found.examples:
        width, height = cut.bucket((e.width, e.height), size)
        if not cut.enlarge and (e.width < width or e.height < height):
            left_out.append((Path(e.name), f"{e.width}x{e.height} pixels are too few without being enlarged"))
        else:
            examples.append(e)
    if not examples:
        raise TrainingError(f"all {len(found.examples)} pictures are too small; choose a smaller size, or enlarge them")
    return examples, left_out


def _key(kind: str, told: Sequence[str]) -> str:
    return hashlib.sha256("\n".join([kind, *told]).encode()).hexdigest()


open_lessons = open_dataset  # its documented name until now; gone in the next version
