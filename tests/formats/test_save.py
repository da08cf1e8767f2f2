"""Models out: diffusers opens what we write, we open it again byte for byte, and nothing is ever half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from darkroom.errors import CheckpointError
from darkroom.files import clear_drafts, whole_file, whole_folder
from darkroom.formats.artifact import convert, describe
from darkroom.formats.checkpoint import native_state, open_checkpoint
from darkroom.formats.layouts import table
from darkroom.formats.writer import Entry, write_safetensors

PARTS = ("unet", "autoencoder", "text_encoder")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_with_diffusers(pipe: Any, model: Any) -> None:
    """Every tensor of the pipeline that diffusers made is the model's."""
    text = {name.removeprefix("text_model."): tensor for name, tensor in pipe.text_encoder.state_dict().items()}
    text = {f"text_model.{name}": tensor for name, tensor in text.items()}
    theirs = {"unet": pipe.unet.state_dict(), "autoencoder": pipe.vae.state_dict(), "text_encoder": text}
    for part in PARTS:
        places = table(part, "diffusers", model.states[part], model.configs[part])
        for name, place in places.items():
            assert torch.equal(theirs[part][place.name], model.states[part][name]), name
    assert pipe.tokenizer.pad_token_id == model.tokenizer.pad_id
    assert pipe.tokenizer.model_max_length == 77
    ids = pipe.tokenizer("a red fox, blue").input_ids
    assert ids == [model.tokenizer.bos_id, *model.tokenizer.encode("a red fox, blue"), model.tokenizer.eos_id]
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.config.steps_offset == 1


