"""The whole embedded model at toy size: every stage, what it leaves behind, and that diffusers draws the same."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import darkroom
from darkroom.errors import Error, TrainingError
from darkroom.evaluate import judge
from darkroom.formats.vae import save_vae
from darkroom.formats.writer import Entry, write_safetensors
from darkroom.toy import glyphs
from darkroom.toy.objects import OBJECTS
from darkroom.training import autoencoder, card, state
from darkroom.training import embedded as stages
from darkroom.training import run as runs
from darkroom.training.cache import fingerprint
from darkroom.training.embedded import EmbeddedRecipe, embedded
from darkroom.training.kinds import Source
from darkroom.training.log import read_log
from darkroom.training.loop import Stopped
from darkroom.training.recipe import override
from darkroom.training.run import train_to_end
from darkroom.training.unet import autoencoder_of

PROMPT = "a large fox on a yellow background"
TINY = [
    "autoencoder.steps=4", "autoencoder.batch_size=8", "autoencoder.widths=8,8,16,16", "autoencoder.warmup=1",
    "autoencoder.log_every=2", "autoencoder.lr=0.02", "unet.steps=4", "unet.batch_size=8", "unet.widths=16,32",
    "unet.attention_levels=false,true", "unet.groups=8", "unet.heads=2", "unet.text_width=32", "unet.scenes=40",
    "unet.log_every=2", "unet.warmup=1", "unet.lr=0.02", "evaluate=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def recipe() -> EmbeddedRecipe:
    return override(embedded(), TINY)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> object:
    """Normalising over 512 scenes and rendering a thousand emoji are the slowest parts of a toy run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "MEASURED", 16)
        patch.setattr(glyphs, "FONT_PLACES", ())
        yield


@pytest.fixture(scope="module")
def output(recipe: EmbeddedRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    folder = tmp_path_factory.mktemp("embedded")
    told: list[str] = []
    assert (
        stages.train_embedded(recipe, Source(), folder, report=lambda text, *_: told.append(text)) == folder / "model"
    )
    assert told == [
        "autoencoder", "normalising latents", "encoding pictures", "training", "writing what was made",
    ]  # fmt: skip
    return folder


def test_a_finished_run_is_read_and_not_trained_again(output: Path, recipe: EmbeddedRecipe) -> None:
    kept = [p for p in output.rglob("*") if p.suffix in (".pt", ".jsonl") or p.parent.parent.name == "latents"]
    kept.append(output / "autoencoder" / "vae" / autoencoder.WEIGHTS)
    before = {p: p.stat().st_mtime_ns for p in kept}
    assert len(before) == 6
    stages.train_embedded(recipe, Source(), output)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_the_weights_of_the_model_are_the_averages(output: Path) -> None:
    saved = state.load_last(output / "unet")
    assert saved is not None
    pipe = darkroom.load(output / "model", device="cpu", dtype="float32")
    for part, network in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder)):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, saved["ema"][part][name].half().float()), name
    assert any(not torch.equal(a, saved["modules"]["unet"][n]) for n, a in saved["ema"]["unet"].items())
    for name, tensor in autoencoder.finished(output / "autoencoder").state_dict().items():
        assert torch.equal(pipe.autoencoder.state_dict()[name], tensor.half().float()), name
    assert pipe.autoencoder.config.scaling_factor == 1.0
    assert pipe.size == (128, 128)
    assert len(pipe.tokenizer.encode(PROMPT)) == 7


def test_diffusers_opens_it_and_draws_the_same_picture(output: Path) -> None:
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(output / "model", torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        PROMPT, num_inference_steps=4, guidance_scale=5.0, generator=torch.Generator().manual_seed(3), output_type="np"
    ).images[0]
    pipe = darkroom.load(output / "model", device="cpu", dtype="float32")
    ours = pipe.generate(PROMPT, steps=4, guidance_scale=5.0, seed=3, output="pt").images
    assert isinstance(ours, torch.Tensor)
    assert expected.std() > 0.01
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - expected).max() < 1e-3


