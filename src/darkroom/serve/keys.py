"""API keys: who may use the server, and how much. A file of lines `name sha256 [limits]`, read again when it changes.

Keys are 256 random bits, so a plain hash is enough. Without keys everybody is one owner, called "".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Error
from ..files import read_bytes, replacing

START = "dk-"
MAX_FILE = 2**20  # bytes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LIMITS = {"requests-per-minute": "requests_per_minute", "cost": "cost", "queue": "queue"}


class KeyFileError(Error):
    """A key's name or the file of keys can't be used."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who asks: a key's name, and its limits (None: the server's)."""

    name: str = ""
    admin: bool = False
    requests_per_minute: float | None = None
    cost: float | None = None  # of its unfinished jobs
    queue: int | None = None  # unfinished jobs

    @property
    def reach(self) -> str | None:
        """Whose jobs it sees: its own; None: everybody's."""
        return None if self.admin and self.name else self.name


EVERYBODY = Owner("", admin=True)


def new_key() -> str:
    """A key that nobody guesses."""
    return START + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """What the file keeps of it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass
class Keys:
    """The keys of a file, or one that was made at the start, or none at all.

    Raises KeyFileError where the file can't be read at first; later a broken one leaves the keys as they were.
    """

    path: Path | None = None
    made: str | None = None  # a key in memory alone
    _owners: dict[str, Owner] = field(default_factory=dict)  # by hash
    _stamp: tuple[int, int] | None = None
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None:
            self._owners = read_keys(self.path)
            self._stamp = _stamp(self.path)
        elif self.made is not None:
            self._owners = {hash_of(self.made): Owner("admin", admin=True)}

    @property
    def needed(self) -> bool:
        """Whether a request must show a key."""
        return self.path is not None or self.made is not None

    def owner(self, key: str) -> Owner | None:
        """Whose key it is; None: nobody's."""
        self._refresh()
        return self._owners.get(hash_of(key))

    def hashes(self) -> list[tuple[str, Owner]]:
        """All keys: hash and owner."""
        self._refresh()
        return list(self._owners.items())

    def wait(self, owner: Owner) -> float:
        """Seconds until a key may ask again; 0: now, and that was counted."""
        rate = owner.requests_per_minute
        if rate is None:
            return 0.0
        now = time.monotonic()
        left, then = self._buckets.get(owner.name, (rate, now))
        left = min(rate, left + (now - then) * rate / 60)
        allowed = left >= 1
        self._buckets[owner.name] = (left - 1 if allowed else left, now)
        return 0.0 if allowed else (1 - left) * 60 / rate

    def _refresh(self) -> None:
        if self.path is not None and (stamp := _stamp(self.path)) != self._stamp:
            self._stamp = stamp
            try:
                self._owners = read_keys(self.path)
            except Error:
                return  # half-written by an editor: those that were known stay


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def read_keys(path: Path) -> dict[str, Owner]:
    """Hash -> owner. Raises KeyFileError for a file that can't be read, or a line that is none."""
    owners: dict[str, Owner] = {}
    text = read_bytes(path, MAX_FILE, "a file of keys", KeyFileError).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) < 2 or not _NAME.fullmatch(words[0]) or not re.fullmatch(r"[0-9a-f]{64}", words[1]):
            raise KeyFileError(f"{path}, line {number}: a key's line is its name, its SHA-256, and limits")
        owners[words[1]] = _owner(words[0], words[2:], f"{path}, line {number}")
    return owners


def _owner(name: str, words: list[str], where: str) -> Owner:
    limits: dict[str, float] = {}
    for word in words:
        key, _, value = word.partition("=")
        if word == "admin":
            continue
        if key not in _LIMITS or not re.fullmatch(r"\d{1,12}(\.\d{1,6})?", value):
            raise KeyFileError(
                f"{where}: {word[:60]!r} is no limit; there are admin, {', '.join(f'{k}=N' for k in _LIMITS)}"
            )
        limits[_LIMITS[key]] = float(value)
    queue = limits.pop("queue", None)
    return Owner(name, "admin" in words, queue=None if queue is None else int(queue), **limits)


def add_key(path: Path, name: str, limits: Mapping[str, float], admin: bool) -> str:
    """Add a key to a file, made if it isn't there (mode 0600); the key, which is kept nowhere. Raises KeyFileError."""
    if not _NAME.fullmatch(name):
        raise KeyFileError(f"{name[:60]!r} is no name for a key: use letters, digits, dots, dashes and underscores")
    known = read_keys(path) if path.exists() else {}
    if any(owner.name == name for owner in known.values()):
        raise KeyFileError(f"{path} has a key named {name!r} already; remove it first")
    key = new_key()
    words = [name, hash_of(key), *(f"{k}={v:g}" for k, v in limits.items()), *(["admin"] if admin else [])]
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    _write(path, old + ("" if not old or old.endswith("\n") else "\n") + " ".join(words) + "\n")
    return key


def remove_key(path: Path, name: str) -> None:
    """Take a key out of a file; what it made stays. Raises KeyFileError."""
    if not any(owner.name == name for owner in read_keys(path).values()):
        raise KeyFileError(f"{path} has no key named {name[:60]!r}")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    _write(path, "".join(line for line in lines if line.split("#", 1)[0].split()[:1] != [name]))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            os.chmod(draft, 0o600)
            with open(draft, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise KeyFileError(f"{path} can't be written: {error.strerror}") from None


def _hash_of(keys: Keys, name: str) -> str | None:
    """The hash of an owner's key: "" where none is needed, None where there is none of that name."""
    if not keys.needed:
        return ""
    return next((key_hash for key_hash, owner in keys.hashes() if owner.name == name), None)


# --- what stands in for a key: the page's cookie, and addresses of pictures


class Signer:
    """Signs short texts with a secret of the server's database."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, *words: str) -> str:
        """A signature of these words in this order."""
        text = "\0".join(words).encode("utf-8", "surrogateescape")
        digest = hmac.new(self._secret, text, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def session_cookie(self, owner: Owner, key: str, days: float) -> str:
        """A session: the key's name, its end, and a signature that dies with the key."""
        end = str(int(time.time() + days * 86400))
        return f"{owner.name}.{end}.{self.sign('session', owner.name, end, hash_of(key))}"

    def session(self, cookie: str, keys: Keys) -> Owner | None:
        """Whose session a cookie is, if it hasn't ended and the key is still there."""
        rest, _, signature = cookie.rpartition(".")
        name, _, end = rest.rpartition(".")
        if not end.isascii() or not end.isdigit() or len(end) > 12 or int(end) < time.time():
            return None
        for key_hash, owner in keys.hashes():
            if owner.name == name and hmac.compare_digest(
                self.sign("session", name, end, key_hash).encode(), signature.encode("utf-8", "replace")
            ):
                return owner
        return None

    def address(self, keys: Keys, name: str, *words: str) -> str:
        """A signature of words that holds as long as a key's owner of this name has that key."""
        return self.sign("address", *words, name, _hash_of(keys, name) or "")

    def addressed(self, signature: str, keys: Keys, name: str, *words: str) -> bool:
        """Whether a signature is `address`'s, and the key still there."""
        key_hash = _hash_of(keys, name)
        return key_hash is not None and self.valid(signature, "address", *words, name, key_hash)

    def valid(self, signature: str, *words: str) -> bool:
        """Whether a signature is of these words."""
        return hmac.compare_digest(self.sign(*words).encode(), signature.encode("utf-8", "replace"))
