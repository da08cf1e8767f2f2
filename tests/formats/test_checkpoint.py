"""Opening real files: folders as diffusers writes them, single files of every kind, and broken ones."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from darkroom.errors import CheckpointError
from darkroom.formats import folder
from darkroom.formats.checkpoint import Checkpoint, native_state, open_checkpoint
from darkroom.formats.layouts import ema_name, table
from darkroom.formats.rules import native_shapes
from darkroom.formats.tensors import open_tensors

PARTS = ("unet", "autoencoder", "text_encoder")
SUBFOLDERS = {"unet": "unet", "autoencoder": "vae", "text_encoder": "text_encoder"}


def check_equal(checkpoint: Checkpoint, model: Any) -> None:
    """The checkpoint is that model, bit for bit."""
    for part in PARTS:
        state = native_state(checkpoint, part, model.shapes(part))
        assert state.keys() == model.states[part].keys()
        for name, tensor in model.states[part].items():
            assert torch.equal(state[name], tensor), (part, name)


@pytest.fixture
def sd1_folder(sd1: Any, tmp_path: Path) -> Path:
    return sd1.save(tmp_path / "model")


@pytest.fixture
def sd1_file(sd1: Any, tmp_path: Path) -> Path:
    return sd1.save(tmp_path / "model.safetensors")


def edit(path: Path, change: Any) -> None:
    """Rewrite a safetensors file with its tensors changed."""
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


# --- what diffusers writes -------------------------------------------------------------------------------------------


def write_with_diffusers(model: Any, place: Path, **options: Any) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    for part, build in (("unet", UNet2DConditionModel), ("autoencoder", AutoencoderKL)):
        network = build.from_config(model.configs[part].to_diffusers())
        network.load_state_dict(foreign(model, part))
        network.save_pretrained(place / SUBFOLDERS[part], **options)
    text = CLIPTextModel(CLIPTextConfig(**model.configs["text_encoder"].to_diffusers()))
    state = foreign(model, "text_encoder")
    if "text_model.final_layer_norm.weight" not in text.state_dict():
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    text.load_state_dict(state)
    options = {k: v for k, v in options.items() if k != "safe_serialization"}
    text.save_pretrained(place / "text_encoder", **options)


def foreign(model: Any, part: Any) -> dict[str, torch.Tensor]:
    places = table(part, "diffusers", model.states[part], model.configs[part])
    return {place.name: model.states[part][name] for name, place in places.items()}


@pytest.mark.parametrize("family", ["sd1", "sd2", "upscaler"])
@pytest.mark.parametrize(
    "options", [{}, {"safe_serialization": False}, {"variant": "fp16"}, {"max_shard_size": "100KB"}], ids=str
)
def test_folders_that_diffusers_wrote(
    tiny_models: dict[str, Any], tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    model = tiny_models[family]
    write_with_diffusers(model, tmp_path, **options)
    checkpoint = open_checkpoint(tmp_path)
    assert [checkpoint.config(part) for part in PARTS] == [model.configs[part] for part in PARTS]
    check_equal(checkpoint, model)
    wanted = {"safe_serialization": ".bin", "variant": ".fp16.safetensors", "max_shard_size": ".index.json"}
    for option, ending in wanted.items():
        if option in options:
            assert checkpoint.weights["unet"].path.name.endswith(ending)


def names_in(place: Path, *names: str) -> Path:
    place.mkdir()
    for name in names:
        (place / name).touch()
    return place


def test_which_weights_are_taken(tmp_path: Path) -> None:
    stem = "diffusion_pytorch_model"
    all_of_them = [
        f"{stem}.safetensors",
        f"{stem}.safetensors.index.json",
        f"{stem}.fp16.safetensors",
        f"{stem}.safetensors.index.fp16.json",
        f"{stem}.bin",
        f"{stem}.fp16.bin",
        f"{stem}.non_ema.safetensors",
    ]
    noise = [f"{stem}-00001-of-00002.safetensors", f"{stem}.fp16-00001-of-00002.safetensors", "model.onnx", "a.bin"]
    for k, expected in enumerate(all_of_them):
        place = names_in(tmp_path / str(k), *all_of_them[k:], *noise)
        assert folder.weights_file(place).name == expected
    place = tmp_path / "0"
    assert folder.weights_file(place, "fp16").name == f"{stem}.fp16.safetensors"
    assert folder.weights_file(place, "non_ema").name == f"{stem}.non_ema.safetensors"
    with pytest.raises(CheckpointError, match=r"has no weights .* it has a\.bin, .*model\.onnx"):
        folder.weights_file(names_in(tmp_path / "none", *noise))


def test_a_variant_nobody_has_is_refused(sd1_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights of the variant 'fp32'"):
        open_checkpoint(sd1_folder, variant="fp32")


def test_scheduler_tokenizer_and_padding(tiny_models: dict[str, Any], tmp_path: Path) -> None:
    first = open_checkpoint(tiny_models["sd1"].save(tmp_path / "one"))
    assert first.scheduler_config["prediction_type"] == "v_prediction"
    assert first.tokenizer_folder == tmp_path / "one/tokenizer"
    assert (first.name, first.task, first.kind) == ("one", "text-to-image", "diffusers folder")
    for part in ("tokenizer", "scheduler"):
        shutil.rmtree(tmp_path / "one" / part)
    (tmp_path / "one" / "model_index.json").unlink()
    bare = open_checkpoint(str(tmp_path / "one"))
    assert (bare.tokenizer_folder, bare.tokenizer().pad_id) == (None, 49407)
    assert bare.scheduler_config["_class_name"] == "PNDMScheduler"
    second = tiny_models["sd2"].save(tmp_path / "two")
    shutil.rmtree(second / "tokenizer")
    assert open_checkpoint(second).tokenizer().pad_id == 0


def test_old_attention_names_of_the_autoencoder(sd1: Any, sd1_folder: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                if f".{new}." in name:
                    tensors[name.replace(new, old)] = tensors.pop(name)

    edit(sd1_folder / "vae" / "diffusion_pytorch_model.safetensors", rename)
    check_equal(open_checkpoint(sd1_folder), sd1)


def test_a_whole_clips_configuration(sd1: Any, sd1_folder: Path) -> None:
    path = sd1_folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({"model_type": "clip", "text_config": json.loads(path.read_text())}))
    check_equal(open_checkpoint(sd1_folder), sd1)


# --- single files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2", "inpainting", "upscaler"])
def test_single_files_come_back_bit_for_bit(tiny_models: dict[str, Any], tmp_path: Path, family: str) -> None:
    model = tiny_models[family]
    checkpoint = open_checkpoint(model.save(tmp_path / "m.safetensors"))
    assert [checkpoint.config(part) for part in PARTS] == [model.configs[part] for part in PARTS]
    assert checkpoint.kind == "single file"
    assert checkpoint.task == {"inpainting": "inpainting", "upscaler": "upscaling"}.get(family, "text-to-image")
    check_equal(checkpoint, model)
    from darkroom.prompts.tokenizer import Tokenizer

    assert checkpoint.tokenizer_folder is not None
    assert Tokenizer.from_folder(checkpoint.tokenizer_folder).encode("a red fox!") == model.tokenizer.encode(
        "a red fox!"
    )
    place = checkpoint.tokenizer_folder
    del checkpoint
    assert not place.exists()


def test_a_foreign_checkpoint_with_everything_in_it(sd1: Any, sd1_file: Path, tmp_path: Path) -> None:
    """As CompVis's training wrote them: a pickle, nested, with buffers, averages, counters, without `text_model.`."""
    tensors: dict[str, Any] = {
        name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in load_file(sd1_file).items()
    }
    for name in list(tensors):
        if name.startswith("model.diffusion_model."):
            tensors[ema_name(name)] = tensors[name] + 1
    tensors["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    for name in ("betas", "alphas_cumprod_prev", "sqrt_one_minus_alphas_cumprod", "posterior_mean_coef1", "logvar"):
        tensors[name] = torch.zeros(1000)
    tensors["model_ema.decay"], tensors["model_ema.num_updates"] = torch.tensor(0.99), torch.tensor(7)
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": tensors, "global_step": 470000, "epoch": 3}, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.tokenizer_folder is None
    assert checkpoint.tokenizer().pad_id == 49407
    assert checkpoint.unet_config.heads == (8, 8)
    assert checkpoint.scheduler_config["prediction_type"] == "epsilon"
    checkpoint.configs = {
        **checkpoint.configs,
        "text_encoder": sd1.configs["text_encoder"],
    }  # its 12 channels a head can't be told
    check_equal(checkpoint, sd1)


def test_open_clips_last_layer_is_left_out(sd2: Any, tmp_path: Path) -> None:
    path = sd2.save(tmp_path / "m.safetensors")

    def deepen(tensors: dict[str, torch.Tensor]) -> None:
        start = "cond_stage_model.model.transformer.resblocks."
        for name in [name for name in tensors if name.startswith(f"{start}0.")]:
            for layer in range(2, 24):
                tensors[name.replace(f"{start}0.", f"{start}{layer}.")] = tensors[name] + layer
        tensors["cond_stage_model.model.text_projection"] = torch.zeros(24, 24)
        tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)

    edit(path, deepen)  # this also loses our own metadata
    checkpoint = open_checkpoint(path)
    assert checkpoint.text_encoder_config.num_hidden_layers == 23
    assert checkpoint.text_encoder_config.hidden_act == "gelu"
    state = native_state(checkpoint, "text_encoder", native_shapes(checkpoint.text_encoder_config))
    first, last = state["layers.0.attention.k.weight"], state["layers.22.attention.k.weight"]
    assert torch.equal(last, first + 22)
    assert torch.equal(first, sd2.states["text_encoder"]["layers.0.attention.k.weight"])
    assert "layers.23.norm1.weight" not in state


