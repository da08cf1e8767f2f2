"""Files as every room writes and reads them: whole or not at all, JSON with limits, folders with an owner, and where
caches lie. No torch.

Whoever writes holds a lock (flock(2)) on the draft, and whoever owns a folder one on a file in it. A lock goes with its
process, however that ends, so what nobody holds has been left behind: it is cleared by the next process that writes
there. Where a system has no such locks nothing is told apart, and nothing cleared.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from .errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # what the system says of a full disk
MAX_JSON = 1 << 20  # bytes of a configuration file; published ones have about 2000
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.(part|old)", re.DOTALL)  # a name that the writers below work under
_NAME = 60  # characters of a file's name that its draft's has
OWNER = ".owner"  # in a folder that somebody owns, or has owned: the owner's process
PATIENCE = 60.0  # seconds for processes to end whose parent, the owner, has been killed

Fault = Callable[[str], Exception]  # an error's class, given its sentence


def cache_folder() -> Path:
    """Where what can be made again is kept: $DARKROOM_CACHE, or where the system keeps caches: ~/.cache/darkroom (or in
    $XDG_CACHE_HOME), ~/Library/Caches/darkroom on a Mac, %LOCALAPPDATA%\\darkroom\\Cache on Windows.

    It need not be there.
    """
    own = os.environ.get("DARKROOM_CACHE")
    return Path(own) if own else user_cache_path("darkroom", appauthor=False)


# --- reading


def read_bytes(
    path: Path, limit: int = MAX_JSON, what: str = "a configuration", error: Fault = CheckpointError
) -> bytes:
    """A file's content. Raises `error` where it can't be read, or has more bytes than `what` it is may have."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for ever, and a device has no end
            raise error(f"{path} is not a regular file: {what} is one")
        if state.st_size > limit:
            raise error(f"{path} has {state.st_size:,} bytes; {what} has at most {limit:,}")
        return path.read_bytes()
    except (OSError, ValueError) as fault:
        raise error(f"{path} can't be read: {getattr(fault, 'strerror', None) or fault}") from None


def read_json(path: Path, limit: int = MAX_JSON, error: Fault = CheckpointError) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes. Raises `error` if it is anything else."""
    return parse_json(read_bytes(path, limit, error=error), str(path), error)


def parse_json(raw: bytes | str, where: str, error: Fault = CheckpointError) -> dict[str, Any]:
    """The JSON object in `raw`. Raises `error`, naming `where`, if it is anything else."""
    try:
        content = json.loads(raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw)
    except (ValueError, RecursionError) as fault:
        raise error(f"{where} is not valid JSON ({fault}): download it again") from None
    if not isinstance(content, dict):
        raise error(f"{where} holds a JSON {type(content).__name__}; a configuration is an object")
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
    """An empty file beside `path` to write to; it becomes `path` when all went well, and is gone otherwise.

    Whoever writes sees that the bytes are on the disk (`os.fsync`). Without `overwrite` a file that is there already,
    even since a moment ago, is FileExistsError. OSError comes as it is; `whole_file` makes sentences of it.
    """
    if not overwrite and os.path.lexists(path):
        raise FileExistsError
    with _draft(path, _new_file) as draft:
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
        raise error(f"{path} is a folder; name a file to write")
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
            raise CheckpointError(f"{path} exists and is not a model (it has no {marker}): choose another name")
    with _sentences(path, CheckpointError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _draft(path, _new_folder) as draft:
            old = draft.with_suffix(".old")
            try:
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


# --- drafts


@contextlib.contextmanager
def _draft(path: Path, new: Callable[[Path], int | None]) -> Iterator[Path]:
    """A draft for `path`, held by this process. The first one in a folder clears what killed writers left there."""
    _clear_once(path.parent.absolute())
    while True:
        draft = path.parent / f".{path.name[:_NAME]}.{uuid.uuid4().hex[:8]}.part"
        handle = new(draft)
        if handle is None or (_lock(handle) is not False and _is_at(handle, draft)):
            break
        os.close(handle)  # whoever clears the folder took it for one that was left
    try:
        yield draft
    finally:
        if handle is not None:
            os.close(handle)


def _new_file(path: Path) -> int | None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    if fcntl is not None:
        return handle
    os.close(handle)  # such a system doesn't rename what is open
    return None


def _new_folder(path: Path) -> int | None:
    path.mkdir()
    return None if fcntl is None else os.open(path, os.O_RDONLY)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _lock(handle: int) -> bool | None:
    """Lock an open file or folder for as long as it is open, without waiting; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without them
        return None
    return True


