"""Errors a user can cause: one sentence each, with the offending value and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable


class Error(Exception):
    """Base of every error that a user can cause. `str(error)` is one sentence for that user."""


class RequestError(Error):
    """What was asked for can't be done: a size, a step count, a sampler's name, a prompt, a picture."""


class CheckpointError(Error):
    """A model, adapter or embedding file is missing, broken, hostile, or of an architecture we don't know."""


class ImageError(Error):
    """A picture from outside can't be read or is not what it was said to be."""


class TrainingError(Error):
    """A training run can't start, or can't go on: data, recipe, disk, or a checkpoint of another run."""


ROOM = 64 << 20  # bytes: a few threads' stacks, and what they need to begin


# What torch says when memory ran out: CUDA and MPS; its allocator on a processor; and oneDNN, whose objects need some
# (a primitive's descriptor is another matter: what it describes can't be done).
_OUT_OF_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator|can(no|')t allocate memory|bad_alloc|failed to map segment|"
    r"could not (create|execute) a primitive(?! descriptor)|could not create a memory",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError | ImportError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


def check_room(size: int = ROOM) -> None:
    """Raise MemoryError unless `size` more bytes can be had. To be called before threads are started: one that has no
    memory to begin with never says that it has begun, and whoever started it waits for ever."""
    import mmap

    try:
        mmap.mmap(-1, size).close()  # no page of it is touched
    except (OSError, ValueError, OverflowError):
        raise MemoryError(f"less than {size:,} bytes are left") from None


# --- what sentences are made of


def shown(value: object, longest: int = 60) -> str:
    """A value as a sentence quotes it: never longer than a line."""
    text = repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def clip(value: object, length: int = 60) -> str:
    """`value` as printable text short enough for a sentence; for what a hostile file says of itself."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # a whole number of more than 4300 digits
        text = "an enormous number"
    text = "".join(c if c.isprintable() else "?" for c in text[: length + 1])
    return text if len(text) <= length else text[:length] + "..."


def visible(text: str, newlines: bool = False) -> str:
    """Text from outside made safe for a terminal: control characters, bidirectional marks, lone surrogates escaped."""
    return "".join(
        c if c.isprintable() or (newlines and c == "\n") else c.encode("unicode_escape").decode("ascii") for c in text
    )


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was meant to be, or None where none is near.

    Near is what differs by a slip or two (Damerau and Levenshtein's distance): one in a short word, two in one of
    eight letters or more. A guess that is far from what was written leads astray.
    """
    best, least = None, min(2, max(1, len(name) // 4)) + 1
    for each in known:
        if abs(len(each) - len(name)) < least and (apart := distance(name[:100], each[:100])) < least:
            best, least = each, apart
    return best


def distance(a: str, b: str) -> int:
    """How many letters must be put in, left out, changed, or exchanged with the next, to make one word of another."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        last, before, row = before, row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                row[-1] = min(row[-1], last[j - 2] + 1)
    return row[-1]


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence's tail: "; did you mean 'euler'?" if some known name is near, in any case, else ""."""
    by_lower = {k.lower(): k for k in known}
    found = closest(str(name).lower(), by_lower)
    return f"; did you mean {by_lower[found]!r}?" if found else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """As `nearest`; if none is near, the tail says which names there are."""
    known = list(known)
    return nearest(name, known) or f"; there are {', '.join(known)}"
