"""The server's folder: one server at a time, pictures and inputs whole or not at all.

darkroom.json   the marker: an id that the database knows too, so that an unmounted disk is noticed
lock            held while a server runs; its process id inside
darkroom.sqlite the queue and the gallery
images/         finished pictures, by day
thumbs/         small ones, made when they are asked for
inputs/         uploaded pictures, by the SHA-256 of what was sent
snapshots/      how far pictures in progress are; losing one costs time only
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Collection
from pathlib import Path

from ..errors import Error
from ..files import FULL, clear_drafts, read_bytes, read_json, replacing, sync_folder
from .store import StoreFull

MARKER = "darkroom.json"
ORPHAN = 3600.0  # seconds after which a file that no row knows is deleted
MAX_FILE = 512 * 2**20  # bytes


class DataError(Error):
    """The data folder can't be used."""


class Data:
    """Open a server's folder, made if it isn't there; held until `close`. Raises DataError.

    shared: with others that share a database, too; else by this process alone.
    """

    def __init__(self, folder: Path, shared: bool = False) -> None:
        self.folder, self.shared = folder, shared
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise DataError(f"the data folder {str(folder)!r} can't be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise DataError(
                f"the data folder {str(folder)!r} is used by another server (process {owner}); "
                "stop that one, or name another folder (--data)"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        for name in ("images", "thumbs", "inputs", "snapshots"):
            (folder / name).mkdir(exist_ok=True)

    def close(self) -> None:
        """Let another server have it."""
        os.close(self._lock)

    def identity(self) -> str:
        """The id in the marker, made where there is none."""
        path = self.folder / MARKER
        if not path.exists():
            with contextlib.suppress(FileExistsError):  # another process was quicker
                self._write(path, json.dumps({"id": secrets.token_hex(8)}).encode(), overwrite=False)
        return str(read_json(path, error=DataError).get("id", ""))

    # --- pictures

    def keep_picture(self, id: str, data: bytes, claim: int = 0) -> str:
        """Write a finished picture; its name below the folder. Raises StoreFull and DataError.

        claim: sets apart what two workers write of one picture, where the first was taken for dead.
        """
        day = self.folder / "images" / time.strftime("%Y-%m-%d", time.gmtime())
        if not day.exists():
            day.mkdir(exist_ok=True)
            sync_folder(day.parent)
        path = day / (f"{id}.{claim}.png" if self.shared else f"{id}.png")
        self._write(path, data)
        return path.relative_to(self.folder).as_posix()

    def picture(self, name: str) -> bytes | None:
        """A finished picture's file; None where it is gone."""
        path = self.folder / name
        return read_bytes(path, MAX_FILE, "a picture", DataError) if path.exists() else None

    def drop(self, name: str) -> None:
        """Delete a picture's file and its small one."""
        (self.folder / name).unlink(missing_ok=True)
        self.thumb_path(Path(name).name.partition(".")[0]).unlink(missing_ok=True)

    def thumb_path(self, id: str) -> Path:
        """Where a picture's small one lies, if it was made."""
        return self.folder / "thumbs" / f"{id}.webp"

    def keep_thumb(self, id: str, data: bytes) -> None:
        """Keep a small picture; a full disk only means that it is made again."""
        with contextlib.suppress(OSError), replacing(self.thumb_path(id)) as draft:
            draft.write_bytes(data)

    # --- inputs

    def keep_input(self, sha256: str, data: bytes) -> None:
        """Write an upload's re-encoding under the hash of what was sent."""
        path = self._input(sha256)
        if not path.exists():
            self._write(path, data)

    def input(self, sha256: str) -> bytes:
        """An upload's re-encoding. Raises DataError where it is gone."""
        return read_bytes(self._input(sha256), MAX_FILE, "an input", DataError)

    def drop_input(self, sha256: str) -> None:
        """Delete an upload."""
        self._input(sha256).unlink(missing_ok=True)

    def _input(self, sha256: str) -> Path:
        return self.folder / "inputs" / f"{sha256}.png"

    # --- snapshots

    def keep_snapshot(self, id: str, data: bytes) -> None:
        """Keep how far a picture is, in place of what was kept before; not synced."""
        with replacing(self.folder / "snapshots" / id) as draft:
            draft.write_bytes(data)

    def snapshot(self, id: str) -> bytes | None:
        """How far a picture was, if that is known."""
        try:
            return (self.folder / "snapshots" / id).read_bytes()
        except OSError:
            return None

    def drop_snapshot(self, id: str) -> None:
        """Forget it, and how it looked."""
        for name in (id, f"{id}.jpg"):
            (self.folder / "snapshots" / name).unlink(missing_ok=True)

    def keep_preview(self, id: str, data: bytes) -> None:
        """Keep how a picture looks so far, for the other processes of a shared folder."""
        with contextlib.suppress(OSError), replacing(self.folder / "snapshots" / f"{id}.jpg") as draft:
            draft.write_bytes(data)

    def preview(self, id: str) -> tuple[int, bytes] | None:
        """How a picture looks so far, and when that was kept (nanoseconds); None where nobody did."""
        path = self.folder / "snapshots" / f"{id}.jpg"
        try:
            return path.stat().st_mtime_ns, path.read_bytes()
        except OSError:
            return None

    # --- the whole

    def sweep(self, pictures: Collection[str], inputs: Collection[str], live: Collection[str]) -> int:
        """Delete drafts, and files older than an hour that no row knows; how many.

        Args:
            pictures, inputs: names below the folder, and hashes, that rows know.
            live: ids of unfinished pictures, whose snapshots stay.
        """
        gone = 0
        old = time.time() - ORPHAN
        known = {f"{sha}.png" for sha in inputs}
        for folder in (self.folder, *(self.folder / name for name in ("thumbs", "inputs", "snapshots"))):
            clear_drafts(folder)
        for day in (self.folder / "images").iterdir():
            clear_drafts(day)
            for path in day.iterdir():
                gone += _delete_old(path, path.relative_to(self.folder).as_posix() in pictures, old)
        for path in (self.folder / "inputs").iterdir():
            gone += _delete_old(path, path.name in known, old)
        for path in (self.folder / "snapshots").iterdir():
            gone += _delete_old(path, path.name in live, old)
        return gone

    def has_room(self) -> bool:
        """Whether a file can be written at all."""
        try:
            self._write(self.folder / "room", b"." * 65536)
            (self.folder / "room").unlink()
        except (StoreFull, DataError):
            return False
        return True

    def _write(self, path: Path, data: bytes, overwrite: bool = True) -> None:
        """Write a file so that it is there, whole and on disk, or not at all."""
        try:
            with replacing(path, overwrite) as draft, open(draft, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno in FULL:
                raise StoreFull("the disk is full; nothing was written") from None
            raise DataError(f"{path.name} can't be written: {error.strerror}") from None


def _delete_old(path: Path, known: bool, old: float) -> bool:
    try:
        if known or path.stat().st_mtime > old:
            return False
        path.unlink()
    except OSError:
        return False
    return True
