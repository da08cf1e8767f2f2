"""What the C library does with the memory that a network's call has freed."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
NEVER = 2**31 - 1
FREE = 8  # of mallinfo2: bytes in free blocks
MATTERS = 2**28  # bytes


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


class _Counts(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallinfo2") else None  # glibc 2.33
