"""What a call of `Pipeline` gives back: pictures with their recipes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, overload

import torch
from PIL import Image
from torch import Tensor

from .errors import RequestError
from .formats.picture import write_into
from .images import to_pil
from .request import Request

if TYPE_CHECKING:  # where nobody says what a Result holds, it holds pictures
    from typing_extensions import TypeVar

    Images = TypeVar("Images", bound="list[Image.Image] | Tensor", covariant=True, default="list[Image.Image]")
else:
    from typing import TypeVar

    Images = TypeVar("Images")


@dataclass(frozen=True)
class Result(Generic[Images]):
    """What was drawn: a sequence of pictures, which a loop and an index go through; a slice is a Result again.

        for picture in result: ...
        result[0].show()

    Its type says what it holds: Result[list[PIL.Image.Image]] (or Result alone), and Result[torch.Tensor] where tensors
    were asked for.

    Attributes:
        images: a list of PIL pictures; for output "pt" a float32 tensor [N, 3, H, W] in 0..1, for "latent" one of
            [N, C, h, w].
        requests: each picture's complete recipe, with the seed and all else that was left open.
        warnings: what is not as was asked, or may not be as was meant, one sentence each: what of another tool's recipe
            isn't followed, a recipe that names another model, a learned word that no prompt uses. Each is also a Python
            warning.
    """

    images: Images
    requests: list[Request]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.requests)

    @overload
    def __getitem__(self, index: slice) -> Result[Images]: ...
    @overload
    def __getitem__(self: Result[list[Image.Image]], index: int) -> Image.Image: ...
    @overload
    def __getitem__(self: Result[Tensor], index: int) -> Tensor: ...
    def __getitem__(self, index: int | slice) -> Any:
        """A picture, or the Result of some of them; IndexError where there is none, as of a list."""
        if isinstance(index, slice):
            return Result(self.images[index], self.requests[index], self.warnings)
        self.requests[index]  # a list's errors
        return self.images[index]

    @overload
    def __iter__(self: Result[list[Image.Image]]) -> Iterator[Image.Image]: ...
    @overload
    def __iter__(self: Result[Tensor]) -> Iterator[Tensor]: ...
    def __iter__(self) -> Iterator[Any]:
        return iter(self.images)

    def __repr__(self) -> str:
        if isinstance(self.images, Tensor):
            what = f"tensor {list(self.images.shape)}"
        else:
            what = ", ".join(f"{width}x{height}" for width, height in dict.fromkeys(p.size for p in self.images))
        seeds = [str(request.seed) for request in self.requests]
        few = ", ".join(seeds if len(seeds) <= 6 else [*seeds[:3], "...", seeds[-1]])
        told = f", {len(self.warnings)} warnings" if self.warnings else ""
        return f"Result({len(self)} of {what}, seeds {few}{told})"

    def save(self, folder: str | Path) -> list[Path]:
        """Write the pictures as PNG files with their recipes, under new names; the folder is made if need be.

        Returns the paths. Raises RequestError for latents or where the folder can't be made, ImageError where a
        picture can't be written.
        """
        pictures = list(self._pictures())
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RequestError(f"folder {str(folder)!r} can't be made ({reason}); choose another one") from error
        pairs = zip(pictures, self.requests, strict=True)
        return [write_into(folder, picture, request.to_dict()) for picture, request in pairs]

    def _pictures(self) -> Iterator[Image.Image]:
        if not isinstance(self.images, Tensor):
            yield from self.images
        elif self.images.shape[1] != 3:
            raise RequestError('latents can\'t be saved as pictures; decode them, or ask for output="pil"')
        else:
            yield from (to_pil(picture) for picture in self.images)


def gathered(results: Sequence[Image.Image | Tensor]) -> list[Image.Image] | Tensor:
    """Pictures as a list, tensors of one shape as one."""
    tensors = [result for result in results if isinstance(result, Tensor)]
    if not tensors:
        return [result for result in results if isinstance(result, Image.Image)]
    if len({tensor.shape for tensor in tensors}) > 1:
        raise RequestError('pictures of different sizes make no one tensor; ask for output="pil"')
    return torch.stack(tensors)
