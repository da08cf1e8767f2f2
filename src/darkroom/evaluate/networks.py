"""The networks that judge, at work: pictures and texts to features, kept on disk by what they were made of.

Shapes: N pictures or texts, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..errors import CheckpointError, RequestError
from ..files import whole_file
from ..formats.features import FeatureFile
from ..formats.save import MEAN, STD
from ..models.config import InceptionConfig, LpipsConfig, TextEncoderConfig, VisionEncoderConfig
from ..models.lpips import Lpips
from ..models.text_encoder import TextEncoder
from ..prompts.tokenizer import Tokenizer
from .pictures import Array, Pictures

ROWS = 16  # pictures at once
CHUNK = 256  # pictures whose features are kept in one file
SIDE = 299  # pixels that Inception sees on each side
Vectors = NDArray[np.float32]
Network = TypeVar("Network", bound=nn.Module)


class FeatureExtractor(Protocol):
    """Something that sees features in pictures."""

    key: str  # of the weights and of how pictures are prepared

    def __call__(self, pictures: Sequence[Array]) -> Vectors: ...


def load_lpips(file: FeatureFile, device: torch.device = torch.device("cpu")) -> Lpips:
    """The LPIPS network of a file, see `formats.features`."""
    assert isinstance(file.config("lpips"), LpipsConfig)
    network: Lpips = file.build("lpips", device, torch.float32)
    return network


class InceptionExtractor:
    """FID's features: [N, 2048]."""

    def __init__(self, file: FeatureFile, device: torch.device = torch.device("cpu"), like: str = "tensorflow") -> None:
        """`like`: how pictures come to 299 pixels: as "tensorflow" 1.x did it in the paper's code (torch-fidelity has
        the same), or as "pytorch-fid" does, whose figures differ in the second digit after the point.
        """
        assert isinstance(file.config("inception"), InceptionConfig)
        self.network = file.build("inception", device, torch.float32)
        self.device, self.like = device, like
        self.key = f"inception {like} {file.hash()}"

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Array]) -> Vectors:
        ready = torch.cat([self.prepare(picture) for picture in pictures])
        features: Vectors = self.network(ready.to(self.device)).cpu().numpy()
        return features

    def prepare(self, picture: Array) -> Tensor:
        """[H, W, 3] of 0..255 to [1, 3, 299, 299] as the network takes it."""
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
        if self.like == "tensorflow":
            return (tensorflow_resize(pixels, SIDE) - 128) / 128
        small = F.interpolate(pixels / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return 2 * small - 1


def tensorflow_resize(pixels: Tensor, side: int) -> Tensor:
    """Bilinear resizing as TensorFlow 1.x does it: [N, C, H, W] -> [N, C, side, side].

    Pixel i of the answer is read at i * H / side: corners, not centres, lie on each other, and nothing is smoothed when
    a picture shrinks. Statistics of published sets were made so.
    """
    for dimension in (2, 3):
        length = pixels.shape[dimension]
        at = torch.arange(side, dtype=torch.float32) * torch.tensor(length / side, dtype=torch.float32)
        low = at.long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        part = (at - low).to(pixels).reshape([-1 if d == dimension else 1 for d in range(4)])
        first, second = pixels.index_select(dimension, low), pixels.index_select(dimension, high)
        pixels = first + (second - first) * part
    return pixels


class ClipExtractor:
    """CLIP's embeddings of pictures and, of a whole CLIP, of texts: [N, D] of unit length."""

    def __init__(self, file: FeatureFile, device: torch.device = torch.device("cpu")) -> None:
        config = file.config("image_encoder")
        assert isinstance(config, VisionEncoderConfig)
        self.file, self.device, self.side = file, device, config.image_size
        self.network = file.build("image_encoder", device, torch.float32)
        about = file.pictures
        self.mean, self.std = (_three(about, n, v) for n, v in (("image_mean", MEAN), ("image_std", STD)))
        size = about.get("size", self.side)
        size = size.get("shortest_edge", size.get("height", self.side)) if isinstance(size, dict) else size
        self.shortest = size if isinstance(size, int) and self.side <= size <= 4096 else self.side
        self.key = f"clip {self.side} {self.shortest} {self.mean} {self.std} {file.hash()}"
        self._text: tuple[TextEncoder, Tokenizer] | None = None

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Array]) -> Vectors:
        ready = torch.cat([self.prepare(picture) for picture in pictures])
        return _unit(self.network(ready.to(self.device)))

    def prepare(self, picture: Array) -> Tensor:
        """[H, W, 3] of 0..255 to [1, 3, S, S]: the shorter side scaled (bicubic), the middle cut out, normalised."""
        image = Image.fromarray(picture)
        width, height = image.size
        short = min(width, height)
        if short != self.shortest:
            scaled = (int(self.shortest * width / short), int(self.shortest * height / short))
            image = image.resize(scaled, Image.Resampling.BICUBIC)
        left, top = (image.width - self.side) // 2, (image.height - self.side) // 2
        image = image.crop((left, top, left + self.side, top + self.side))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (pixels - mean) / std

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Vectors:
        """Embeddings of texts, each cut to what the network takes. CheckpointError where the file has pictures only."""
        network, tokenizer = self._texts()
        found = []
        for i in range(0, len(texts), ROWS):
            ids = torch.tensor([tokenizer.padded(text) for text in texts[i : i + ROWS]], device=self.device)
            pooled = network.penultimate(ids)[1]
            assert pooled is not None
            found.append(_unit(pooled))
        return np.concatenate(found)

    def _texts(self) -> tuple[TextEncoder, Tokenizer]:
        if self._text is None:
            config = self.file.configs.get("text_encoder")
            if not isinstance(config, TextEncoderConfig):
                raise CheckpointError(f"{self.file.path} sees pictures only; texts need a whole CLIP")
            folder = self.file.tokenizer
            tokenizer = Tokenizer.default() if folder is None else Tokenizer.from_folder(folder)
            if tokenizer.vocab_size > config.vocab_size or tokenizer.max_length > config.max_position_embeddings:
                raise CheckpointError(f"{self.file.path} has a tokenizer that does not fit its text encoder")
            self._text = self.file.build("text_encoder", self.device, torch.float32), tokenizer
        return self._text