@pytest.mark.parametrize("family", ["sd1", "sd2", "inpainting", "upscaler"])
def test_diffusers_opens_the_folder(tiny_models: dict[str, Any], tmp_path: Path, family: str) -> None:
    from diffusers import DiffusionPipeline

    model = tiny_models[family]
    low_res = {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear"} if family == "upscaler" else None
    path = model.save(tmp_path / "model", low_res_scheduler_config=low_res)
    pipe = DiffusionPipeline.from_pretrained(path, local_files_only=True)
    expected = {"inpainting": "StableDiffusionInpaintPipeline", "upscaler": "StableDiffusionUpscalePipeline"}
    assert type(pipe).__name__ == expected.get(family, "StableDiffusionPipeline")
    check_with_diffusers(pipe, model)
    if family == "upscaler":
        assert pipe.low_res_scheduler.config.beta_schedule == "scaled_linear"
        assert open_checkpoint(path).low_res_scheduler_config == low_res


@pytest.mark.parametrize("family", ["sd1", "sd2", "inpainting"])
def test_diffusers_opens_the_single_file(tiny_models: dict[str, Any], tmp_path: Path, family: str) -> None:
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

    model = tiny_models[family]
    config, path = model.save(tmp_path / "config"), model.save(tmp_path / "m.safetensors")
    build = StableDiffusionInpaintPipeline if family == "inpainting" else StableDiffusionPipeline
    pipe = build.from_single_file(
        str(path), config=str(config), local_files_only=True, safety_checker=None, low_cpu_mem_usage=False
    )
    check_with_diffusers(pipe, model)


def test_other_tools_find_open_clips_24_layers(sd2: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    config = replace(sd2.configs["text_encoder"], num_hidden_layers=23)
    state = dict(sd2.states["text_encoder"])
    for name in [name for name in state if name.startswith("layers.0.")]:
        for layer in range(2, 23):
            state[name.replace("layers.0.", f"layers.{layer}.")] = state[name] + layer
    path = sd2.save(tmp_path / "m.safetensors", text_encoder=state, text_encoder_config=config)
    keys = load_file(path).keys()
    assert "cond_stage_model.model.transformer.resblocks.23.mlp.c_proj.bias" in keys
    assert "cond_stage_model.model.transformer.resblocks.24.mlp.c_proj.bias" not in keys
    again = native_state(open_checkpoint(path), "text_encoder", {name: t.shape for name, t in state.items()})
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("family", ["sd1", "sd2", "upscaler"])
def test_there_and_back_gives_the_same_bytes(tiny_models: dict[str, Any], tmp_path: Path, family: str) -> None:
    model = tiny_models[family]
    low_res = {"_class_name": "DDPMScheduler", "beta_start": 0.1} if family == "upscaler" else None
    folder = model.save(tmp_path / "a", low_res_scheduler_config=low_res)
    file = model.save(tmp_path / "a.safetensors", low_res_scheduler_config=low_res)
    assert convert(folder, tmp_path / "b.safetensors") == tmp_path / "b.safetensors"
    assert (tmp_path / "b.safetensors").read_bytes() == file.read_bytes()
    convert(str(file), tmp_path / "b")
    assert files(tmp_path / "b") == files(folder)


def test_half_precision(sd1: Any, tmp_path: Path) -> None:
    folder = sd1.save(tmp_path / "a")
    convert(folder, tmp_path / "half", dtype=torch.float16)
    convert(folder, tmp_path / "half.safetensors", dtype=torch.float16)
    for path in (tmp_path / "half", tmp_path / "half.safetensors"):
        checkpoint = open_checkpoint(path)
        for part in PARTS:
            for name, tensor in native_state(checkpoint, part, sd1.shapes(part)).items():
                assert torch.equal(tensor, sd1.states[part][name].half())
    sd1.states["unet"]["conv_in.weight"].view(-1)[0] = 1e6
    try:
        with pytest.raises(CheckpointError, match=r"conv_in\.weight .*float16"):
            sd1.save(tmp_path / "overflow", dtype=torch.float16)
    finally:
        sd1.states["unet"]["conv_in.weight"].view(-1)[0] = 0.5
    assert not (tmp_path / "overflow").exists()


def test_a_mixture_of_types_keeps_each(sd1: Any, tmp_path: Path) -> None:
    unet = {k: v.half() if k.startswith("down") else v for k, v in sd1.states["unet"].items()}
    mixed = sd1.save(tmp_path / "m.safetensors", unet=unet)
    load_file(mixed)  # safetensors itself wants each tensor aligned
    convert(mixed, tmp_path / "folder")
    state = native_state(open_checkpoint(tmp_path / "folder"), "unet", sd1.shapes("unet"))
    assert all(state[k].dtype == v.dtype and torch.equal(state[k], v) for k, v in unet.items())


def test_the_single_file_says_what_it_is(sd1: Any, tmp_path: Path) -> None:
    with safe_open(sd1.save(tmp_path / "m.safetensors"), "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.prediction_type"] == "v"
    assert json.loads(metadata["darkroom"])["unet"]["attention_head_dim"] == [8, 8]
    assert metadata["format"] == "pt"


def test_a_file_without_a_tokenizer_becomes_a_folder_with_clips(tmp_path: Path, sd2: Any) -> None:
    from dataclasses import replace

    from darkroom.prompts.tokenizer import Tokenizer

    config = replace(sd2.configs["text_encoder"], vocab_size=49408)
    state = {**sd2.states["text_encoder"], "token_embedding.weight": torch.zeros(49408, config.hidden_size)}
    path = sd2.save(tmp_path / "m.safetensors", text_encoder=state, text_encoder_config=config)
    assert open_checkpoint(path).tokenizer_folder is None
    convert(path, tmp_path / "folder")
    tokenizer = Tokenizer.from_folder(tmp_path / "folder" / "tokenizer")
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.encode("a fox")) == (49408, 0, [320, 3240])


# --- whole or not at all ---------------------------------------------------------------------------------------------


class Broken(dict[str, torch.Tensor]):
    """A state whose last tensor can't be had."""

    def __init__(self, state: dict[str, torch.Tensor], error: BaseException) -> None:
        super().__init__(state)
        self.error, self.reads = error, 0

    def __getitem__(self, name: str) -> torch.Tensor:
        self.reads += name == "norm_out.bias"
        if self.reads > 2:  # after its shape and type, when it is written
            raise self.error
        return super().__getitem__(name)


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), CheckpointError("no")])
def test_nothing_is_left_half_written(sd1: Any, tmp_path: Path, name: str, error: BaseException) -> None:
    expected = CheckpointError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        sd1.save(tmp_path / name, unet=Broken(sd1.states["unet"], error))
    assert list(tmp_path.iterdir()) == []
    before = sd1.save(tmp_path / name)
    content = files(before) if before.is_dir() else before.read_bytes()
    with pytest.raises(expected):
        sd1.save(tmp_path / name, unet=Broken(sd1.states["unet"], error))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (files(before) if before.is_dir() else before.read_bytes()) == content