def test_averages_are_read_where_there_is_nothing_else(tmp_path: Path, sd1: Any) -> None:
    from dataclasses import replace

    widths = {"block_out_channels": (32,) * 4, "layers_per_block": (2,) * 4, "attention_levels": (True,) * 3 + (False,)}
    rest = {"heads": (8,) * 4, "transformer_layers": (1,) * 4, "only_cross_attention": (False,) * 4}
    config = replace(sd1.configs["unet"], **widths, **rest)
    state = {name: torch.randn(shape) for name, shape in native_shapes(config).items()}
    path = sd1.save(tmp_path / "m.safetensors", unet=state, unet_config=config)

    def average(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.diffusion_model.")]:
            tensors[ema_name(name)] = tensors.pop(name)
        tensors["model_ema.decay"] = torch.tensor(0.999)

    edit(path, average)
    checkpoint = open_checkpoint(path)
    assert checkpoint.unet_config == replace(config, sample_size=64)
    loaded = native_state(checkpoint, "unet", native_shapes(config))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_conversion_of_types_and_memory_of_their_own(sd2: Any, tmp_path: Path) -> None:
    path = sd2.save(tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(path)
    for part in PARTS:
        state = native_state(checkpoint, part, sd2.shapes(part), torch.bfloat16)
        for name, tensor in state.items():
            assert torch.equal(tensor, sd2.states[part][name].bfloat16()), name
            assert tensor.untyped_storage().nbytes() == 2 * tensor.numel(), "each tensor has memory of its own"
    path.write_bytes(b"")  # a loaded model doesn't need its file
    assert torch.equal(state["final_norm.weight"], sd2.states["text_encoder"]["final_norm.weight"].bfloat16())


def test_a_hash_begun_ahead_is_of_the_file_as_it_was(sd1_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd1_folder, tmp_path / "copied"))
    checkpoint, expected = open_checkpoint(folder), open_checkpoint(sd1_folder).hash()
    checkpoint.hash_ahead()
    for thread in threading.enumerate():
        if thread.name == "model hash":
            thread.join()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert checkpoint.hash() == expected
    gone = open_checkpoint(sd1_folder)
    gone = replace(gone, weights={**gone.weights, "unet": replace(gone.weights["unet"], path=tmp_path / "none")})
    gone.hash_ahead()  # a fault there is told to whoever asks
    with pytest.raises(CheckpointError, match="can't be read"):
        gone.hash()


def test_hashes(sd1_folder: Path, sd1_file: Path, tmp_path: Path, sd1: Any) -> None:
    def sha(*paths: Path) -> str:
        return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:10]

    checkpoint = open_checkpoint(sd1_file)
    expected = sha(sd1_file)
    assert checkpoint.hash() == expected
    sd1_file.unlink()
    assert checkpoint.hash() == expected
    assert open_checkpoint(sd1_folder).hash() == sha(sd1_folder / "unet" / "diffusion_pytorch_model.safetensors")
    write_with_diffusers(sd1, tmp_path / "sharded", max_shard_size="1MB")
    shards = sorted((tmp_path / "sharded" / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert open_checkpoint(tmp_path / "sharded").hash() == sha(*shards)


# --- strictness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "model.safetensors"])
def test_every_kind_of_damage_is_named(sd2: Any, tmp_path: Path, kind: str) -> None:
    """Random keys lost, added and reshaped: each is named in one sentence, with the file."""
    rng = random.Random(1)
    original = sd2.save(tmp_path / kind)
    for trial in range(36):
        part = PARTS[trial % 3]
        path = open_checkpoint(original).weights[part].path
        whole = load_file(path)
        starts = {"unet": "model.diff", "autoencoder": "first_stage", "text_encoder": "cond_stage"}
        start = starts[part] if original.is_file() else ""
        key = rng.choice([name for name in sorted(whole) if name.startswith(start) and whole[name].numel() > 1])
        damage = ("missing", "unknown", "wrong shape")[trial // 3 % 3]
        broken = dict(whole)
        if damage == "missing":
            del broken[key]
        elif damage == "unknown":
            broken[key + "_too"] = whole[key].clone()
            key += "_too"
        else:
            broken[key] = whole[key].flatten()[1:].clone()
        save_file(broken, path)
        with pytest.raises(CheckpointError) as error:
            native_state(open_checkpoint(original), part, sd2.shapes(part))
        sentence = str(error.value)
        assert key in sentence, (trial, key)
        assert damage in sentence
        assert str(path) in sentence
        assert "\n" not in sentence
        save_file(whole, path)


def test_many_faults_are_counted(sd1: Any, sd1_folder: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        for name in sorted(tensors)[:10]:
            del tensors[name]
        tensors["extra"] = torch.zeros(1)
        tensors["conv_out.bias"] = torch.zeros(5)
        normed = "up_blocks.0.resnets.0.norm1.bias"
        tensors[normed] = tensors[normed].long()

    edit(sd1_folder / "unet" / "diffusion_pytorch_model.safetensors", damage)
    with pytest.raises(CheckpointError) as error:
        native_state(open_checkpoint(sd1_folder), "unet", sd1.shapes("unet"))
    sentence = str(error.value)
    assert "keys are missing (" in sentence
    assert ", ...)" in sentence
    assert "1 key is unknown (extra)" in sentence
    assert "1 tensor has a wrong shape (conv_out.bias is [5] where [4] is expected)" in sentence
    assert "(up_blocks.0.resnets.0.norm1.bias is int64)" in sentence


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_poison_is_named(sd1: Any, sd1_file: Path, value: float) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["first_stage_model.decoder.conv_in.weight"][3, 2, 1, 1] = value

    edit(sd1_file, poison)
    checkpoint = open_checkpoint(sd1_file)
    with pytest.raises(CheckpointError, match=r"first_stage_model\.decoder\.conv_in\.weight"):
        native_state(checkpoint, "autoencoder", sd1.shapes("autoencoder"))


def test_two_spellings_of_one_tensor(sd1: Any, sd1_file: Path) -> None:
    spelled = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    other = spelled.replace("text_model.", "")
    edit(sd1_file, lambda tensors: tensors.update({other: tensors[spelled] + 1}))
    with pytest.raises(CheckpointError, match=rf"1 key is unknown \({other}\)"):
        native_state(open_checkpoint(sd1_file), "text_encoder", sd1.shapes("text_encoder"))


# --- folders that are something else, and configurations that are nonsense -------------------------------------------


def test_folders_that_are_no_model(sd1_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint("a\0b")
    with pytest.raises(CheckpointError, match=r"has no U-Net .*; it has nothing"):
        open_checkpoint(names_in(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match=r"has no U-Net .*; it has a\.txt, model\.safetensors"):
        open_checkpoint(names_in(tmp_path / "other", "model.safetensors", "a.txt"))
    shutil.copytree(sd1_folder / "text_encoder", sd1_folder / "text_encoder_2")
    with pytest.raises(CheckpointError, match="two text encoders, and its U-Net is not told what SDXL's is"):
        open_checkpoint(sd1_folder)
    shutil.rmtree(sd1_folder / "text_encoder_2")
    index = sd1_folder / "model_index.json"
    for name in ("KandinskyPipeline", "FluxPipeline", "StableDiffusion3Pipeline"):
        index.write_text(json.dumps({"_class_name": name}))
        with pytest.raises(CheckpointError, match=name):
            open_checkpoint(sd1_folder)
    index.write_text("{broken")
    open_checkpoint(sd1_folder)  # nothing in it is needed
    shutil.rmtree(sd1_folder / "vae")
    with pytest.raises(CheckpointError, match=r"has no autoencoder \(VAE\) \(a folder vae/\)"):
        open_checkpoint(sd1_folder)
    (sd1_folder / "unet").rename(sd1_folder / "transformer")
    with pytest.raises(CheckpointError, match="transformer instead of a U-Net"):
        open_checkpoint(sd1_folder)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "not valid JSON"),
        (b"[1, 2]", "holds a JSON list"),
        (b"null", "NoneType"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "1,048,"),
        (b'{"block_out_channels": "wide"}', "block_out_channels"),
        (b'{"block_out_channels": [32, -64]}', "-64"),
        (b'{"layers_per_block": 1000000000}', "1000000000"),
        (b'{"layers_per_block": [[64]]}', "layers_per_block"),
        (b'{"norm_eps": NaN}', "norm_eps"),
        (b'{"norm_num_groups": 7}', "norm_num_groups"),
        (b'{"down_block_types": ["Strange"]}', "Strange"),
        (b'{"down_block_types": 5}', "5"),
        (b'{"addition_embed_type": "text_time"}', "addition_embed_type"),
        (b'{"layers_per_block": 64, "transformer_layers_per_block": 64}', "16384 blocks"),
    ],
    ids=range(16),
)
def test_nonsense_configurations(sd1_folder: Path, raw: bytes, sentence: str) -> None:
    path = sd1_folder / "unet" / "config.json"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(sd1_folder)
    assert sentence in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600


def test_random_values_in_configurations_are_sentences_or_work(sd1_folder: Path) -> None:
    rng = random.Random(0)
    junk = [None, True, -1, 0, 3, 2**70, 1.5, float("nan"), "x", [], [1], [[1]], {}, {"a": 1}, "DownBlock2D"]
    for sub in SUBFOLDERS.values():
        path = sd1_folder / sub / "config.json"
        good = json.loads(path.read_text())
        for key in good:
            for value in rng.sample(junk, 5):
                path.write_text(json.dumps({**good, key: value}))
                try:
                    checkpoint = open_checkpoint(sd1_folder)
                except CheckpointError as error:
                    assert str(path) in str(error)  # noqa: PT017
                    continue
                assert isinstance(checkpoint, Checkpoint)
        path.write_text(json.dumps(good))


def test_forged_metadata(sd1: Any, sd1_file: Path) -> None:
    for noted in ("{", "[]", '{"unet": {"block_out_channels": [0]}}', '{"tokenizer": {"vocab.json": 5}}'):
        save_file(load_file(sd1_file), sd1_file, {"darkroom": noted})
        with pytest.raises(CheckpointError, match="metadata"):
            open_checkpoint(sd1_file)
    save_file(load_file(sd1_file), sd1_file, {"darkroom": '{"unet": {"in_channels": 9, "attention_head_dim": 8}}'})
    with pytest.raises(CheckpointError, match="does not fit its configuration"):
        native_state(open_checkpoint(sd1_file), "unet", native_shapes(open_checkpoint(sd1_file).unet_config))


WRAPPED = ("module.{}", "model.module.{}", "_orig_mod.{}", "model._orig_mod.module.{}", "net.{}")


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_names_that_a_wrapper_prefixed(form: str, suffix: str, sd1: Any, tmp_path: Path) -> None:
    """DataParallel's, torch.compile's and their like: the same model, whatever its tensors stand under."""
    plain = sd1.save(tmp_path / "plain.safetensors")
    wrapped = tmp_path / f"wrapped.{suffix}"
    state = {form.format(name): tensor for name, tensor in load_file(plain).items()}
    with safe_open(plain, "pt") as file:
        notes = dict(file.metadata())
    (save_file(state, wrapped, notes) if suffix == "safetensors" else torch.save({"state_dict": state}, wrapped))
    if suffix == "ckpt":  # a pickle has no notes, so the networks are told by their shapes
        save_file(load_file(plain), plain)
    first, second = open_checkpoint(plain), open_checkpoint(wrapped)
    assert first.configs == second.configs
    for part, state in sd1.states.items():
        found = native_state(second, part, {name: tensor.shape for name, tensor in state.items()})
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_wrapper_inside_the_names(sd1: Any, tmp_path: Path) -> None:
    plain = sd1.save(tmp_path / "plain.safetensors")
    state = {
        name.replace("model.diffusion_model.", "model.module.diffusion_model._orig_mod."): tensor
        for name, tensor in load_file(plain).items()
    }
    save_file(state, tmp_path / "wrapped.safetensors")
    save_file(load_file(plain), plain)
    assert open_checkpoint(tmp_path / "wrapped.safetensors").configs == open_checkpoint(plain).configs
    both = {"module.weight": torch.ones(1), "weight": torch.zeros(1)}  # which of them was meant?
    save_file(both, tmp_path / "both.safetensors")
    with open_tensors(tmp_path / "both.safetensors") as file:
        assert set(file.names()) == set(both)
