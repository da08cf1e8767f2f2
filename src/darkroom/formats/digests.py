"""The SHA-256 of weights files, remembered on disk for large ones: Stable Diffusion's take a processor a second."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError
from ..files import cache_folder, whole_file

LARGE = 2**26  # bytes of files from which on their digest is kept
_DIGEST = re.compile("[0-9a-f]{64}")


def digest_of(paths: Sequence[Path]) -> str:
    """64 hex digits: the SHA-256 of some files, one after another. Raises CheckpointError.

    That of large files is kept under what the system says of each: its place, size, number, and when it or anything
    about it was last changed. A file that is written anew, or put in another's place, is read again.
    """
    path = paths[0]
    try:
        stats = [os.stat(path := each) for each in paths]
        kept = _place(paths, stats) if sum(stat.st_size for stat in stats) >= LARGE else None
        if kept is not None and (known := _read(kept)) is not None:
            return known
        digest = hashlib.sha256()
        for path in paths:
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        if kept is not None and [_seen(os.stat(each)) for each in paths] == [_seen(stat) for stat in stats]:
            _write(kept, digest.hexdigest())
        return digest.hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from None


def _seen(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _place(paths: Sequence[Path], stats: Sequence[os.stat_result]) -> Path:
    told = repr([(os.path.abspath(path), _seen(stat)) for path, stat in zip(paths, stats, strict=True)])
    return cache_folder() / "digests" / hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()


def _read(place: Path) -> str | None:
    """What is kept there, if it is a digest."""
    with contextlib.suppress(OSError, ValueError):
        text = place.read_text(encoding="ascii")
        if _DIGEST.fullmatch(text):
            return text
    return None


def _write(place: Path, digest: str) -> None:
    """Keep a digest, whole or not at all; a disk that takes nothing costs the keeping only."""
    with contextlib.suppress(CheckpointError), whole_file(place) as draft:
        draft.write_text(digest, encoding="ascii")
