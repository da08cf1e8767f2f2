"""How the web process and an engine process talk: messages over a socket, each a JSON object and bytes beside it.

On the wire: the length of the JSON (4 bytes, big-endian), the JSON {"kind", "sizes", ...}, then the bytes of each blob.
Both ends are of one version: the web process starts its engines itself.

| to the engine                                      | from the engine                                            |
|----------------------------------------------------|------------------------------------------------------------|
| start, load, unload, threads                       | ready, loaded, unloaded, failed_load                       |
| submit (a picture), cancel, watch                  | progress, preview, snapshot, finished, failed              |
| call (explain, ...)                                | answer                                                     |
| stop                                               | phase (what it does, and the seconds it expects), stats    |
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_HEADER = 64 * 2**20  # bytes
MAX_BLOB = 1 << 30
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Message:
    """One message: what it is, its fields, and bytes that go with it (pictures, snapshots)."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    blobs: tuple[bytes, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def packed(self) -> bytes:
        """As it goes over the wire."""
        header = json.dumps({**self.fields, "kind": self.kind, "sizes": [len(blob) for blob in self.blobs]}).encode()
        return b"".join((_LENGTH.pack(len(header)), header, *self.blobs))


def _unpacked(header: bytes) -> tuple[str, dict[str, Any], list[int]]:
    fields = json.loads(header)
    kind, sizes = fields.pop("kind"), fields.pop("sizes")
    if any(not 0 <= size <= MAX_BLOB for size in sizes):
        raise ValueError(f"a message of kind {kind!r} holds a blob of impossible size")
    return kind, fields, sizes


def _length(prefix: bytes) -> int:
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_HEADER:
        raise ValueError(f"a message begins with a header of {length:,} bytes; the stream is broken")
    return int(length)


def read(stream: BinaryIO) -> Message | None:
    """The next message of a buffered stream; None where it has ended, in the middle of a message too."""

    def exactly(count: int) -> bytes | None:
        try:
            found = stream.read(count)
        except ConnectionError:  # the other end was killed with something unread
            return None
        return found if len(found) == count else None

    if (prefix := exactly(4)) is None or (header := exactly(_length(prefix))) is None:
        return None
    kind, fields, sizes = _unpacked(header)
    blobs = []
    for size in sizes:
        if (blob := exactly(size)) is None:
            return None
        blobs.append(blob)
    return Message(kind, fields, tuple(blobs))


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None where the stream has ended."""
    try:
        header = await reader.readexactly(_length(await reader.readexactly(4)))
        kind, fields, sizes = _unpacked(header)
        return Message(kind, fields, tuple([await reader.readexactly(size) for size in sizes]))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
