"""A U-Net and its text encoder from nothing: its loss is the papers', it learns, diffusers opens it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import darkroom
from darkroom.errors import TrainingError
from darkroom.toy.scenes import draw_scene
from darkroom.training.kinds import Source
from darkroom.training.parallel import Rank
from darkroom.training.recipe import check, override
from darkroom.training.run import run as tune
from darkroom.training.tokenizer import LEAST, learn_tokenizer, scene_tokenizer
from darkroom.training.unet import DEFAULTS, UNetRecipe, UNetStage, networks, scheduler_config

UNET = UNetRecipe(
    steps=12, batch_size=4, lr=0.01, warmup=2, log_every=1, precision="float32", widths=(16, 32), size=64,
    attention_levels=(False, True), groups=8, heads=2, text_width=32, text_layers=1, cooldown=0.2, dropout=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def stage(pictures: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> UNetStage:
    folder = tmp_path_factory.mktemp("scratch")
    stage = UNetStage.open(UNET, Source(str(tiny_model), str(pictures)), folder, lambda *_: None)
    stage.encode(folder / "cache")
    stage.take(folder / "cache")
    with torch.no_grad():
        for p in stage.pipe.unet.parameters():  # away from the zeros that training begins with
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return stage


def test_captions_go_with_their_latents(stage: UNetStage) -> None:
    left_out = 0
    for step in range(40):
        latents, rows, captions = stage.batch(step, Rank())
        assert latents.shape == (4, 4, 8, 8)
        assert torch.equal(latents, stage.latents.draw(rows, step, 0))
        for i, caption in zip(rows, captions, strict=True):
            left_out += caption == ""
            assert caption in (stage.dataset.captions[i], "")
    assert 0.25 < left_out / 160 < 0.6
    halves = [stage.batch(3, Rank(rank, 2)) for rank in (0, 1)]
    whole = stage.batch(3, Rank())
    assert torch.equal(whole[0], torch.stack([halves[0][0], halves[1][0]], dim=1).flatten(0, 1))
    assert whole[2] == [halves[i % 2][2][i // 2] for i in range(4)]


def test_the_u_net_s_loss_is_v_prediction_weighted_by_cut_off_snr(stage: UNetStage) -> None:
    """By the papers' formulas: x_t = alpha x0 + sigma noise, v = alpha noise - sigma x0."""
    pipe, (x0, rows, captions) = stage.pipe, stage.batch(7, Rank())
    torch.manual_seed(11)
    loss, figures = stage.loss((x0, rows, captions), 7, Rank())
    torch.manual_seed(11)
    noise, spread = torch.randn(4, 4, 8, 8), (torch.arange(4) + torch.rand(())) / 4
    t = (1000 * spread).long()
    products = torch.from_numpy(np.asarray(pipe.schedule.alphas_cumprod))[t].float().view(-1, 1, 1, 1)
    alpha, sigma = products.sqrt(), (1 - products).sqrt()
    ids = torch.tensor([pipe.tokenizer.padded(caption) for caption in captions])
    with torch.no_grad():
        answer = pipe.unet(alpha * x0 + sigma * noise, t.float(), pipe.text_encoder(ids))
    error = (answer - (alpha * noise - sigma * x0)).square().mean(dim=(1, 2, 3))
    snr = (products / (1 - products)).flatten()
    expected = ((snr + 1).clamp(max=5) / (snr + 1) * error).mean()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(figures["error"], error.mean(), rtol=1e-3, atol=1e-5)


def test_shares_of_the_loss_average_to_the_whole(stage: UNetStage) -> None:
    values = []
    for rank in (Rank(), Rank(0, 2), Rank(1, 2)):
        torch.manual_seed(3)
        with torch.no_grad():
            values.append(float(stage.loss(stage.batch(5, rank), 5, rank)[0]))
    assert values[0] == pytest.approx((values[1] + values[2]) / 2, rel=1e-4)


@pytest.mark.parametrize("prediction", ["v_prediction", "flow"])
def test_it_learns_one_s_own_pictures_and_diffusers_draws_the_same(
    prediction: str, pictures: Path, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(UNET, prediction=prediction, steps=30, dropout=0.1)
    made = tune(recipe, Source(str(tiny_model), str(pictures)), tmp_path / "run")
    assert made == tmp_path / "run" / "model"
    curve = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    pipe = darkroom.load(made, device="cpu", dtype="float32")
    assert pipe.size == (64, 64)
    assert pipe.schedule.prediction_type == prediction
    assert len(pipe.tokenizer.encode("a red fox")) < 9  # fewer tokens than letters
    ours = pipe.generate("a red fox", steps=3, seed=3, output="pt").images
    assert isinstance(ours, torch.Tensor)
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(made, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "a red fox", num_inference_steps=3, guidance_scale=DEFAULTS["guidance_scale"],
        generator=torch.Generator().manual_seed(3), output_type="np",
    ).images[0]  # fmt: skip
    # diffusers rounds a flow model's timesteps to whole ones.
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - expected).max() < (1e-2 if prediction == "flow" else 1e-3)


