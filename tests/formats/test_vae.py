"""Stand-alone autoencoders in every form there is, in place of a model's own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import darkroom
from darkroom.errors import CheckpointError
from darkroom.formats.artifact import describe
from darkroom.formats.picture import read_metadata
from darkroom.formats.vae import open_vae
from darkroom.models.autoencoder import Autoencoder, TinyAutoencoder
from darkroom.models.config import TinyAutoencoderConfig
from darkroom.pipeline import Pipeline

TINY = TinyAutoencoderConfig(
    block_out_channels=(8,) * 4, decoder_widths=(4,) * 4, encoder_blocks=(1, 2, 1, 3), decoder_blocks=(2, 1, 3, 1)
)
FEWER = {
    "block_out_channels": (8,) * 3,
    "decoder_widths": (4,) * 3,
    "encoder_blocks": (1, 2, 1),
    "decoder_blocks": (2, 1, 1),
}


@pytest.fixture(scope="module")
def other(tiny_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The tiny pipeline with another autoencoder, saved in both layouts; its GroupNorms have as many groups as told."""
    torch.manual_seed(5)
    config = replace(tiny_pipe.autoencoder.config, block_out_channels=(32, 32, 32, 64), norm_num_groups=32)
    pipe = Pipeline(
        unet=tiny_pipe.unet,
        autoencoder=Autoencoder(config),
        text_encoder=tiny_pipe.text_encoder,
        tokenizer=tiny_pipe.tokenizer,
        scheduler_config=tiny_pipe.scheduler_config,
    )
    return pipe


