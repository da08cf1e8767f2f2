"""A loaded model moved, copied and pickled: what comes of it draws the same pictures, or a sentence says what to do."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import darkroom
from darkroom.errors import CheckpointError, RequestError
from darkroom.pipeline import Pipeline

LORA = "embedded:sepia"


def drawn(pipe: Pipeline, **asked: Any) -> torch.Tensor:
    return pipe.generate("a large fox", seed=1, steps=2, output="pt", **asked).images


@pytest.fixture(scope="module")
def folder(tiny_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipe.save(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def pipe(folder: Path) -> Pipeline:
    return darkroom.load(folder)


def changed(pipe: Pipeline) -> Pipeline:
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(1.5)
    return pipe


def through_pickle(pipe: Pipeline) -> Pipeline:
    made: Pipeline = pickle.loads(pickle.dumps(pipe))
    return made


@pytest.mark.parametrize("again", [through_pickle, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("change", [lambda pipe: pipe, changed])
def test_a_copy_draws_what_the_pipeline_draws(pipe: Pipeline, again: Any, change: Any, tmp_path: Path) -> None:
    drawn(pipe)  # with weights that are packed by now, and texts that are remembered
    before = drawn(change(pipe))
    pipe.scheduler_config["_class_name"] = "EulerDiscreteScheduler"
    pipe.loras.folder = tmp_path
    expected = drawn(pipe)
    assert not torch.equal(before, expected)
    made = again(pipe)
    assert made is not pipe
    assert torch.equal(drawn(made), expected)
    assert (made.name, made.loras.folder, made.model_hash) == (pipe.name, tmp_path, pipe.model_hash)
    made.scheduler_config["_class_name"] = "HeunDiscreteScheduler"
    made.loras.folder = None
    assert torch.equal(drawn(pipe), expected)
    assert pipe.loras.folder == tmp_path


def test_a_pickle_holds_what_has_changed_and_else_where_it_was_loaded_from(
    pipe: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder.parent)
    small = pickle.dumps(darkroom.load("./tiny"))
    assert len(small) < 2000
    monkeypatch.chdir(tmp_path)
    assert torch.equal(drawn(pickle.loads(small)), drawn(pipe))
    sizes = {part: sum(t.nbytes for t in net.state_dict().values()) for part, net in pipe.model.networks.items()}
    assert len(pickle.dumps(changed(pipe))) < sizes["unet"] + sizes["text_encoder"]  # of the U-Net alone


def test_shallow_copies_share_the_networks_and_deep_ones_do_not(pipe: Pipeline) -> None:
    shallow, deep = copy.copy(pipe), copy.deepcopy(pipe)
    assert shallow.unet is pipe.unet
    expected = drawn(deep)
    changed(pipe)
    assert torch.equal(drawn(shallow), drawn(pipe))
    assert torch.equal(drawn(deep), expected)
    assert not torch.equal(drawn(pipe), expected)


def test_merged_loras_go_with_it() -> None:
    """On the embedded model, which has one."""
    pipe = darkroom.load()
    plain = drawn(pipe)
    pipe.merge_loras(LORA)
    expected = drawn(pipe)
    for made in (through_pickle(pipe), copy.deepcopy(pipe)):
        assert torch.equal(drawn(made), expected)
        assert made.merged_loras[0].adapter.hash == pipe.merged_loras[0].adapter.hash
        made.unmerge_loras()
        assert torch.equal(drawn(made), plain)
        assert torch.equal(drawn(pipe), expected)
    shallow = copy.copy(pipe)
    shallow.unmerge_loras()  # of the weights that both have
    assert pipe.merged_loras == ()
    assert torch.equal(drawn(pipe), plain)


def test_what_can_not_be_pickled_says_what_to_do(tiny_pipe: Pipeline, pipe: Pipeline, folder: Path) -> None:
    with pytest.raises(RequestError, match=r"nothing says where they are; save it \(pipe.save\(FOLDER\)\)"):
        pickle.dumps(tiny_pipe)
    assert torch.equal(drawn(copy.deepcopy(tiny_pipe)), drawn(tiny_pipe))
    pipe.unet = tiny_pipe.unet
    with pytest.raises(RequestError, match="the pipeline's unet was replaced; make it of a model with that"):
        pickle.dumps(pipe)


def test_a_pickle_whose_model_has_become_another_one_is_refused(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    pipe = darkroom.load(tiny_pipe.save(tmp_path / "tiny"))
    kept = pickle.dumps(pipe)
    changed(pipe).save(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match=r"the pipeline was pickled with the model .*; bring that file back"):
        pickle.loads(kept)


def test_moved_to_other_numbers_and_back(pipe: Pipeline) -> None:
    expected = drawn(pipe)
    assert pipe.to("cpu", "bfloat16") is pipe
    assert pipe.dtype == torch.bfloat16
    coarse = drawn(pipe)
    assert 0 < (coarse - expected).abs().max() < 0.2
    assert torch.equal(drawn(through_pickle(pipe)), coarse)
    assert pipe.to(torch.float32).dtype == torch.float32  # as torch's modules take it
    assert (drawn(pipe) - expected).abs().max() < 0.2
    assert pipe.to(dtype="auto").to("cpu").dtype == torch.float32
    assert torch.equal(drawn(through_pickle(pipe)), drawn(pipe))  # with the weights as they were rounded


def test_what_can_not_be_moved_says_why(pipe: Pipeline, folder: Path) -> None:
    with pytest.raises(RequestError, match="device is 'tpu'; it must be auto, cpu"):
        pipe.to("tpu")
    with pytest.raises(RequestError, match='dtype is "float16", which a CPU computes a hundred times slower'):
        pipe.to("cpu", torch.float16)
    with pytest.raises(RequestError, match="dtype is 'float17'; it must be one of auto, float32"):
        pipe.to(dtype="float17")  # type: ignore[arg-type]
    rounded = darkroom.load(folder, quantize="int8")
    for act in (lambda: rounded.to("cpu"), lambda: copy.deepcopy(rounded)):
        with pytest.raises(RequestError, match="that was loaded with quantize='int8'"):
            act()


def test_merged_loras_are_moved() -> None:
    pipe = darkroom.load()
    pipe.merge_loras(LORA)
    before = drawn(pipe)
    assert torch.equal(drawn(pipe.to("cpu")), before)
    pipe.unmerge_loras()
    assert not torch.equal(drawn(pipe), before)


def test_loading_says_what_was_chosen(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "darkroom"):
        darkroom.load(folder, device="auto")
    (record,) = [r for r in caplog.records if r.name == "darkroom.loading"]
    threads = torch.get_num_threads()
    assert record.getMessage() == f"tiny (64x64) on cpu in float32, by torch, {threads} threads"