def test_a_given_text_encoder_stays_as_it_is(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(UNET, text_encoder=str(tiny_model), steps=2)
    made = darkroom.load(tune(recipe, Source(str(tiny_model), str(pictures)), tmp_path), device="cpu", dtype="float32")
    given = darkroom.load(tiny_model, device="cpu", dtype="float32")
    for name, tensor in made.text_encoder.state_dict().items():
        assert torch.equal(tensor, given.text_encoder.state_dict()[name].half().float()), name
    assert made.tokenizer.encode("a red fox") == given.tokenizer.encode("a red fox")


def test_a_fresh_u_net_says_nothing() -> None:
    unet, _ = networks(UNET, scene_tokenizer())
    with torch.no_grad():
        assert unet(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, 32)).abs().max() == 0


def test_the_same_recipe_begins_with_the_same_weights() -> None:
    one, other = (networks(UNET, scene_tokenizer())[1].state_dict() for _ in range(2))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    moved = networks(dataclasses.replace(UNET, seed=1), scene_tokenizer())[1].state_dict()
    assert not torch.equal(one["token_embedding.weight"], moved["token_embedding.weight"])


def test_every_word_of_a_scene_s_caption_is_one_token() -> None:
    tokenizer = scene_tokenizer()
    for i in range(200):
        caption = draw_scene(0, i).caption
        assert len(tokenizer.encode(caption)) == len(caption.split())


def test_a_learned_vocabulary_reads_captions_in_few_tokens_and_anything_at_all(tmp_path: Path) -> None:
    captions = ["a photo of a fox", "a photo of a car", "two foxes, one car"] * 3
    tokenizer = learn_tokenizer(captions, LEAST + 60)
    assert tokenizer.vocab_size <= LEAST + 60
    assert len(tokenizer.encode("a photo of a fox")) == 5
    for text in ("Übergrößenträger", "狐", "\U0001f98a fox"):
        assert tokenizer.decode(tokenizer.encode(text)) == text.lower()
    assert learn_tokenizer(captions, LEAST).vocab_size == LEAST
    again = learn_tokenizer(captions, LEAST + 60)
    assert [again.encode(c) for c in captions] == [tokenizer.encode(c) for c in captions]
    with pytest.raises(TrainingError, match=f"vocabulary is 100; it must be {LEAST}"):
        learn_tokenizer(captions, 100)
    tokenizer.save(tmp_path)
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(str(tmp_path))
    for text in (*captions, "foxcar 12, ü"):
        assert theirs(text)["input_ids"][1:-1] == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("prediction=epsilon", "zero_snr is true and prediction is 'epsilon'"),
        ("prediction=", "prediction is ''"),
        ("prediction=noise", "prediction is 'noise'; it must be one of epsilon"),
        ("weight=snr", "weight is 'snr'; it must be 'constant' or 'min-snr'"),
        ("times=normal", "times is 'normal'"),
        ("times_from=1", "times_from is 1 and times_to 1"),
        ("noise_offset=2", "noise_offset is 2.0"),
        ("size=-1", "size is -1"),
        ("cut=left", "cut is 'left'"),
        ("template=a photo", "must have a {}"),
        ("class_data=x", "class_data is given and class_prompt is not"),
    ],
)
def test_what_can_t_be_is_one_sentence(setting: str, said: str) -> None:
    with pytest.raises(TrainingError) as error:
        check(override(UNET, [setting]))
    assert said in str(error.value)


def test_sizes_and_networks_that_don_t_fit_are_told(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    subject = Source(str(tiny_model), str(pictures))
    for setting, said in (("size=72", "steps of 16 pixels"), ("heads=5", "can't be built")):
        with pytest.raises(TrainingError, match=said):
            tune(override(UNET, [setting]), subject, tmp_path / "run")


def test_schedules_are_what_recipes_say() -> None:
    config = scheduler_config(dataclasses.replace(UNET, prediction="epsilon", zero_snr=False))
    assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("epsilon", False)
    assert scheduler_config(dataclasses.replace(UNET, prediction="flow", shift=2.0))["flow_shift"] == 2.0