def test_a_model_is_replaced_and_nothing_else_is(sd1: Any, sd2: Any, tmp_path: Path) -> None:
    path = sd1.save(tmp_path / "m")
    sd2.save(path)
    assert open_checkpoint(path).unet_config == sd2.configs["unet"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]
    precious = tmp_path / "precious"
    precious.mkdir()
    sd1.save(precious)  # an empty folder is nobody's
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="is not a model"):
        sd1.save(other)
    assert files(other) == {"letter.txt": b"dear"}
    with pytest.raises(CheckpointError, match="is not a model"):
        sd1.save(other / "letter.txt")
    with pytest.raises(CheckpointError, match="can't be written"):
        sd1.save(other / "letter.txt" / "m.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        sd1.save(tmp_path / "folder.safetensors")


def test_conversions_that_make_no_sense(sd1: Any, tmp_path: Path) -> None:
    path = sd1.save(tmp_path / "m")
    with pytest.raises(CheckpointError, match="no pickles"):
        convert(path, tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError, match="both the source and the target"):
        convert(path, tmp_path / "." / "m")
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(tmp_path / "none", tmp_path / "n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_the_old_folder_returns_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    path = tmp_path / "m"
    path.mkdir()
    (path / "mark").write_text("old")
    rename = os.rename

    def fail_once(source: Any, target: Any) -> None:
        if str(source).endswith(".part"):
            raise OSError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(CheckpointError, match="Permission denied"), whole_folder(path, "mark") as draft:
        (draft / "mark").write_text("new")
    assert files(tmp_path) == {"m/mark": b"old"}


def test_what_an_entry_promises_is_checked(tmp_path: Path) -> None:
    def write(*tensors: torch.Tensor, shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float32) -> None:
        write_safetensors(tmp_path / "t", [Entry("a", shape, dtype, lambda t=t: t) for t in tensors], {})

    with pytest.raises(CheckpointError, match=r"a is \[3\], not \[2\]"):
        write(torch.zeros(3))
    with pytest.raises(CheckpointError, match="comes twice"):
        write(torch.zeros(2), torch.zeros(2))
    with pytest.raises(CheckpointError, match="int64"):
        write(torch.zeros(2), dtype=torch.int64)
    with pytest.raises(CheckpointError, match="NaN"):
        write(torch.tensor([0.0, float("nan")]))
    write(torch.zeros(0, 4), shape=(0, 4))
    assert load_file(tmp_path / "t")["a"].shape == (0, 4)


# --- darkroom info ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_describe(tiny_models: dict[str, Any], tmp_path: Path, name: str) -> None:
    model = tiny_models["inpainting"]
    path = model.save(tmp_path / name)
    told = describe(path, with_hash=True)
    json.dumps(told)
    assert told["task"] == "inpainting"
    assert told["prediction_type"] == "v_prediction"
    assert told["scheduler"] == "DDIMScheduler"
    assert told["picture_size"] == 64
    assert told["hash"] == open_checkpoint(path).hash()
    assert told["size"] == (sum(map(len, files(path).values())) if path.is_dir() else path.stat().st_size)
    assert told["fault"] is None
    for part in PARTS:
        count = sum(tensor.numel() for tensor in model.states[part].values())
        assert told["parts"][part] == {
            "parameters": count,
            "dtypes": {"float32": len(model.states[part])},
            "fault": None,
        }
    assert told["parameters"] == sum(told["parts"][part]["parameters"] for part in PARTS)


def test_describe_tells_what_is_wrong(sd1: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = sd1.save(tmp_path / "m")
    vae = path / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({"strange": torch.zeros(1), **load_file(vae)}, vae)
    told = describe(str(path))
    assert "1 key is unknown (strange)" in told["parts"]["autoencoder"]["fault"]
    assert told["fault"] == told["parts"]["autoencoder"]["fault"]
    assert told["parts"]["unet"]["fault"] is None
    assert "hash" not in told


def test_what_a_killed_writer_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "model", "mark") as folder:
        (folder / "mark").write_text("x")
    with whole_file(tmp_path / "a.safetensors") as file:
        file.write_text("x")
    (tmp_path / "model").rename(tmp_path / folder.name)  # as a process that could not clean up would leave it
    (tmp_path / file.name).write_text("half")
    (tmp_path / f".model.{'0' * 8}.old").mkdir()
    kept = {"a.safetensors", ".model.part", ".x.0123456789.part", "model.01234567.part", ".link.01234567.part"}
    for other in sorted(kept - {"a.safetensors", ".link.01234567.part"}):
        (tmp_path / other).write_text("mine")
    (tmp_path / ".link.01234567.part").symlink_to(tmp_path / "a.safetensors")
    clear_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
