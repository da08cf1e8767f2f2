"""Pictures made larger by a network that was trained for nothing else: any size, any mode, in bounded memory.

    upscaler = load_upscaler("RealESRGAN_x4plus.pth")
    large = upscaler.enlarge(picture)             # by the network's own factor
    large = upscaler.enlarge(picture, scale=2.5)  # by another: enlarged as often as that takes, then made smaller

RRDB, Compact and SPAN are Darkroom's own; other architectures are opened by the library spandrel where it is installed.
Files are read by Darkroom's own reader either way: nothing in them is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import CheckpointError, RequestError
from ..formats.artifact import kind_of
from ..formats.ecosystem import named
from ..formats.hub import resolve
from ..formats.tensors import Glance, open_tensors
from ..formats.upscaler import PART, UpscalerFile, open_upscaler
from ..formats.weights import digest_of
from ..images import Picture, open_plain
from ..kernels.tiles import Step, tiles
from ..masks import spread
from ..request import EMBEDDED_UPSCALER, MAX_PIXELS, MAX_SIDE, real

BUDGET = 256 << 20  # bytes that a part of a network holds at one time, about
KEPT = 1 << 30  # bytes of what an RRDB keeps between its parts, for a picture that is enlarged at once
MOST_ROUNDS = 3  # a network is applied to its own answer so often, where a larger scale is asked for than it has
# Of networks that only spandrel knows, nothing tells how far they look; windows of attention are 8 to 32 pixels wide.
FOREIGN_REACH, FOREIGN_HELD = 48, 4000


class Network(Protocol):
    """[1, C, H, W] of 0..1 to [1, C, scale H, scale W]."""

    def __call__(self, x: Tensor, run: Any) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Upscaler:
    """A loaded network that enlarges.

    Attributes:
        network: see `Network`.
        name: its file's, without the ending.
        hash: ten hexadecimal digits of its file's SHA-256.
        architecture: "ESRGAN", "Compact", "SPAN", or what spandrel calls it.
        scale: how many times a side becomes longer.
        channels: 3, or 1 for networks of grey pictures.
    """

    network: Network
    name: str
    hash: str
    architecture: str
    scale: int
    channels: int = 3
    kept: int = 0  # numbers that it keeps between its parts for each pixel of the given picture
    reach: int = 0  # how far the whole of it looks
    grid: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def enlarge(
        self,
        picture: Picture,
        scale: float | None = None,
        size: tuple[int, int] | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> Image.Image:
        """A picture or a path made larger: grey, RGB or RGBA as it is, in 16 bits where it has them (grey ones).

        Args:
            scale: for each side, above 0, at most 16; None: the network's own.
            size: (width, height) instead of a scale.
            tick: called before every tile; may raise to end the work.

        Raises ImageError for what can't be read as a picture, RequestError for a size that is too large.
        """
        plain = open_plain(picture)
        size = enlarged_size(plain.size, self.scale if scale is None else scale) if size is None else size
        with torch.inference_mode():
            large = self._grown(_to_tensor(plain), size, tick)
        return _to_picture(large, plain.mode)

    def _grown(self, x: Tensor, size: tuple[int, int], tick: Callable[[], None]) -> Tensor:
        """A picture [C, H, W] of 0..1 with 1 to 4 channels, the fourth (or second) its alpha, at `size`."""
        if len(x) in (2, 4):
            colours, alpha = x[:-1], x[-1:]
            # Colours that nobody sees would show at the edges: those around take their place.
            colours = spread(colours[None], (alpha == 0).float()[None])[0]
            return torch.cat([self._grown(colours, size, tick), self._grown(alpha, size, tick)])
        for _ in range(MOST_ROUNDS):
            x = self._once(x, tick)
            if self.scale == 1 or (x.shape[-1] >= size[0] and x.shape[-2] >= size[1]):
                break
        return _resized(x, size)

    def _once(self, x: Tensor, tick: Callable[[], None]) -> Tensor:
        """A picture [1 or 3, H, W], through the network."""
        height, width = x.shape[-2:]
        if self.scale**2 * height * width > 4 * MAX_PIXELS:
            raise RequestError(
                f"{width}x{height} pixels become {self.scale * width}x{self.scale * height} by {self.name!r}; enlarge "
                "a smaller picture, or by a network of a smaller factor"
            )
        if len(x) == self.channels:
            rows = [x]
        else:  # grey by a network of colours, or colours by one of grey pictures, one after the other
            rows = [x.expand(3, -1, -1)] if self.channels == 3 else [plane[None] for plane in x]
        parts = tiles(BUDGET, tick)
        whole = Step(lambda row: self.network(row, parts), self.reach, max(self.kept, 1), self.scale, self.grid)
        made = [tiles(KEPT)(whole, row[None].to(self.device))[0].float().cpu().clamp(0, 1) for row in rows]
        answer = torch.cat(made)
        return answer.mean(dim=0, keepdim=True) if len(x) < len(answer) else answer


def enlarged_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(width, height) of a picture made larger. Raises RequestError for a scale or a size that can't be."""
    scale = real("scale", scale, 0.01, 16.0)
    width, height = (max(1, round(side * scale)) for side in size)
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise RequestError(
            f"the image is {size[0]}x{size[1]} pixels, {scale:g} times as large {width}x{height}; sides may have "
            f"{MAX_SIDE:,} pixels, and all {MAX_PIXELS:,}; give another image or scale"
        )
    return width, height


