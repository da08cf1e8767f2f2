"""LoRA training: what learns, at which rate, what the file says, and that diffusers draws the same picture with it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # for peers
import peers

import darkroom
from darkroom.errors import CheckpointError, TrainingError
from darkroom.training import optim
from darkroom.training.controlnet import ControlNetRecipe
from darkroom.training.kinds import KINDS, Source
from darkroom.training.loop import train
from darkroom.training.lora import LoraRecipe, LoraStage
from darkroom.training.parallel import Rank
from darkroom.training.recipe import check, override
from darkroom.training.run import run as tune
from darkroom.training.textual_inversion import InversionRecipe

PLAIN = LoraRecipe(**{**peers.PLAIN, "lr": 0.05}, rank=3, alpha=2.0)
EVERYTHING = replace(PLAIN, targets=("all",), train="both", conv_rank=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peers.write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def ours(tiny_folder: Path) -> darkroom.Pipeline:
    return darkroom.load(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def theirs(tiny_folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


NOISE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
PROMPT: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": "car"}


def draw(pipe: darkroom.Pipeline, prompt: str = "a red fox", **more: Any) -> Tensor:
    drawn = pipe.generate(prompt, steps=4, latents=NOISE, output="pt", **PROMPT, **more).images
    assert isinstance(drawn, Tensor)
    return drawn


def they_draw(pipe: Any, prompt: str = "a red fox", **more: Any) -> Tensor:
    options = {"num_inference_steps": 4, "latents": NOISE.clone(), "output_type": "pt"}
    drawn: Tensor = pipe(prompt, **options, **PROMPT, **more).images
    return drawn


@pytest.mark.parametrize(
    "recipe",
    [
        EVERYTHING,
        replace(EVERYTHING, form="kohya"),
        replace(EVERYTHING, kind="dora"),
        replace(PLAIN, rslora=True, train="text-encoder", form="kohya"),
        replace(PLAIN, targets=("*.attn2.*", "down_blocks.0.resnets.0.conv1"), kind="dora"),
    ],
    ids=["all", "all-kohya", "all-dora", "text-kohya", "patterns-dora"],
)
def test_diffusers_draws_the_same_picture(
    recipe: LoraRecipe, ours: darkroom.Pipeline, theirs: Any, tiny_folder: Path, folder: Path, tmp_path: Path
) -> None:
    made = tune(recipe, Source(str(tiny_folder), str(folder)), tmp_path / "ink")
    plain, changed = draw(ours), draw(ours, loras=[darkroom.Lora(made)])
    assert (plain - changed).abs().max() > 1e-2
    theirs.load_lora_weights(str(made.parent), weight_name=made.name)
    try:
        assert (they_draw(theirs) - changed).abs().max() < 1e-3
    finally:
        theirs.unload_lora_weights()
    assert (they_draw(theirs) - plain).abs().max() < 1e-3


def test_what_was_trained_is_what_is_drawn(ours: darkroom.Pipeline, tiny_folder: Path, folder: Path) -> None:
    """The networks with the hooks of the training answer as those with the file do."""
    pipe = darkroom.load(tiny_folder, device="cpu", dtype="float32")
    stage = peers.stage_over(replace(EVERYTHING, kind="dora", lora_dropout=0.3, rank_dropout=0.2), pipe, folder)
    assert isinstance(stage, LoraStage)
    for lora in stage.loras.values():
        with torch.no_grad():
            for number, up in enumerate(lora.up):
                up += 0.1 * torch.randn(up.shape, generator=torch.Generator().manual_seed(number))
    with stage.drawing() as told:
        shown = draw(pipe, **told)
    parts = {part: lora.adapter(part).parts[part] for part, lora in stage.loras.items()}
    from darkroom.adapters import Adapter, Merged, Scaled

    with Merged(ours.loras.networks, [Scaled(Adapter(parts))]):
        ours.prompts.clear()
        assert (draw(ours) - shown).abs().max() < 1e-3
    ours.prompts.clear()


def test_a_run_goes_on_from_a_file(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    """With its layers, ranks and alphas; what the recipe doesn't train of it stays, what it has not begins anew."""
    subject = Source(str(tiny_folder), str(folder))
    text_only = replace(PLAIN, train="text-encoder", rank=2, alpha=5.0, trigger="sks fox")
    first = tune(text_only, subject, tmp_path / "first")
    recipe = replace(EVERYTHING, train="unet", init=str(first), form="kohya")
    second = tune(recipe, subject, tmp_path / "second")
    pipe = darkroom.load(tiny_folder, device="cpu", dtype="float32")
    before, after = (pipe.loras.get(path).adapter for path in (first, second))
    assert set(before.parts) == {"text_encoder"}
    assert set(after.parts) == {"unet", "text_encoder"}
    for path, update in before.parts["text_encoder"].items():
        same = after.parts["text_encoder"][path]
        assert (same.rank, same.factor) == (2, 2.5)
        assert all(torch.equal(update.factors[name], same.factors[name]) for name in ("down", "up"))
    third = tune(replace(text_only, init=str(second), train="both", rank=7), subject, tmp_path / "third")
    last = pipe.loras.get(third).adapter
    for part, updates in after.parts.items():
        assert updates.keys() == last.parts[part].keys()
        for path, update in updates.items():
            assert update.rank == last.parts[part][path].rank
            assert not torch.equal(update.factors["up"], last.parts[part][path].factors["up"])
    with pytest.raises(CheckpointError, match="nowhere"):
        tune(replace(PLAIN, init=str(tmp_path / "nowhere.safetensors")), subject, tmp_path / "no")
    assert not (tmp_path / "no").exists()  # it is told before any picture is encoded