def test_a_run_belongs_to_its_autoencoder(output: Path, recipe: EmbeddedRecipe, tmp_path: Path) -> None:
    other = autoencoder.finished(output / "autoencoder")
    with torch.no_grad():
        other.quant.bias.add_(1e-3)  # type: ignore[union-attr, operator]
    save_vae(tmp_path / "other" / "vae", other.state_dict(), other.config, metadata={"step": "4"})
    run = tmp_path / "unet"
    shutil.copytree(output / "unet", run)
    longer = dataclasses.replace(recipe.unet, steps=6)
    with pytest.raises(TrainingError, match="trained on other pictures or for another model"):
        train_to_end(longer, Source(str(tmp_path / "other")), run, cache=tmp_path / "latents")
    made = tmp_path / "latents"
    assert not made.exists()


def test_a_longer_autoencoder_is_finished_anew(output: Path, tmp_path: Path) -> None:
    run = tmp_path / "autoencoder"
    shutil.copytree(output / "autoencoder", run)
    before = fingerprint(autoencoder.finished(run))
    assert before == fingerprint(autoencoder.finished(output / "autoencoder"))
    saved = state.load_last(run)
    assert saved is not None
    weights = saved["ema"]["autoencoder"]
    weights["decoder.conv_out.bias"] += 1
    state.save(run, 5, {**saved, "step": 5})
    assert fingerprint(autoencoder.finished(run)) != before
    for path in state.checkpoints(run):
        path.unlink()  # the finished file alone is enough
    assert fingerprint(autoencoder.finished(run)) != before
    (run / "vae" / autoencoder.WEIGHTS).write_bytes(b"broken")
    with pytest.raises(Error, match="vae"):
        autoencoder.finished(run)


def test_a_run_of_an_earlier_version_is_read(output: Path, tmp_path: Path) -> None:
    """It kept its result twice: for itself with native names and a step, and in vae/ without one."""
    run = tmp_path / "autoencoder"
    shutil.copytree(output / "autoencoder", run)
    ours = autoencoder.finished(run)
    state_dict = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    save_vae(run / "vae", state_dict, ours.config)
    state_dict["quant.bias"] += 1
    entries = [Entry(n, tuple(t.shape), t.dtype, lambda t=t: t) for n, t in state_dict.items()]  # type: ignore[misc]
    metadata = {"config": json.dumps(ours.config.to_diffusers()), "step": "4"}
    write_safetensors(run / autoencoder.OLD, entries, metadata)
    assert autoencoder.is_run(run)
    found = autoencoder.finished(run)
    assert (found.config, fingerprint(found)) == (ours.config, fingerprint(autoencoder.finished(run)))
    assert torch.equal(found.quant.bias, state_dict["quant.bias"])  # type: ignore[union-attr, arg-type]
    (run / autoencoder.OLD).unlink()
    assert fingerprint(autoencoder.finished(run)) == fingerprint(ours)  # made anew
    assert (run / "vae" / "config.json").is_file()