# --- pictures


_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")


def _to_tensor(picture: Image.Image) -> Tensor:
    """A picture of one of `images.PLAIN` as [C, H, W] float32 of 0..1."""
    most = 65535 if picture.mode in _DEEP else 255
    values = np.asarray(picture).astype(np.float32) / most
    values = values[..., None] if values.ndim == 2 else values
    return torch.from_numpy(np.moveaxis(values, -1, 0).copy())


def _to_picture(x: Tensor, mode: str) -> Image.Image:
    values: NDArray[np.float32] = np.moveaxis(x.clamp(0, 1).numpy(), 0, -1)
    if mode in _DEEP:
        return Image.fromarray((values[..., 0] * 65535).round().astype(np.uint16))
    pixels = (values * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[C, H, W] at a size (width, height), by Lanczos."""
    if x.shape[-2:] == size[::-1]:
        return x
    planes = [Image.fromarray(plane.numpy()).resize(size, Image.Resampling.LANCZOS) for plane in x]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))


# --- files


def load_upscaler(source: str | Path, device: torch.device | str = "cpu") -> Upscaler:
    """A network that enlarges: a file, "org/name" on the hub, or "embedded:upscaler". Raises CheckpointError."""
    path = resolve(source)
    # What comes with the package keeps that name, by which recipes find it again.
    name = EMBEDDED_UPSCALER if str(source) == EMBEDDED_UPSCALER else path.stem
    if path.is_dir():
        open_upscaler(path)  # says that it is none
    kind, seen = kind_of(path).name, Glance(path)
    if kind == "upscaler" or not seen.shapes:
        return _own(open_upscaler(path), name, torch.device(device))
    told = named(seen.shapes)
    if kind not in ("other", "model") or (told is not None and "upscaler" not in told):
        raise CheckpointError(f"{path} is no upscaler but {told or f'a {kind}'}")
    return _foreign(path, torch.device(device))


def _own(file: UpscalerFile, name: str, device: torch.device) -> Upscaler:
    config = file.upscaler_config
    if config.in_channels != config.out_channels or config.in_channels not in (1, 3):
        raise CheckpointError(
            f"{file.path} makes {config.out_channels} channels of {config.in_channels}; pictures have 3, or 1"
        )
    network = file.build(PART, device, torch.float32)
    return Upscaler(
        network, name, file.hash(), config.architecture, config.scale, config.in_channels, config.kept,
        config.reach, config.grid, device,
    )  # fmt: skip


def _foreign(path: Path, device: torch.device) -> Upscaler:
    """A network that only spandrel knows, with weights that we have read."""
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
    except ImportError:
        raise CheckpointError(
            f"{path} is none of the networks that Darkroom enlarges with by itself (ESRGAN, Compact, SPAN); the "
            "library spandrel opens forty others: pip install 'darkroom-diffusion[spandrel]'"
        ) from None
    except Exception as error:  # torchvision of another build of torch raises what it likes
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is opened by spandrel, which can't be imported here ({reason})") from None
    with open_tensors(path) as file:
        state = {name: file.load(name) for name in file.names()}
    try:
        found = ModelLoader(device).load_from_state_dict(state)
    except UnsupportedModelError:
        raise CheckpointError(f"{path} is no network that Darkroom or spandrel enlarges with") from None
    except Exception as error:  # a broken file makes any architecture fail in its own way
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} can't be opened by spandrel ({reason})") from None
    if not isinstance(found, ImageModelDescriptor) or found.input_channels != found.output_channels:
        raise CheckpointError(f"{path} is a network of spandrel's that enlarges no ordinary pictures")
    found.model.float().eval()
    grid = found.size_requirements.multiple_of or 1

    def network(x: Tensor, run: Any) -> Tensor:
        step = Step(found, -(-FOREIGN_REACH // grid) * grid, FOREIGN_HELD, found.scale, grid)
        answer: Tensor = run(step, x)
        return answer

    return Upscaler(
        network, path.stem, digest_of([path])[:10], str(found.architecture.name), int(found.scale),
        found.input_channels, device=device,
    )  # fmt: skip
