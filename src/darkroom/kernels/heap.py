"""What the C library does with the memory that a network's call has freed."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
NEVER = 2**31 - 1
FREE = 8  # of mallinfo2: bytes in free blocks
MATTERS = 2**28  # bytes
SMALL = 2**26  # bytes of growth that nobody minds
STATM = Path("/proc/self/statm")  # proc(5), on Linux


@cache
def keep_freed_memory() -> None:
    """Let it be kept for the next activations, from now on and in the whole process.

    glibc has every block above 32 MB from the system anew, which fills each of its pages with zeros when it is first
    touched: that cost as much as all layers between the products. `return_freed_memory` gives back what is free.
    """
    if (library := _glibc()) is not None:
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, NEVER)


def return_freed_memory(matters: int = MATTERS) -> None:
    """Give the system what memory is free in this process, if it is enough to matter (bytes)."""
    if (library := _glibc()) is not None and keep_freed_memory.cache_info().currsize:
        library.mallinfo2.restype = _Counts
        if library.mallinfo2().numbers[FREE] >= matters:
            library.malloc_trim(0)


class Bound:
    """Keeps a process from growing by more than some bytes, as far as that is memory which nothing holds any more.

    Pieces of many sizes that come and go leave gaps, and the C library fits new ones behind rather than into them.
    """

    def __init__(self, growth: int) -> None:
        self.growth = max(growth, SMALL)
        self.limit = _resident() + self.growth

    def keep(self) -> None:
        """Give the gaps back, if the limit is passed; to be called often. What is still held then is beyond us."""
        if (library := _glibc()) is not None and keep_freed_memory.cache_info().currsize and _resident() > self.limit:
            library.malloc_trim(0)
            self.limit = max(self.limit, _resident() + self.growth // 4)


def _resident() -> int:
    """Bytes of this process in memory; 0 where nobody can say."""
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


class _Counts(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallinfo2") else None  # glibc 2.33
