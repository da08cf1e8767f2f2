"""Files whole or not at all, folders with an owner: what killed processes leave is told from what others are doing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from darkroom.errors import TrainingError
from darkroom.files import OWNER, clear_drafts, owned, replacing, whole_file, whole_folder

pytest.importorskip("fcntl")

OWNS = "with owned(folder, 'run'): go()"
WRITES = "with replacing(folder / 'a') as draft: draft.write_text('half'); go()"
REPLACES = "with whole_folder(folder / 'm', 'mark') as draft: (draft / 'mark').write_text('new'); go()"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def process(folder: Path, body: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the middle of `body`, at its call of `go`; killed in the end."""
    code = (
        "import sys; from pathlib import Path; from darkroom.files import *\n"
        "folder = Path(sys.argv[1])\n"
        "def go(): print('there', flush=True); sys.stdin.read()\n" + body
    )
    found = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert found.stdout is not None
    assert found.stdin is not None
    try:
        assert found.stdout.readline() == "there\n"
        yield found
    finally:
        found.kill()
        found.wait()
        found.stdin.close()
        found.stdout.close()


@pytest.mark.parametrize("body", [WRITES, REPLACES])
def test_a_draft_stays_while_its_writer_lives_and_goes_at_the_next_start(tmp_path: Path, body: str) -> None:
    with process(tmp_path, body):
        (draft,) = names(tmp_path)
        clear_drafts(tmp_path)
        assert names(tmp_path) == [draft]
    assert names(tmp_path) == [draft]  # killed: nobody has cleared it
    with whole_file(tmp_path / "b") as file:  # this process's first in the folder
        file.write_text("b")
    assert names(tmp_path) == ["b"]


def test_a_writer_leaves_no_draft_however_it_ends(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a"):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "m", "mark"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_was_about_to_be_replaced_is_put_back(tmp_path: Path, there: bool) -> None:
    """Killed between the two renames, or after them."""
    with process(tmp_path, REPLACES):
        pass
    (draft,) = tmp_path.iterdir()
    old = draft.with_suffix(".old")
    old.mkdir()
    (old / "mark").write_text("old")
    if there:
        draft.rename(tmp_path / "m")
    clear_drafts(tmp_path)
    assert names(tmp_path) == ["m"]
    assert (tmp_path / "m" / "mark").read_text() == ("new" if there else "old")


def test_the_folder_of_a_living_writer_is_not_put_back(tmp_path: Path) -> None:
    with process(tmp_path, REPLACES):
        (draft,) = tmp_path.iterdir()
        draft.with_suffix(".old").mkdir()
        clear_drafts(tmp_path)
        assert names(tmp_path) == [draft.with_suffix(".old").name, draft.name]


def test_a_run_has_one_owner_who_is_named(tmp_path: Path) -> None:
    with process(tmp_path, OWNS) as owner:
        said = rf"^run {tmp_path} is being written by process {owner.pid}; "
        with pytest.raises(TrainingError, match=said), owned(tmp_path, "run", TrainingError):
            pass
        assert names(tmp_path) == [OWNER]
    with owned(tmp_path, "run", TrainingError):  # void: it was killed
        assert (tmp_path / OWNER).read_text() == f"{os.getpid()}\n"
    assert names(tmp_path) == []


def test_a_thread_owns_a_folder_repeatedly_and_no_other_thread_does(tmp_path: Path) -> None:
    said: list[str] = []

    def other() -> None:
        try:
            with owned(tmp_path):
                said.append("owned")
        except Exception as error:
            said.append(str(error))

    with owned(tmp_path), owned(tmp_path / "." / ""):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert said == [
        f"the folder {tmp_path} is being written by process {os.getpid()}; wait for its end, or choose another folder"
    ]
    other()
    assert said[1:] == ["owned"]


def test_owning_clears_drafts_and_leaves_no_folder_that_nothing_came_of(tmp_path: Path) -> None:
    with process(tmp_path, WRITES):
        pass
    with owned(tmp_path):
        assert names(tmp_path) == [OWNER]
    with pytest.raises(ZeroDivisionError), owned(tmp_path / "new"):
        raise ZeroDivisionError
    assert names(tmp_path) == []
    with owned(tmp_path / "new"):
        (tmp_path / "new" / "made").write_text("x")
    assert names(tmp_path / "new") == ["made"]


def test_an_owner_that_is_no_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / OWNER).symlink_to(tmp_path / "mine")
    with pytest.raises(TrainingError, match="can't be written"), owned(tmp_path, "run", TrainingError):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def _hold(owner: Any, ready: Any, leave: Any) -> None:
    ready.set()
    leave.wait()


def _own_and_start(folder: Path, ready: Any, leave: Any, number: Any) -> None:
    with owned(folder) as owner:
        child = multiprocessing.get_context("spawn").Process(target=_hold, args=(owner, ready, leave))
        child.start()
        ready.wait()
        number.put(os.getpid())
        child.join()


def test_ranks_of_an_owner_that_was_killed_hold_the_folder_until_they_have_left(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave, number = context.Event(), context.Event(), context.Queue()
    owner = context.Process(target=_own_and_start, args=(tmp_path, ready, leave, number))
    owner.start()
    os.kill(number.get(), signal.SIGKILL)
    owner.join()
    entered = threading.Event()

    def claim() -> None:
        with owned(tmp_path):
            entered.set()

    thread = threading.Thread(target=claim)
    thread.start()
    assert not entered.wait(0.5)
    leave.set()
    thread.join(30)
    assert entered.is_set()