def _unit(x: Tensor) -> Vectors:
    return F.normalize(x.float(), dim=-1).cpu().numpy()


def _three(about: Any, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    values = about.get(name, default)
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise CheckpointError(f"preprocessor_config.json has {name}={str(values)[:60]}; it must be three numbers")
    return tuple(float(v) for v in values)


class PixelExtractor:
    """Pictures themselves, scaled to 32 x 32 pixels, in 0..1: where there is no network to ask. [N, 3072]."""

    key = "pixels 32"

    def __call__(self, pictures: Sequence[Array]) -> Vectors:
        small = [Image.fromarray(p).resize((32, 32), Image.Resampling.BOX) for p in pictures]
        return np.stack([np.asarray(p, np.float32).reshape(-1) / 255 for p in small])


PixelSeer = PixelExtractor  # its documented name until now; gone in the next version


def extract(
    pictures: Pictures,
    extractor: FeatureExtractor,
    cache: Path | None = None,
    report: Callable[[int, int], None] = lambda i, n: None,
) -> Vectors:
    """The features of all pictures, [N, D].

    `cache`: a folder where they are kept, 256 pictures a file, under the hashes of the pictures and of the weights:
    what was seen is not looked at again, also after an interruption. `report` is called with the pictures done and all.
    Raises RequestError where there is nothing to see, or nothing can be kept.
    """
    if not len(pictures):
        raise RequestError("there is no picture to look at")
    found = []
    for start in range(0, len(pictures), CHUNK):
        chosen = range(start, min(start + CHUNK, len(pictures)))
        told = "\n".join([extractor.key, *(pictures.keys[i] for i in chosen)])
        file = None if cache is None else cache / f"{hashlib.sha256(told.encode()).hexdigest()[:40]}.npy"
        part = None if file is None else _kept(file, len(chosen))
        if part is None:
            rows = []
            for i in range(chosen.start, chosen.stop, ROWS):
                rows.append(extractor([pictures.read(j) for j in range(i, min(i + ROWS, chosen.stop))]))
                report(min(i + ROWS, chosen.stop), len(pictures))
            part = np.concatenate(rows)
            if file is not None:
                _keep(file, part)
        report(chosen.stop, len(pictures))
        found.append(part)
    return np.concatenate(found)


def _kept(file: Path, count: int) -> Vectors | None:
    """Features from an earlier call; None where there are none, or the file is damaged."""
    try:
        part = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    good = part.dtype == np.float32 and part.ndim == 2 and len(part) == count and bool(np.isfinite(part).all())
    return part if good else None


def _keep(file: Path, part: Vectors) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"the folder {str(file.parent)!r} can't be made ({error.strerror}); name another") from None
    with whole_file(file) as draft, open(draft, "wb") as out:
        np.save(out, part)
