"""What is said when memory runs out, and that it is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from darkroom.errors import check_room, out_of_memory


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not execute a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the convolution forward propagation"), False),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (ImportError("libx.so: failed to map segment from shared object"), True),
        (ImportError("no module named x"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, is_it: bool) -> None:
    assert out_of_memory(error) is is_it


def test_room_is_asked_for() -> None:
    check_room()
    with pytest.raises(MemoryError):
        check_room(1 << 60)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how large a process is")
@pytest.mark.parametrize("spare", [5, 30])
def test_a_command_with_little_to_spare_ends_with_a_sentence(spare: int, tmp_path: Path) -> None:
    """Threads that can't begin would be waited for, for ever."""
    code = (
        "import os, resource\nimport darkroom.cli, darkroom.loading\ndarkroom.load()\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * os.sysconf('SC_PAGE_SIZE')\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (size + {spare << 20},) * 2)\n"
        f"code = darkroom.cli.run(['generate', 'a fox', '-o', {str(tmp_path)!r}])\n"
        "os._exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("darkroom: memory ran out")
    assert done.stderr.count("\n") == 1
