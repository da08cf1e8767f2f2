"""Files as every room writes and reads them: whole or not at all, JSON with limits, and where caches lie. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError

MAX_JSON = 1 << 20  # bytes of a configuration file; published ones have about 2000
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.(part|old)", re.DOTALL)  # a name that the writers below work under

Fault = Callable[[str], Exception]  # an error's class, given its sentence


def cache_folder() -> Path:
    """Where what can be made again is kept: $DARKROOM_CACHE, or `darkroom` in $XDG_CACHE_HOME or ~/.cache.

    It need not be there.
    """
    own = os.environ.get("DARKROOM_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "darkroom"


# --- reading


def read_bytes(
    path: Path, limit: int = MAX_JSON, what: str = "a configuration", error: Fault = CheckpointError
) -> bytes:
    """A file's content. Raises `error` where it can't be read, or has more bytes than `what` it is may have."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for ever, and a device has no end
            raise error(f"{path} is not a regular file: {what} is one.")
        if state.st_size > limit:
            raise error(f"{path} has {state.st_size:,} bytes; {what} has at most {limit:,}.")
        return path.read_bytes()
    except (OSError, ValueError) as fault:
        raise error(f"{path} can't be read: {getattr(fault, 'strerror', None) or fault}.") from None


def read_json(path: Path, limit: int = MAX_JSON, error: Fault = CheckpointError) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes. Raises `error` if it is anything else."""
    return parse_json(read_bytes(path, limit, error=error), str(path), error)


def parse_json(raw: bytes | str, where: str, error: Fault = CheckpointError) -> dict[str, Any]:
    """The JSON object in `raw`. Raises `error`, naming `where`, if it is anything else."""
    try:
        content = json.loads(raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw)
    except (ValueError, RecursionError) as fault:
        raise error(f"{where} is not valid JSON ({fault}): download it again.") from None
    if not isinstance(content, dict):
        raise error(f"{where} holds a JSON {type(content).__name__}; a configuration is an object.")
    return content


# --- writing


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a configuration as the ecosystem's tools do: two spaces, sorted."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` when all went well, and is gone otherwise.

    Whoever writes sees that the bytes are on the disk (`os.fsync`). Without `overwrite` a file that is there already,
    even since a moment ago, is FileExistsError. OSError comes as it is; `whole_file` makes sentences of it.
    """
    if not overwrite and os.path.lexists(path):
        raise FileExistsError
    draft = path.parent / f".{path.name[:60]}.{uuid.uuid4().hex[:8]}.part"
    try:
        yield draft
        if overwrite:
            os.replace(draft, path)
        else:
            _rename_to_free(draft, path)
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(draft)
    sync_folder(path.parent)


def _rename_to_free(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)  # unlike a rename, it fails if the name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError from None
        os.rename(draft, path)


@contextlib.contextmanager
def whole_file(path: Path, error: Fault = CheckpointError) -> Iterator[Path]:
    """As `replacing`, with the folders above `path` made where they are missing, and OSError told as `error`."""
    if path.is_dir():
        raise error(f"{path} is a folder; name a file to write.")
    with _sentences(path, error):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            yield draft


@contextlib.contextmanager
def whole_folder(path: Path, marker: str) -> Iterator[Path]:
    """A new folder to write into; it becomes `path` when all went well, and is gone otherwise.

    An old folder at `path` is replaced if it is empty or holds a file called `marker` (so it is of the same kind); any
    other raises CheckpointError. OSError -> CheckpointError.
    """
    with _sentences(path, CheckpointError):
        if path.exists() and not (path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))):
            raise CheckpointError(f"{path} exists and is not a model (it has no {marker}): choose another name.")
    stamp = uuid.uuid4().hex[:8]
    draft, old = path.parent / f".{path.name[:60]}.{stamp}.part", path.parent / f".{path.name[:60]}.{stamp}.old"
    with _sentences(path, CheckpointError):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.mkdir()
            yield draft
            for folder in (draft, *(sub for sub in draft.rglob("*") if sub.is_dir())):
                sync_folder(folder)
            if path.exists():
                os.rename(path, old)
            try:
                os.rename(draft, path)
            except BaseException:
                if old.exists():
                    os.rename(old, path)
                raise
            sync_folder(path.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def clear_drafts(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder, where nobody else is writing now."""
    for left in folder.iterdir():
        if _DRAFT.fullmatch(left.name) and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a folder's new names durable; not every system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _sentences(path: Path, error: Fault) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise error(f"{path} can't be written: {fault.strerror or fault}.") from None
