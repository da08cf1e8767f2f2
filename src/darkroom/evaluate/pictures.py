"""Sets of pictures to be compared: a folder's, a data set's as a model learns it, and drawn ones, which come from the
ordinary engine in mixed batches and are kept in a folder; and the sheets that show what was measured.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.dataset import Dataset, scan_any
from ..data.examples import Example
from ..errors import CheckpointError, ImageError, RequestError, TrainingError
from ..files import read_json, replacing, whole_file, write_json
from ..formats.picture import read_metadata, write_png
from ..images import FORMATS, open_picture
from ..sweeps.sheet import contact_sheet

if TYPE_CHECKING:
    from ..engine.engine import Progress
    from ..pipeline import Pipeline


def one_above_another(rows: Mapping[str, Sequence[NDArray[np.uint8]]], captions: Sequence[str]) -> Image.Image:
    """Rows of pictures [H, W, 3] by their names, a column for each caption."""
    cells = {
        (x, y, 0): Image.fromarray(picture)
        for y, pictures in enumerate(rows.values())
        for x, picture in enumerate(pictures[: len(captions)])
    }
    return contact_sheet(cells, (captions, tuple(rows), ()))


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write it as the file's ending says. Raises RequestError."""
    try:
        Image.init()
        with replacing(path) as draft:
            sheet.save(draft, Image.EXTENSION[path.suffix.lower()])
    except KeyError:
        raise RequestError(
            f"{str(path)!r} can't be written ({path.suffix!r} is no ending of pictures); name another"
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{str(path)!r} can't be written ({error}); name another") from None


# --- sets


Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """Pictures, read when they are asked for.

    Attributes:
        names: what to call each.
        captions: of each; may be empty texts.
        keys: a hash of what each shows: features are kept under it.
        read: i -> picture i, [H, W, 3].
    """

    names: Sequence[str]
    captions: Sequence[str]
    keys: Sequence[str]
    read: Callable[[int], Array]

    def __len__(self) -> int:
        return len(self.keys)

    def first(self, count: int) -> Pictures:
        """The first `count` of them."""
        return Pictures(self.names[:count], self.captions[:count], self.keys[:count], self.read)

    @classmethod
    def of_data(cls, data: str) -> Pictures:
        """The pictures of a folder or of shards as they are, each of its own size. Raises TrainingError."""
        examples = scan_any(data).examples
        return cls(
            [e.name for e in examples],
            [e.caption for e in examples],
            [e.digest for e in examples],
            lambda i: _whole(examples[i]),
        )

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Pictures:
        """Training pictures as a model learns them: scaled and cut."""
        names = [e.name for e in getattr(dataset, "examples", ())] or [f"scene {i}" for i in range(len(dataset))]
        cut = [f"{d} {size} {dataset.cut}" for d, size in zip(dataset.digests, dataset.sizes, strict=True)]
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in cut]
        return cls(names, dataset.captions, keys, dataset.picture)

    @classmethod
    def of_arrays(cls, pictures: Sequence[Array], captions: Sequence[str] | None = None) -> Pictures:
        """Pictures in memory."""
        keys = [hashlib.sha256(f"{p.shape}".encode() + np.ascontiguousarray(p).tobytes()).hexdigest() for p in pictures]
        names = [f"picture {i}" for i in range(len(pictures))]
        return cls(names, captions or [""] * len(pictures), keys, lambda i: pictures[i])


def _whole(example: Example) -> Array:
    try:
        with Image.open(io.BytesIO(example.read()), formats=FORMATS) as file:
            return np.asarray(open_picture(file, f"the picture {example.name[:200]!r}"))
    except (ImageError, OSError) as error:
        raise TrainingError(f"{example.name[:200]!r} can't be decoded any more ({error}); replace it") from None


# --- drawn ones


TOGETHER = 64  # pictures asked for at once; a Ctrl-C loses at most these
NOTE = "evaluation.json"


def draw(
    pipe: Pipeline,
    prompts: Sequence[str],
    folder: Path,
    *,
    seed: int,
    report: Callable[[int, int, int], None] = lambda done, step, steps: None,
    **options: Any,
) -> Pictures:
    """A picture of each prompt, picture i with the seed `seed` + i, as PNG files of a folder.

    Pictures that an earlier call has left there are kept. `report` is called with the pictures that are there, the
    steps made towards the next ones, and a picture's steps; `options` go to `Pipeline.generate`.

    Raises RequestError where the folder holds pictures of another model or of other settings, or can't be used.
    """
    settings = {name: _plain(value) for name, value in sorted(options.items()) if value not in (None, [], ())}
    _note(folder, {"model": pipe.model_hash, "seed": seed, "settings": settings})
    files = [folder / f"{i:06d}.png" for i in range(len(prompts))]
    missing = [i for i, file in enumerate(files) if not _is_there(file, prompts[i], seed + i)]
    there, step = len(files) - len(missing), 0

    def stepped(event: Progress) -> None:
        nonlocal step
        step += 1
        report(there, step, event.steps)

    for run in _runs(missing):
        step = 0
        result = pipe.generate(
            [prompts[i] for i in run], seed=seed + run[0], prompt_style="plain", on_progress=stepped, **options
        )
        for i, picture, request in zip(run, result.images, result.requests, strict=True):
            write_png(picture, files[i], request.to_dict())
        there += len(run)
    keys = [f"{pipe.model_hash} {seed + i} {json.dumps(settings)} {prompt}" for i, prompt in enumerate(prompts)]
    return Pictures([file.name for file in files], prompts, keys, lambda i: _read(files[i]))


def _plain(value: Any) -> Any:
    """What can be noted of an option."""
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool) else str(value)


def _note(folder: Path, told: dict[str, Any]) -> None:
    """Write down whose pictures a folder holds, or check it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"the folder {str(folder)!r} can't be made ({error.strerror}); name another") from None
    file = folder / NOTE
    try:
        if not file.exists():
            with whole_file(file) as draft:
                write_json(draft, told)
        noted = read_json(file)
    except CheckpointError as error:
        raise RequestError(f"{str(error).rstrip('.')}; name another folder") from None
    other = next((name for name, value in json.loads(json.dumps(told)).items() if noted.get(name) != value), None)
    if other is not None:
        raise RequestError(
            f"the folder {str(folder)!r} holds pictures of {other} {noted.get(other)}, and {told[other]} is asked for; "
            "name another folder"
        )


def _is_there(file: Path, prompt: str, seed: int) -> bool:
    if not file.exists():
        return False
    recipe = read_metadata(file).recipe
    if (recipe.get("prompt"), recipe.get("seed")) != (prompt, seed):
        raise RequestError(f"{str(file)!r} is a picture of {str(recipe.get('prompt'))[:80]!r}; name another folder")
    return True


def _runs(missing: Sequence[int]) -> list[list[int]]:
    """Neighbours together, at most TOGETHER of them: one call's seeds follow each other."""
    runs: list[list[int]] = []
    for i in missing:
        if runs and runs[-1][-1] == i - 1 and len(runs[-1]) < TOGETHER:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _read(file: Path) -> Array:
    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise ImageError(f"{str(file)!r} can't be read ({error}); delete it and it is drawn again") from None