def test_an_autoencoder_is_made_from_its_own_run_only(output: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        autoencoder.finished(tmp_path)
    with pytest.raises(TrainingError, match="no autoencoder's run, but one of text_encoder, unet"):
        autoencoder.finished(output / "unet")


def test_the_model_is_written_as_the_recipe_says(output: Path, recipe: EmbeddedRecipe, tmp_path: Path) -> None:
    """Another prediction is another run, from the same latents; another precision only another ending."""
    for name in ("autoencoder", "latents"):
        (tmp_path / name).symlink_to(output / name)
    settings = ["unet.prediction=sample", "unet.zero_snr=false", "unet.save_dtype=float32"]
    made = stages.train_embedded(override(recipe, settings), Source(), tmp_path)
    pipe = darkroom.load(made, device="cpu")
    assert pipe.schedule.prediction_type == "sample"
    assert pipe.scheduler_config["rescale_betas_zero_snr"] is False
    saved = state.load_last(tmp_path / "unet")
    assert saved is not None
    for name, tensor in pipe.unet.state_dict().items():
        assert torch.equal(tensor.float(), saved["ema"]["unet"][name]), name


def test_an_interruption_is_told_with_its_step(
    recipe: EmbeddedRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from darkroom.training import loop

    monkeypatch.setattr(runs, "train", lambda stage, folder: loop.train(stage, folder, until=3))
    with pytest.raises(Stopped, match="stopped at step 3 of 4"):
        train_to_end(recipe.autoencoder, Source(), tmp_path)
    monkeypatch.undo()
    train_to_end(recipe.autoencoder, Source(), tmp_path)
    assert state.step_of(state.checkpoints(tmp_path)[-1]) == 4


def test_a_u_net_alone_takes_an_autoencoder_from_a_run_or_a_model(output: Path) -> None:
    exact, rounded = (autoencoder_of(str(output / name)).state_dict() for name in ("autoencoder", "model"))
    assert all(torch.equal(value.half().float(), rounded[name]) for name, value in exact.items())


def test_the_card_tells_what_was_done(output: Path) -> None:
    content = json.loads((output / "card.json").read_text())
    assert content["objects"]["fox"] == "U+1F98A"
    assert len(content["objects"]) == len(OBJECTS)
    assert content["relations"] == ["to the left of", "to the right of", "above", "below"]
    run = content["training"]["autoencoder"]
    assert (run["steps"], run["pictures_seen"], run["recipe"]["widths"]) == (4, 32, [8, 8, 16, 16])
    assert run["seconds"] >= 0
    assert "scores" not in content
    text = (output / "README.md").read_text()
    assert "It has not been scored yet." in text
    assert "What it can't do" in text


def test_a_run_keeps_to_the_emoji_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert autoencoder._with_others(tmp_path, True) is False
    state.save(tmp_path, 1, {})
    monkeypatch.setattr(glyphs, "FONT_PLACES", (__file__,))
    assert autoencoder._with_others(tmp_path, True) is False
    assert autoencoder._with_others(tmp_path / "new", True) is True
    state.save(tmp_path / "new", 1, {})
    monkeypatch.undo()
    monkeypatch.setattr(glyphs, "FONT_PLACES", ())
    with pytest.raises(TrainingError, match="fonts-noto-color-emoji"):
        autoencoder._with_others(tmp_path / "new", False)


def test_scores_are_kept_for_the_same_model(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "evaluate", functools.partial(judge.evaluate, steps=1, guidance_scale=1.0))
    for name in ("autoencoder", "unet"):
        shutil.copytree(output / name, tmp_path / name)
    first = card.write_cards(tmp_path, output / "model", 1)
    assert set(first["scores"]["categories"]) == {"single", "count", "relation"}
    assert first["scores"]["pictures_a_category"] == 1
    marked = json.loads((tmp_path / "card.json").read_text())
    marked["scores"]["autoencoder_psnr"] = 99.0
    (tmp_path / "card.json").write_text(json.dumps(marked))
    assert card.write_cards(tmp_path, output / "model", 0)["scores"]["autoencoder_psnr"] == 99.0
    text = (tmp_path / "README.md").read_text()
    assert "99.0 dB" in text
    assert "| relation |" in text
    marked["model"] = "another"
    (tmp_path / "card.json").write_text(json.dumps(marked))
    assert "scores" not in card.write_cards(tmp_path, output / "model", 0)


def test_facts_of_a_run() -> None:
    rows = [{"step": s, "seconds": t} for s, t in ((1, 10.0), (2, 20.0), (3, 5.0), (4, 15.0), (5, 1.0))]
    assert card.seconds_of(rows) == 36.0
    assert card.seconds_of([]) == 0.0
    crops = {"batch_size": 16, "crop": 64, "whole_from": 0.8, "steps": 10}
    assert card.pictures_seen(crops, 5) == 80
    assert card.pictures_seen(crops, 10) == 8 * 16 + 2 * 4
    assert card.pictures_seen({"batch_size": 64}, 3) == 192
    assert card.machine("cpu", 2) == "two CPU cores"


def test_a_log_that_was_cut_short_is_read(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
    (tmp_path / "log.jsonl").write_text('{"step": 1, "seconds": 1.0}\n{"step": 2, "sec')
    assert [row["step"] for row in read_log(tmp_path)] == [1]
