"""Pickles in which a few bytes stand for endless work: each ends at once, in a sentence or with what is plain in it."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from darkroom.errors import CheckpointError
from darkroom.formats import tensors
from darkroom.formats.tensors import open_tensors, read_pickle_tensors
from darkroom.formats.torchfile import MAX_TEXT, MAX_VALUES, MEMORY, SECONDS
from darkroom.formats.unpickle import Fault, plain_keys

P = b"\x80\x02"
TWICE = b"2\x86"  # DUP TUPLE2: (x, x) of x


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(length: int) -> bytes:
    """A whole number of so many bytes."""
    return b"\x8b" + struct.pack("<I", length) + b"\x7f" * length


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def tensor(shape: bytes, stride: bytes, elements: bytes = b"K\x04") -> bytes:
    storage = b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + elements + b"tQ"
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"K\x00" + shape + stride + b"\x89}tR"


def ones(count: int) -> bytes:
    return b"(" + b"K\x01" * count + b"t"


def doubled(start: bytes, item: bytes, close: bytes, levels: int = 200) -> bytes:
    """`start` holds nothing; each further one holds the one before twice."""
    return (
        start + b"q\x00" + b"".join(start + b"(" + item % (i, i) + close + b"q" + bytes([i + 1]) for i in range(levels))
    )


PAIRS = b"](" + b"".join(text(f"{i:x}") + b"N\x86" for i in range(10_000)) + b"eq\x000"
ITEMS = b"}(" + b"".join(text(f"{i:x}") + b"N" for i in range(10_000)) + b"uq\x000"
ORDERED = named("collections", "OrderedDict")
PARAMETERS = named("torch.nn", "ParameterDict") + b")\x81}("
DEEP = b"K\x01" + TWICE * 400
PROGRAMS = {
    "a tuple in itself as a key": b"}" + DEEP + b"K\x01s.",
    "the same by the opcode of a dict": b"(" + DEEP + b"K\x01d.",
    "the same by a call": ORDERED + b"(](" + DEEP + b"K\x01\x86e\x85R.",
    "the same by another call": named("__builtin__", "dict") + b"](" + DEEP + b"K\x01\x86e\x85R.",
    "the same in an object": named("a", "b") + b")\x81" + DEEP + b"K\x01s.",
    "the same among a ParameterDict's keys": PARAMETERS + text("_keys") + b"](" + DEEP + b"eub.",
    "lists in lists": doubled(b"]", b"h%ch%c", b"e") + b".",
    "dicts in dicts": doubled(b"}", b"K\x01h%cK\x02h%c", b"u") + b".",
    "tuples in tuples": b"N" + TWICE * 10_000 + b".",
    "sets in sets": b"(K\x01\x91" + b"\x94(h\x00h\x00\x91" * 200 + b".",
    "shapes of many dimensions": b"}("
    + b"".join(text(f"{i}") + tensor(ones(50_000) + b"q\x07" if not i else b"h\x07", b"h\x07") for i in range(500))
    + b"u.",
    "names of many characters": text("x" * 600) + b"q\x010}(h\x01" + tensor(ones(1), ones(1)) + b"u.",
    "long whole numbers": b"](" + whole(200_000) + b"q\x01" + b"h\x01" * 100_000 + b"e.",
    "long whole numbers as keys": b"}(" + whole(200_000) + b"q\x01K\x01" + b"h\x01K\x01" * 60_000 + b"u.",
    "a long whole number of elements": b"}" + text("w") + tensor(ones(1), ones(1), whole(100_000)) + b"s.",
    "a long decimal": b"L" + b"9" * 1_000_000 + b"L\n.",
    "a text": b"}" + text("name") + text("\U0001f600" * 1_000_000) + b"s.",
    "a text again and again": b"](" + text("\U0001f600" * 100_000) + b"q\x01" + b"h\x01" * 100_000 + b"e.",
    "a key again and again": text("\U0001f600" * 100_000) + b"q\x010](" + b"}h\x01Ns" * 20_000 + b"e.",
    "a tensor again and again": b"](" + tensor(ones(1), ones(1)) + b"q\x01" + b"h\x01" * 100_000 + b"e.",
    "calls of calls": named("a", "b") + b")R" * 100_000 + b".",
    "states of themselves": named("a", "b") + b")R" + b"2b" * 100_000 + b".",
    "a type in itself": named("torch._tensor", "_rebuild_from_type_v2") + b"q\x00]q\x01(h\x00Nh\x01eR.",
    "copies by a type": PAIRS
    + ORDERED
    + b"q\x010"
    + named("torch._tensor", "_rebuild_from_type_v2")
    + b"q\x020"
    + b"h\x02(h\x01Nh\x00\x85tR0" * 10_000
    + b"N.",
    "copies of a list": PAIRS + ORDERED + b"q\x010" + b"h\x01h\x00\x85R0" * 10_000 + b"N.",
    "copies of a dict": ITEMS + ORDERED + b"q\x010" + b"h\x01h\x00\x85R0" * 10_000 + b"N.",
    "a ParameterDict again and again": PARAMETERS
    + text("_parameters")
    + ITEMS[:-1]
    + text("_keys")
    + b"]("
    + b"K\x01" * 50_000
    + b"eubq\x01]("
    + b"h\x01" * 20_000
    + b"e.",
    "keys without end": b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(100_000)) + b"u.",
    "dicts without end": b"](" + b"}" * 100_000 + b"e.",
    "sets without end": b"](" + b"\x8f" * 100_000 + b"e.",
    "marks without end": b"(" * 100_000 + b".",
    "a class of dots": text("." * 100_000) + b"\x94" + b"h\x00\x8c\x01x\x930" * 50_000 + b".",
}


def zipped(path, program: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", P + program)
        archive.writestr("a/data/0", bytes(16))
    return path


def legacy(path, program: bytes):
    start = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    head = b"".join(pickle.dumps(part, 2) for part in start)
    path.write_bytes(head + P + program + pickle.dumps(["0"], 2) + struct.pack("<Q", 4) + bytes(16))
    return path


@pytest.mark.parametrize(
    ("what", "write"), [*((what, zipped) for what in PROGRAMS), *((what, legacy) for what in list(PROGRAMS)[::4])]
)
def test_bombs(tmp_path, what, write):
    """Stopped by a limit of its own: neither by the allowance of seconds, nor by that of memory."""
    path = write(tmp_path / "x", PROGRAMS[what])
    with pytest.raises(CheckpointError) as caught:
        open_tensors(path)
    said = [str(caught.value)]
    try:
        read_pickle_tensors(path, finite=False)
    except CheckpointError as error:
        said.append(str(error))
    for sentence in said:
        assert sentence.startswith(f"{path} ")
        assert not sentence.endswith(".")
        assert "\n" not in sentence
        assert len(sentence) < len(str(path)) + 200
        assert "than a file of its size should" not in sentence
        assert "status" not in sentence


def test_a_million_records(tmp_path):
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", P + b"}.")
        for i in range(10_000):
            archive.writestr(f"a/data/{i}", b"")
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        open_tensors(path)


def test_what_no_limit_foresees_ends_at_the_allowance(tmp_path):
    """A child that computes or grows for ever, by a reader that has been made to."""
    path = zipped(tmp_path / "x", b"N.")
    script = (
        "import sys; from darkroom.formats import torchfile\n"
        "def loop(*_): any(iter(int, 1))\n"
        "def grow(*_): [bytes(1 << 20) for _ in iter(int, 1)]\n"
        "torchfile.interpret = {loop}; torchfile.SECONDS = (1, 60); torchfile.main()"
    )
    for name, words in (("loop", None), ("grow", "needs more memory")):
        with open(path, "rb") as file:
            done = subprocess.run(
                [sys.executable, "-c", script.format(loop=name), "names"], stdin=file, capture_output=True, timeout=120
            )
        if words is None:
            assert done.returncode == -24  # SIGXCPU
        else:
            assert words in json.loads(done.stdout)["error"]
    assert SECONDS[0] <= 3
    assert MEMORY[0] <= 300 << 20


def test_the_sentence_of_a_child_that_was_stopped(tmp_path, monkeypatch):
    path = zipped(tmp_path / "x", b"N.")
    monkeypatch.setattr(tensors, "_CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGXCPU)")
    with pytest.raises(CheckpointError, match="takes more time to be looked at than a file of its size should"):
        open_tensors(path)


def test_keys_that_are_kept():
    odd = [(("a", ("b",)), 1), (None, 2), (2.5, 3), (1 << 64, 4), (b"x", 5), (True, 6)]
    assert plain_keys([("a", 1), *odd, (3, 7), ("a", 8)]) == {"a": 8, 3: 7}
    with pytest.raises(Fault, match="tuples of tuples of tuples"):
        plain_keys([((((1,),),), 1)])


def test_a_changed_file_is_asked_anew(tmp_path):
    path, kept = tmp_path / "x.pt", tmp_path / "y.pt"
    torch.save({"a": torch.ones(2)}, path)
    with open_tensors(path) as file:
        assert file.names() == ["a"]
    times = path.stat()
    torch.save({"b": torch.ones(2)}, kept)  # of the same length
    path.write_bytes(kept.read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with open_tensors(path) as file:
        assert file.names() == ["b"]


def test_more_values_than_are_read_whole_are_refused(tmp_path):
    """Honest ones, which the child has room and time for, and which its answer would have room for."""
    emb = {"string_to_param": {"*": torch.zeros(1, 8)}}
    torch.save({**emb, "notes": list(range(MAX_VALUES - 100))}, tmp_path / "x.pt")
    assert len(read_pickle_tensors(tmp_path / "x.pt")["notes"]) == MAX_VALUES - 100
    torch.save({**emb, "notes": "x" * (MAX_TEXT - 1000)}, tmp_path / "x.pt")
    assert len(read_pickle_tensors(tmp_path / "x.pt")["notes"]) == MAX_TEXT - 1000
    for notes in (list(range(MAX_VALUES)), "x" * MAX_TEXT, {"x" * i: 0 for i in range(1500)}):
        torch.save({**emb, "notes": notes}, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match="holds more than 200000 values or 1048576 characters"):
            read_pickle_tensors(tmp_path / "x.pt")