@pytest.fixture(scope="module")
def places(other: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same autoencoder in every form."""
    root = tmp_path_factory.mktemp("vaes")
    other.save(root / "model")
    other.save(root / "model.safetensors")
    ldm = {
        key.removeprefix("first_stage_model."): tensor
        for key, tensor in load_file(root / "model.safetensors").items()
        if key.startswith("first_stage_model.")
    }
    published = load_file(root / "model" / "vae" / "diffusion_pytorch_model.safetensors")
    for name, state in (
        ("bare", ldm),
        ("first", {f"first_stage_model.{key}": tensor for key, tensor in ldm.items()}),
        ("short", {f"vae.{key}": tensor for key, tensor in ldm.items()}),
        ("published", published),
    ):
        save_file(state, root / f"{name}.safetensors")
    attention = "mid_block.attentions.0."
    matrices = [name for name in published if attention in name and published[name].ndim == 2]
    assert len(matrices) == 8
    convolutions = published | {name: published[name][..., None, None] for name in matrices}
    save_file(convolutions, root / "convolutions.safetensors")
    torch.save({"state_dict": {**ldm, "loss.logvar": torch.zeros(())}}, root / "pickled.pt")
    names = ("bare", "first", "short", "published", "convolutions", "model")
    files = {name: root / f"{name}.safetensors" for name in names}
    return files | {"folder": root / "model" / "vae", "model folder": root / "model", "pickled": root / "pickled.pt"}


FORMS = ("bare", "first", "short", "published", "convolutions", "model", "folder", "model folder", "pickled")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_network(
    form: str, places: dict[str, Path], other: Pipeline, tiny_folder: Path
) -> None:
    pipe = darkroom.load(tiny_folder, vae=places[form])
    expected = other.autoencoder.state_dict()
    got = pipe.autoencoder.state_dict()
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name
    assert pipe.autoencoder.config.norm_num_groups == 32
    assert pipe.autoencoder.config.scaling_factor == 0.18215


def test_a_picture_of_it_and_its_recipe(places: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:
    plain = darkroom.load(tiny_folder)
    pipe = darkroom.load(tiny_folder, vae=places["bare"])
    wishes: dict[str, Any] = {"steps": 2, "seed": 1}
    result = pipe.generate("a fox", **wishes)
    latent = plain.generate("a fox", **wishes, output="latent").images
    assert pipe.decode(latent)[0].tobytes() == result.images[0].tobytes()  # type: ignore[arg-type]
    assert plain.generate("a fox", **wishes).images[0].tobytes() != result.images[0].tobytes()
    digest = hashlib.sha256(places["bare"].read_bytes()).hexdigest()[:10]
    assert (result.requests[0].vae, result.requests[0].vae_hash) == ("bare.safetensors", digest)
    assert result.requests[0].model_hash == plain.model_hash
    assert plain.generate("a fox", **wishes).requests[0].vae is None
    (path,) = result.save(tmp_path)
    text = read_metadata(path).texts["parameters"]
    assert f"VAE hash: {digest}, VAE: bare.safetensors" in text


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Path]:
    """One tiny autoencoder as diffusers writes it, and as its author does."""
    torch.manual_seed(1)
    native = TinyAutoencoder(TINY).state_dict()
    published = {name.replace("coder.", "coder.layers.", 1): tensor for name, tensor in native.items()}
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_file(published, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(TINY.to_diffusers()))
    save_file(published, tmp_path / "tiny.safetensors")
    halves: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in native.items():
        half, number, rest = name.split(".", 2)
        halves[half][f"{int(number) + (half == 'decoder')}.{rest}"] = tensor
    save_file(halves["encoder"], tmp_path / "taesd_encoder.safetensors")
    save_file(halves["decoder"], tmp_path / "taesd_decoder.safetensors")
    one = {f"{half}.{name}": tensor for half, state in halves.items() for name, tensor in state.items()}
    save_file(one, tmp_path / "one.safetensors")
    comfy = {f"taesd_{name}": tensor for name, tensor in one.items()}
    save_file(comfy | {"vae_scale": torch.ones(()), "vae_shift": torch.zeros(())}, tmp_path / "comfy.safetensors")
    (tmp_path / "pth").mkdir()
    for half, state in halves.items():
        torch.save(state, tmp_path / "pth" / f"taesd_{half}.pth")
    return {
        "folder": folder,
        "file": tmp_path / "tiny.safetensors",
        "encoder": tmp_path / "taesd_encoder.safetensors",
        "decoder": tmp_path / "taesd_decoder.safetensors",
        "pickles": tmp_path / "pth",
        "one": tmp_path / "one.safetensors",
        "comfy": tmp_path / "comfy.safetensors",
    }


@pytest.mark.parametrize("form", ["folder", "file", "encoder", "decoder", "pickles", "one", "comfy"])
def test_every_form_of_a_tiny_one(form: str, tiny: dict[str, Path], tiny_folder: Path) -> None:
    torch.manual_seed(1)
    expected = TinyAutoencoder(TINY).state_dict()
    pipe = darkroom.load(tiny_folder, vae=tiny[form])
    assert pipe.autoencoder.config == TINY
    assert isinstance(pipe.autoencoder, TinyAutoencoder)
    assert describe(tiny[form])["kind"].startswith("autoencoder (VAE), tiny (TAESD), ")
    for name, tensor in pipe.autoencoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    result = pipe.generate("a fox", steps=1, seed=1, width=50, height=40)
    assert result.images[0].size == (50, 40)
    assert pipe.encode_image(result.images[0]).shape == (1, 4, 5, 7)


def test_the_picture_of_a_tiny_one_is_diffusers_own(
    tiny: dict[str, Path], tiny_folder: Path, tiny_reference: Any
) -> None:
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    peer = type(tiny_reference)(
        **{**tiny_reference.components, "vae": AutoencoderTiny.from_pretrained(tiny["folder"])},
        requires_safety_checker=False,
    )
    peer.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(2)
    expected = peer("a fox", num_inference_steps=3, generator=generator, output_type="pt").images
    got = darkroom.load(tiny_folder, vae=tiny["encoder"]).generate("a fox", steps=3, seed=2, output="pt").images
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_previews_by_a_tiny_one(tiny: dict[str, Path], tiny_folder: Path) -> None:
    pipe = darkroom.load(tiny_folder, preview=tiny["decoder"])
    seen = []
    pipe.generate("a fox", steps=2, seed=1, width=50, height=40, on_progress=lambda p: seen.append(p.preview()))
    latent = torch.randn(4, 5, 7)
    sharp = darkroom.load(tiny_folder, vae=tiny["decoder"]).decode(latent)[0]
    assert [picture.size for picture in seen] == [(50, 40)] * 2
    assert pipe.previewer.picture(latent, 56, 40).tobytes() == sharp.tobytes()
    assert not isinstance(pipe.autoencoder, TinyAutoencoder)
    assert pipe.vae is None


def test_a_model_with_a_tiny_one_is_saved_and_loaded(tiny: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:
    pipe = darkroom.load(tiny_folder, vae=tiny["folder"])
    again = darkroom.load(pipe.save(tmp_path / "saved"))
    latent = torch.randn(4, 8, 8)
    assert again.decode(latent)[0].tobytes() == pipe.decode(latent)[0].tobytes()
    with pytest.raises(CheckpointError, match="tiny autoencoder has no place in a single file; save a folder"):
        pipe.save(tmp_path / "saved.safetensors")


def test_what_is_no_autoencoder_is_said_in_a_sentence(
    tiny: dict[str, Path], places: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_vae(tmp_path / "nothing.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "weight.safetensors")
    with pytest.raises(CheckpointError, match="holds no autoencoder: its tensors are called weight"):
        open_vae(tmp_path / "weight.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config.json and no taesd_encoder"):
        open_vae(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="is of a 'UNet2DConditionModel'"):
        open_vae(tiny_folder / "unet")
    tiny["decoder"].unlink()
    with pytest.raises(
        CheckpointError, match=r"encoder of a tiny autoencoder; put its taesd_decoder.safetensors beside"
    ):
        open_vae(tiny["encoder"])
    half = tmp_path / "unnamed.safetensors"
    tiny["encoder"].rename(half)
    with pytest.raises(CheckpointError, match="its name must say which"):
        open_vae(half)
    state = load_file(places["bare"])
    torch.save({**state, "decoder.conv_in.bias": torch.zeros(7)}, tmp_path / "misshapen.pt")
    with pytest.raises(CheckpointError, match=r"1 tensor has a wrong shape .decoder.conv_in.bias is .7."):
        darkroom.load(tiny_folder, vae=tmp_path / "misshapen.pt")
    del state["decoder.conv_in.bias"]
    save_file(state | {"decoder.more": torch.zeros(2)}, tmp_path / "lacking.safetensors")
    with pytest.raises(CheckpointError, match=r"1 key is missing .*1 key is unknown .decoder.more"):
        darkroom.load(tiny_folder, vae=tmp_path / "lacking.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_channels": 16}, "latents of 16 channels.*has latents of 4 channels"),
        (FEWER, "latent pixels of 4 x 4.*latent pixels of 8 x 8"),
    ],
)
def test_one_of_other_latents_is_refused(
    changes: dict[str, Any], words: str, tiny_folder: Path, tmp_path: Path
) -> None:
    config = replace(TINY, **changes)
    state = TinyAutoencoder(config).state_dict()
    file = tmp_path / "other.safetensors"
    save_file({name.replace("coder.", "coder.layers.", 1): tensor for name, tensor in state.items()}, file)
    with pytest.raises(CheckpointError, match=words):
        darkroom.load(tiny_folder, vae=file)
    with pytest.raises(CheckpointError, match=words):
        darkroom.load(tiny_folder, preview=file)