@cache
def _clear_once(folder: Path) -> None:
    clear_drafts(folder)


def clear_drafts(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder; what somebody is writing stays. A folder that one of
    them was about to replace is put back."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        # In their order: an old folder is looked at before the draft that was to replace it.
        for found in sorted(e.name for e in entries if _DRAFT.fullmatch(e.name)):
            with contextlib.suppress(OSError):
                _clear(folder / found)


def _clear(left: Path) -> None:
    mode = left.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return
    draft = left.with_suffix(".part")
    replaced = left.suffix == ".old" and draft.exists()  # not yet, rather: between two renames
    handle = os.open(draft if replaced else left, os.O_RDONLY)
    try:
        if not _lock(handle):
            return
        if replaced:
            name = left.name[1 : -len(".01234567.old")]
            if len(name) < _NAME and not (left.parent / name).exists():  # else nobody knows whose it is
                left.rename(left.parent / name)
        elif stat.S_ISDIR(mode):
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    finally:
        os.close(handle)


# --- owners


_owned: ContextVar[tuple[str, ...]] = ContextVar("darkroom.files.owned", default=())  # by this thread


class Owner:
    """The right to write in a folder. A process that is started with it, by multiprocessing, holds it too."""

    def __init__(self, handle: int | None) -> None:
        self._handle = handle

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing import context, reduction

        if self._handle is None or context.get_spawning_popen() is None:
            return Owner, (None,)
        return _inherited, (reduction.DupFd(self._handle),)

    def close(self) -> None:
        """Leave the folder to others, once all that hold it have."""
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None


def _inherited(handle: Any) -> Owner:
    return Owner(handle.detach())


@contextlib.contextmanager
def owned(folder: Path, what: str = "the folder", error: Fault = CheckpointError) -> Iterator[Owner]:
    """While this lasts no other process owns `folder`, which is made if it is missing. A thread may own it repeatedly.

    Raises `error`, naming the process, where another one owns it, and where there can be no such folder.
    """
    name = os.path.realpath(folder)
    if name in _owned.get():
        yield Owner(None)
        return
    with _sentences(folder, error):
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        handle = _claim(folder, what, error)
    owner, token = Owner(handle), _owned.set((*_owned.get(), name))
    try:
        clear_drafts(folder)
        yield owner
    finally:
        _owned.reset(token)
        with contextlib.suppress(OSError):
            os.unlink(folder / OWNER)
            if new:
                folder.rmdir()  # nothing came of it
        owner.close()


def _claim(folder: Path, what: str, error: Fault) -> int:
    """The locked file of a folder's owner, with this process's number in it."""
    began = time.monotonic()
    while True:
        handle = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if _lock(handle) is not False:
                if _is_at(handle, folder / OWNER):  # not what an owner has just taken away
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{os.getpid()}\n".encode())
                    return os.dup(handle)
                continue
            number = os.read(handle, 20).decode(errors="replace").strip()
        finally:
            os.close(handle)
        gone = number.isdecimal() and not _is_running(int(number))
        if not gone or time.monotonic() - began > PATIENCE:
            who = f"process {number}" if number else "another process"
            raise error(f"{what} {folder} is being written by {who}; wait for its end, or choose another folder")
        time.sleep(0.1)  # until the processes that it had started have noticed


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


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
        raise error(f"{path} can't be written: {fault.strerror or fault}") from None
