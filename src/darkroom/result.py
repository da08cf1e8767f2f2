"""What a call of `Pipeline` gives back: pictures with their recipes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .errors import RequestError
from .formats.picture import write_into
from .images import to_pil
from .request import Request


@dataclass(frozen=True)
class Result:
    """What was drawn.

    Attributes:
        images: a list of PIL pictures; for output "pt" a float32 tensor [N, 3, H, W] in 0..1, for "latent" one of
            [N, C, h, w].
        requests: each picture's complete recipe, with the seed and all else that was left open.
        warnings: what is not as was asked, or may not be as was meant, one sentence each: what of another tool's recipe
            isn't followed, a recipe that names another model, a learned word that no prompt uses. Each is also a Python
            warning.
    """

    images: list[Image.Image] | Tensor
    requests: list[Request]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.requests)

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
