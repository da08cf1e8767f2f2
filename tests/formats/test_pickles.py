import collections
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import threading
import types
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darkroom.errors import CheckpointError
from darkroom.formats.tensors import open_tensors, read_pickle_tensors
from darkroom.formats.torchfile import answer

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])

storage = torch.linspace(-3, 3, 60)
TENSORS = {
    "whole": storage.reshape(3, 4, 5),
    "slice": storage[7:19].reshape(3, 4),
    "turned": storage.reshape(6, 10).t(),
    "stepped": storage.reshape(6, 10)[::2, 1::3],
    "channels_last": torch.linspace(0, 1, 24).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "double": torch.tensor([1e300], dtype=torch.float64),
    "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "brain": torch.tensor([1.5], dtype=torch.bfloat16),
    "ids": torch.arange(77)[None],
    "small": torch.tensor([-1], dtype=torch.int8),
    "mask": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5),
    "nothing": torch.zeros(0, 4),
}


def save(value, path, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def refused(path) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_tensors(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert not sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def equal(path, tensors) -> None:
    """Asserts that the file holds just these tensors."""
    with open_tensors(path) as file:
        assert file.names() == list(tensors)
        for name, tensor in tensors.items():
            read = file.load(name)
            assert file.shape(name) == tuple(tensor.shape)
            assert file.dtype(name) == read.dtype == tensor.dtype
            assert read.is_contiguous()
            assert torch.equal(read, tensor)


@FORMATS
def test_every_type_and_stride_is_read_exactly(tmp_path, zipped):
    equal(save(TENSORS, tmp_path / "any.name", zipped), TENSORS)


def test_newer_types(tmp_path):
    tensors = {
        "eighth": torch.tensor([0.5, 448.0]).to(torch.float8_e4m3fn),
        "unsigned": torch.tensor([1, 65535], dtype=torch.uint16),
    }
    with open_tensors(save(tensors, tmp_path / "x")) as file:
        assert file.load("eighth").float().tolist() == [0.5, 448.0]
        assert file.load("unsigned").tolist() == [1, 65535]


@FORMATS
def test_weights_of_a_trainer_with_all_its_belongings(tmp_path, zipped, monkeypatch):
    """As Lightning writes: callbacks, keyed by class and as objects, an optimizer, hyper-parameters, numbers."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, "pytorch_lightning.callbacks", types.ModuleType("pytorch_lightning.callbacks"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("class ModelCheckpoint:\n    pass\nclass AttributeDict(dict):\n    pass", module.__dict__)
    callback = module.ModelCheckpoint()
    callback.best = torch.tensor(1.0)
    linear = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    value = {
        "epoch": 3,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {module.ModelCheckpoint: {"best": torch.tensor(0.5)}, "object": callback},
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": module.AttributeDict(lr=1e-4),
        "loops": {"done": {1, 2}, "range": range(3), "complex": 1j, "bytes": b"x"},
        "state_dict": linear.state_dict(),  # an OrderedDict with an attribute
    }
    path = save(value, tmp_path / "x.ckpt", zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # which is why we read it ourselves
    equal(path, linear.state_dict())


def test_a_parent_with_threads_and_another_default_device(tmp_path):
    path = save(TENSORS, tmp_path / "x.bin")
    failures = []

    def read():
        try:
            equal(path, TENSORS)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    with torch.device("meta"), open_tensors(path) as file:
        assert file.load("whole").device.type == "cpu"
    for thread in threads:
        thread.join()
    assert not failures


def test_poison_is_named(tmp_path):
    path = save({"state_dict": {"w": torch.tensor([1.0, float("nan")])}}, tmp_path / "x")
    with open_tensors(path) as file, pytest.raises(CheckpointError, match="the tensor w holds NaN"):
        file.load("w")
    with pytest.raises(CheckpointError, match=r"the tensor emb\.w holds NaN"):
        read_pickle_tensors(save({"emb": {"w": torch.tensor([float("inf")])}}, tmp_path / "x"))


def test_a_sharded_set_of_pickles(tmp_path):
    save({"a": torch.ones(2)}, tmp_path / "m-1.bin")
    save({"b": torch.zeros(3)}, tmp_path / "m-2.bin", zipped=False)
    index = tmp_path / "m.bin.index.json"
    index.write_text('{"weight_map": {"b": "m-2.bin", "a": "m-1.bin"}}')
    equal(index, {"b": torch.zeros(3), "a": torch.ones(2)})


# --- hostile ---------------------------------------------------------------------------------------------------------


class Call:
    """Pickles to a call of any function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class State(Call):
    """Pickles to an object whose state, items and elements come from a call."""

    def __reduce__(self):
        call = Call(self.function, *self.args)
        return collections.OrderedDict, (), {"state": call}, iter([call]), iter([("key", call)])


def attacks(marker):
    yield Call(os.system, f"touch {marker}")
    yield Call(eval, f"open({str(marker)!r}, 'w')")
    yield Call(exec, f"open({str(marker)!r}, 'w')")
    yield Call(open, str(marker), "w")
    yield Call(subprocess.Popen, ["touch", str(marker)])
    yield Call(getattr(os, "mkdir"), str(marker))  # noqa: B009
    yield Call(__import__, "antigravity")
    yield Call(getattr, Call(__import__, "os"), "system")
    yield Call(torch.hub.load, str(marker.parent), "x")
    yield State(os.system, f"touch {marker}")
    yield os.system  # named, never called


@FORMATS
def test_nothing_is_ever_executed(tmp_path, zipped):
    marker = tmp_path / "executed"
    for attack in attacks(marker):
        value = {"w": torch.ones(1), "deep": [{"x": (attack,)}]}
        assert "which no weights need" in refused(save(value, tmp_path / "model.safetensors", zipped))
        for value in (attack, {"state_dict": attack}, {"state_dict": {"w": torch.ones(1), "a": attack}}):
            file = io.BytesIO(save(value, tmp_path / "model.ckpt", zipped).read_bytes())
            for mode in ("names", "tree"):
                assert "which no weights need" in answer(file, mode)["error"]
    with pytest.raises(CheckpointError, match="which no weights need"):
        read_pickle_tensors(tmp_path / "model.ckpt")
    assert not marker.exists()


def test_raw_pickles_of_every_protocol(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "model.ckpt"
    for protocol in range(6):
        path.write_bytes(pickle.dumps(Call(os.system, f"touch {marker}"), protocol))
        assert ("which no weights need" if protocol > 1 else "is no weights file") in refused(path)
        path.write_bytes(b"\x80\x02" + pickle.dumps(Call(os.system, f"touch {marker}"), protocol))
        assert "which no weights need" in refused(path)
    for old in (b"(S'touch %s'\nios\nsystem\n.", b"(cos\nsystem\nS'touch %s'\no."):  # INST and OBJ
        path.write_bytes(b"\x80\x02" + old % str(marker).encode())
        assert "which no weights need" in refused(path)
    path.write_bytes(b"\x80\x04\x8c\x0etorch.os.systemh\x00.")
    assert "pickle" in refused(path)
    path.write_bytes(b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93.")
    assert "names torch.os.system" in refused(path)
    path.write_bytes(pickle.dumps({"a": 1}, 4))
    assert "not one of PyTorch's" in refused(path)
    assert not marker.exists()


def test_unknown_objects_are_inert(tmp_path, monkeypatch):
    """A class whose module would do harm when imported is neither imported nor made."""
    marker = tmp_path / "imported"
    (tmp_path / "trap.py").write_text(f"open({str(marker)!r}, 'w')\nclass Thing:\n    pass\n")
    module = types.ModuleType("trap")
    monkeypatch.setitem(sys.modules, "trap", module)
    exec("class Thing:\n    pass", module.__dict__)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    equal(save({"w": torch.ones(2), "thing": module.Thing()}, tmp_path / "x"), {"w": torch.ones(2)})
    assert not marker.exists()


def test_the_child_gives_up_its_means(tmp_path):
    script = (
        "import socket, os; from darkroom.formats.torchfile import confine; confine()\n"
        "for attempt in (lambda: open('/etc/hostname'), socket.socket, os.pipe, lambda: bytearray(4 << 30)):\n"
        "    try: attempt(); print('possible')\n"
        "    except (OSError, MemoryError) as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["OSError", "OSError", "OSError", "MemoryError"]


def rezip(path, change, compression=zipfile.ZIP_STORED):
    """Writes an archive anew with its records changed by `change`: list of (name, bytes) -> list of the same."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in change(records):
            archive.writestr(name, content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_pytorch_would_not_write(tmp_path):
    path = tmp_path / "x.ckpt"

    def archive(change=lambda records: records, compression=zipfile.ZIP_STORED):
        return rezip(save({"w": torch.zeros(1000)}, path), change, compression)

    equal(archive(), {"w": torch.zeros(1000)})  # packed anew, but stored
    assert "compressed or encrypted" in refused(archive(compression=zipfile.ZIP_DEFLATED))
    assert "twice" in refused(archive(lambda records: [*records, ("x/data/0", bytes(4000))]))
    for name in ("../evil", "/evil", "x/../../evil", "x\\..\\evil", "x/\nevil"):
        assert "suspicious name" in refused(archive(lambda records, name=name: [*records, (name, b"")]))
    gone = archive(lambda records: [r for r in records if not r[0].endswith("/0")])
    assert "record 0 is missing" in refused(gone)
    short = archive(lambda records: [(n, c[:-4] if n.endswith("data/0") else c) for n, c in records])
    assert "record 0 of 3996 bytes is too short" in refused(short)
    swapped = archive(lambda records: [(n, b"big" if n.endswith("byteorder") else c) for n, c in records])
    assert "big-endian" in refused(swapped)
    assert "no PyTorch checkpoint" in refused(archive(lambda _: [("readme.txt", b"hello")]))
    assert "no PyTorch checkpoint" in refused(archive(lambda _: []))
    assert "TorchScript" in refused(archive(lambda records: [*records, ("x/code/__torch__.py", b"")]))


def test_archives_with_bytes_that_nobody_describes(tmp_path):
    path = save({"w": torch.zeros(1000)}, tmp_path / "x.ckpt")
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    assert "trailing bytes" in refused(path)
    path.write_bytes(b"PK\x03\x04" + bytes(60) + whole)
    assert "zip archive" in refused(path)
    path.write_bytes(b"#!/bin/sh\n" + whole)
    assert "is no weights file" in refused(path)
    for length in (4, 100, 1000, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert f"cut short or with trailing bytes ({length} bytes)" in refused(path)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        directory = archive.start_dir
    # the central directory's last entry made to describe the first one's bytes again
    place = whole.rindex(b"PK\x01\x02")
    first = infos["x/data.pkl"].header_offset
    path.write_bytes(whole[: place + 42] + struct.pack("<I", first) + whole[place + 46 :])
    assert directory < place
    assert "disagree" in refused(path) or "overlapping" in refused(path)


def test_a_legacy_file_of_another_length(tmp_path):
    path = save({"w": torch.zeros(1000)}, tmp_path / "x.pt", zipped=False)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0\0")
    assert f"trailing bytes: it describes {len(whole)} bytes but the file has {len(whole) + 2}" in refused(path)
    path.write_bytes(whole[:-5])
    assert f"is cut short: it describes {len(whole)} bytes but the file has {len(whole) - 5}" in refused(path)
    for length in (2, 15, 60, 200):
        path.write_bytes(whole[:length])
        assert "download it again" in refused(path)


def with_pickle(path, program: bytes):
    """A zip checkpoint whose pickle is `program`; its only record, "0", has 16 bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", bytes(16))
    return path


class Described:
    """Pickles to torch's tensor builder with any numbers."""

    def __init__(self, offset, shape, stride, elements=4):
        self.numbers, self.elements = (offset, shape, stride), elements

    def dump(self) -> bytes:
        def pid(key):
            return key.pid if isinstance(key, Key) else None

        stream = io.BytesIO()
        pickler = pickle.Pickler(stream, 2)
        pickler.persistent_id = pid
        pickler.dump({"w": Call(torch._utils._rebuild_tensor_v2, Key(self.elements), *self.numbers, False, {})})
        return stream.getvalue()


class Key:
    def __init__(self, elements):
        self.pid = ("storage", torch.FloatStorage, "0", "cpu", elements)


@pytest.mark.parametrize(
    ("offset", "shape", "stride", "elements", "words"),
    [
        (1, (4,), (1,), 4, "reaches outside its storage"),
        (0, (2, 2), (3, 2), 4, "reaches outside its storage"),
        (0, (2, 2), (1, 0), 4, "repeats the bytes"),
        (0, (1 << 20, 1 << 20), (0, 0), 4, "repeats the bytes"),
        (0, (1 << 40,), (1,), 1 << 40, "record 0 of 16 bytes is too short"),
        (0, (-1,), (1,), 4, "impossible"),
        (0, (4,), (-1,), 4, "impossible"),
        (-4, (4,), (1,), 4, "impossible"),
        (0, (1 << 100,), (1,), 4, "impossible"),
        (0, (2, 2), (1,), 4, "impossible"),
        (0, (4.0,), (1,), 4, "impossible"),
        (0, (1,) * 40, (1,) * 40, 4, "impossible"),
        (0, 4, 1, 4, "broken pickle"),
        (0, (4,), (1,), -4, "broken pickle"),
        (0, (4,), (1,), "4", "broken pickle"),
    ],
)
def test_impossible_tensors(tmp_path, offset, shape, stride, elements, words):
    good = with_pickle(tmp_path / "x", Described(1, (3,), (1,)).dump())
    equal(good, {"w": torch.zeros(3)})
    assert words in refused(with_pickle(tmp_path / "x", Described(offset, shape, stride, elements).dump()))


def test_bombs_end_in_one_sentence(tmp_path):
    path = tmp_path / "x"
    nested = b"\x80\x02N" + b"\x85" * 200_000 + b"."  # a tuple in a tuple in a tuple, ...
    assert "holds a tuple" in refused(with_pickle(path, nested))
    hashed = b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns."  # ... as the key of a dict
    assert "broken" in refused(with_pickle(path, hashed))
    assert "broken" in refused(with_pickle(path, b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"x."))
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.")
    assert "broken" in refused(path)
    laughs = b"\x80\x02]q\x00" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(60)) + b"."
    assert "holds a list" in refused(with_pickle(path, laughs))
    with pytest.raises(CheckpointError, match="more than 200000 values"):
        read_pickle_tensors(with_pickle(path, laughs))
    looped = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01h\x00s."  # a dict that holds itself
    assert "holds no named tensors" in refused(with_pickle(path, looped))
    read_pickle_tensors(path)
    number = b"\x80\x02\x8b" + struct.pack("<I", 5_000_000) + b"\x7f" * 5_000_000 + b"."
    assert read_pickle_tensors(with_pickle(path, number)) is None


@FORMATS
def test_what_holds_no_named_tensors(tmp_path, zipped):
    path = tmp_path / "x"
    for value in ({"epoch": 1}, {}, {"state_dict": {}}, {"state_dict": {"a": 1}}, {3: torch.ones(1)}):
        assert "holds no named tensors" in refused(save(value, path, zipped))
    assert "holds a list" in refused(save([torch.ones(1)], path, zipped))
    assert "holds a single tensor" in refused(save(torch.ones(1), path, zipped))
    assert "torch.nn.modules.linear.Linear" in refused(save(torch.nn.Linear(2, 2), path, zipped))
    names = {f"t{i}": torch.ones(()).expand(1)[0] for i in range(20_001)} if zipped else {"a\n": torch.ones(1)}
    assert ("20001 tensors" if zipped else "suspicious name") in refused(save(names, path, zipped))


def test_embedding_files(tmp_path):
    vector = torch.linspace(-1, 1, 6).reshape(2, 3)
    a1111 = {
        "string_to_token": {"*": 265},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vector)}),
        "name": "cat",
        "step": 499,
        "sd_checkpoint": None,
        "rate": 0.5,
        "flags": [True, "ünï"],
    }
    read = read_pickle_tensors(save(a1111, tmp_path / "cat.pt"))
    assert torch.equal(read.pop("string_to_param")["*"], vector)
    assert read == {name: value for name, value in a1111.items() if name != "string_to_param"}
    plain = read_pickle_tensors(save({"string_to_param": {"*": vector}}, tmp_path / "cat.pt", zipped=False))
    assert torch.equal(plain["string_to_param"]["*"], vector)
    learned = read_pickle_tensors(save({"<cat>": vector[0]}, tmp_path / "learned_embeds.bin"))
    assert torch.equal(learned["<cat>"], vector[0])
    with pytest.raises(CheckpointError, match="no PyTorch pickle"):
        read_pickle_tensors(__file__)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A small valid checkpoint in both formats."""
    path = tmp_path_factory.mktemp("original") / "x"
    value = {"state_dict": {"w": torch.ones(3), "v": torch.zeros(2, 2).t()}, "epoch": 1, "o": Call(collections.Counter)}
    return [save(value, path, zipped).read_bytes() for zipped in (True, False)]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_is_answered(originals, data):
    content = bytearray(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        kind = data.draw(st.sampled_from(["set", "set", "insert", "delete", "cut"]))
        opcode = st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes])
        new = data.draw(opcode | st.binary(min_size=1, max_size=4))
        match kind:
            case "set":
                content[place : place + len(new)] = new
            case "insert":
                content[place:place] = new
            case "delete":
                del content[place : place + len(new)]
            case "cut":
                del content[place:]
    for mode in ("names", "tree"):
        result = answer(io.BytesIO(content), mode)
        assert result.keys() <= {"error", "tensors", "tree"}
        for _, dtype, shape, stride, offset in result.get("tensors", ()):
            assert isinstance(dtype, str)
            assert all(type(n) is int and n >= 0 for n in [*shape, *(stride or ()), offset])
            assert offset <= len(content)