def test_the_file_says_what_it_is(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    recipe = replace(PLAIN, form="kohya", trigger="sks fox", save_dtype="float16", steps=1)
    made = tune(recipe, Source(str(tiny_folder), str(folder)), tmp_path / "ink")
    with safe_open(made, "pt") as file:
        said = file.metadata()
        names = [name for name in file.keys() if not name.endswith(".alpha")]  # noqa: SIM118
        assert {file.get_tensor(name).dtype for name in names} == {torch.float16}
    assert said["ss_network_dim"] == "3"
    assert said["ss_network_alpha"] == "2"
    assert said["ss_network_module"] == "networks.lora"
    assert said["ss_output_name"] == said["modelspec.title"] == "ink"
    assert said["modelspec.trigger_phrase"] == "sks fox"
    assert said["ss_num_train_images"] == "4"
    assert said["ss_sd_model_name"] == "tiny"
    assert "ss_base_model_version" not in said  # a text of width 32 is none of the published models'


def test_text_encoders_have_a_learning_rate_of_their_own(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    pipe = darkroom.load(tiny_folder, device="cpu", dtype="float32")
    recipe = replace(PLAIN, train="both", text_lr=0.002, lr=0.01)
    stage = peers.stage_over(recipe, pipe, folder)
    assert isinstance(stage, LoraStage)
    assert stage.rates == {"text_encoder": 0.002}
    for kind in ("adamw", "muon"):
        optimizer = optim.build_for(kind, stage.modules, 0.01, 0.0, stage.rates)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert {rates[id(p)] for p in stage.modules["unet"].parameters()} == {0.01}
        assert {rates[id(p)] for p in stage.modules["text_encoder"].parameters()} == {0.002}
    before = {part: [up.detach().clone() for up in lora.up] for part, lora in stage.loras.items()}
    train(stage, tmp_path / "run", until=1)
    for part, rate in (("unet", 0.01), ("text_encoder", 0.002)):  # AdamW's first step is as long as its rate
        moved = max(
            (a - b).detach().abs().max().item() for a, b in zip(stage.loras[part].up, before[part], strict=True)
        )
        assert moved == pytest.approx(rate, rel=1e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_forgetting_blocks_changes_no_gradient(dropout: float, tiny_folder: Path, folder: Path) -> None:
    """Gradient checkpointing asks the layers again after the loss is there, LoRA, dropout and all."""
    found = []
    for checkpointing in (False, True):
        pipe = darkroom.load(tiny_folder, device="cpu", dtype="float32")
        recipe = replace(EVERYTHING, lora_dropout=dropout, rank_dropout=dropout, checkpointing=checkpointing)
        stage = peers.stage_over(recipe, pipe, folder)
        assert isinstance(stage, LoraStage)
        with torch.no_grad():
            for lora in stage.loras.values():
                for number, up in enumerate(lora.up):
                    up += 0.1 * torch.randn(up.shape, generator=torch.Generator().manual_seed(number))
        batch = stage.batch(0, Rank())
        torch.manual_seed(1)
        loss, _ = stage.loss(batch, 0, Rank())
        loss.backward()  # type: ignore[no-untyped-call]
        found.append([p.grad for lora in stage.loras.values() for p in lora.parameters()])
    for one, two in zip(*found, strict=True):
        assert one is not None
        assert two is not None
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_what_cant_be_is_said(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    recipe = KINDS["lora"].recipe_of()
    assert isinstance(recipe, LoraRecipe)
    for setting, told in (
        ("kind=lorra", "kind is 'lorra'; it must be one of lora, dora, loha, lokr"),
        ("targets=", "targets is"),
        ("targets=atention", "targets is .*'atention'"),
        ("form=a1111", "form is 'a1111'"),
        (
            "train=unet",
            "train is 'unet', so no text encoder learns; set train=both, or text_lr=0",
        ),  # the preset has one
        ("lora_dropout=1", "lora_dropout is 1"),
        ("train=vae", "train is 'vae'"),
        ("sharding=fsdp", "too small to be sharded"),
    ):
        with pytest.raises(TrainingError, match=told):
            check(override(recipe, [setting]))
    with pytest.raises(TrainingError, match="loha has no ranks to leave out"):
        check(override(recipe, ["kind=loha", "rank_dropout=0.1"]))
    subject = Source(str(tiny_folder), str(folder))
    with pytest.raises(TrainingError, match="which is no layer of the text_encoder"):
        tune(replace(PLAIN, train="both", targets=("*.attn2.*",)), subject, tmp_path / "run")
    with pytest.raises(TrainingError, match="which is no layer of the unet"):
        tune(replace(PLAIN, targets=("*.norm1",)), subject, tmp_path / "run")  # no linear layer, no convolution
    assert not (tmp_path / "run").exists()


def test_diffusers_draws_the_same_picture_with_a_learned_word(
    ours: darkroom.Pipeline, tiny_folder: Path, folder: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    recipe = InversionRecipe(**{**peers.PLAIN, "lr": 0.1}, word="<blorb>", vectors=3, initial="red fox", keep_norm=True)
    made = tune(recipe, Source(str(tiny_folder), str(folder)), tmp_path / "run")
    with safe_open(made, "pt") as file:
        vectors = file.get_tensor("<blorb>")
    table, ids = ours.text_encoder.token_embedding.weight, ours.tokenizer.encode("red fox")
    lengths = table[[ids[0], ids[1], ids[0]]].norm(dim=-1)
    assert (vectors.norm(dim=-1) / lengths - 1).abs().max() < 0.1  # they turned only
    theirs = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_textual_inversion(str(made))
    drawn = draw(ours, "a photo of <blorb> on a car", embeddings=[made])
    assert (they_draw(theirs, "a photo of <blorb> on a car") - drawn).abs().max() < 1e-3
    assert (draw(ours, "a photo of fox on a car") - drawn).abs().max() > 1e-2


def test_a_learned_word_is_no_word_that_there_is(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    subject = Source(str(tiny_folder), str(folder))
    for word in ("fox", "Fox", "a"):
        with pytest.raises(TrainingError, match="tokenizer knows as one of its own"):
            tune(InversionRecipe(**peers.PLAIN, word=word), subject, tmp_path / "run")
    with pytest.raises(TrainingError, match="which is 2 tokens, and vectors is 1; set vectors=2"):
        tune(InversionRecipe(**peers.PLAIN, initial="red fox"), subject, tmp_path / "run")


def test_diffusers_draws_the_same_picture_with_a_controlnet(
    ours: darkroom.Pipeline, tiny_folder: Path, folder: Path, tmp_path: Path
) -> None:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
    from PIL import Image

    recipe = ControlNetRecipe(**{**peers.PLAIN, "lr": 0.05}, hint_widths=(4, 8, 8, 16))
    made = tune(recipe, Source(str(tiny_folder), str(folder)), tmp_path / "run")
    theirs = StableDiffusionControlNetPipeline.from_pretrained(
        tiny_folder, safety_checker=None, controlnet=ControlNetModel.from_pretrained(made)
    )
    theirs.set_progress_bar_config(disable=True)
    hint = Image.open(folder / "0.png")
    drawn = draw(ours, controls=[darkroom.Control(made, hint)])
    assert (drawn - draw(ours)).abs().max() > 1e-2
    assert (they_draw(theirs, image=hint) - drawn).abs().max() < 1e-3
