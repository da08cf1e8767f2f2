"""Full fine-tuning, DreamBooth and the conversion to inpainting: they learn, and diffusers draws what we draw."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import darkroom
from darkroom.errors import TrainingError
from darkroom.pipeline import Pipeline
from darkroom.training.finetune import FinetuneRecipe, FinetuneStage, rescheduled
from darkroom.training.inpainting import InpaintingRecipe, InpaintingStage, random_mask, widened
from darkroom.training.kinds import Source
from darkroom.training.loop import Stopped
from darkroom.training.parallel import Rank
from darkroom.training.recipe import check
from darkroom.training.run import run as tune

SETTINGS: dict[str, Any] = {
    "steps": 8, "batch_size": 4, "lr": 0.003, "optimizer": "adamw", "warmup": 1, "log_every": 1, "dropout": 0.0,
    "precision": "float32", "ema": 0.5, "save_dtype": "float32",
}  # fmt: skip


def load(path: Path) -> Pipeline:
    return darkroom.load(path, device="cpu", dtype="float32")


def drawn_by_diffusers(path: Path, prompt: str) -> Any:
    from diffusers import DiffusionPipeline

    theirs = DiffusionPipeline.from_pretrained(path, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    return theirs(
        prompt, num_inference_steps=3, guidance_scale=5.0, generator=torch.Generator().manual_seed(3), output_type="np"
    ).images[0]  # fmt: skip


def test_u_net_and_text_encoder_learn_on_buckets_and_diffusers_draws_the_same(
    pictures: Path, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = FinetuneRecipe(**SETTINGS, train="both", text_lr=0.001, buckets=True, zero_snr=True,
                            prediction="v_prediction", held_out=1,
                            validate_every=4, sample_every=8)  # fmt: skip
    subject = Source(str(tiny_model), str(pictures))
    made = tune(recipe, subject, tmp_path / "run")
    before, after = load(tiny_model), load(made)
    for name in ("unet", "text_encoder"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert any(not torch.equal(old[key], new[key]) for key in old), name
    old, new = before.autoencoder.state_dict(), after.autoencoder.state_dict()
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert after.schedule.sigma_max > 1000
    assert after.schedule.prediction_type == "v_prediction"
    ours = after.generate("a red fox", steps=3, guidance_scale=5.0, seed=3, output="pt").images
    assert isinstance(ours, torch.Tensor)
    expected = drawn_by_diffusers(made, "a red fox")
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - expected).max() < 1e-3
    # What the stage shows: buckets, the rates of its modules, what is held out, a sheet.
    stage = FinetuneStage.open(recipe, subject, tmp_path)
    assert len(set(stage.dataset.sizes)) > 1
    stage.take(tmp_path / "run" / "cache")
    assert stage.rates == {"text_encoder": 0.001}
    assert len(stage.away) == 1
    seen = {i for step in range(20) for i in stage.batch(step, Rank())[1]}
    assert seen == set(range(6)) - set(stage.away)
    (shown,) = stage.validation()
    assert shown[1] == stage.away
    assert torch.equal(shown[0], stage.validation()[0][0])
    sheet = stage.sheet()
    assert sheet.width > 4 * 64
    assert sheet.height > 64 + 2 * 12  # two lines of a prompt above
    assert sheet.tobytes() == stage.sheet().tobytes()
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation" in row] == [4, 8]
    assert any("error_3" in row for row in rows)
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == ["step-000000008.png"]


def test_class_pictures_are_drawn_once_and_weigh_as_the_script_of_diffusers_has_it(
    pictures: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = FinetuneRecipe(
        **{**SETTINGS, "steps": 2}, caption="a photo of sks fox", class_prompt="a photo of a fox", class_pictures=3,
        prior_weight=0.5, template="{}, large",
    )  # fmt: skip
    subject, run = Source(str(tiny_model), str(pictures)), tmp_path / "run"
    drawn = Pipeline.generate

    def interrupted(self: Pipeline, *given: Any, **options: Any) -> Any:
        if (run / "class" / "00000.png").is_file():
            raise Stopped("in the middle")
        return drawn(self, *given, steps=1, **options)

    monkeypatch.setattr(Pipeline, "generate", interrupted)
    with pytest.raises(Stopped):
        tune(recipe, subject, run)
    first = (run / "class" / "00000.png").stat().st_mtime_ns
    monkeypatch.setattr(Pipeline, "generate", lambda self, *given, **options: drawn(self, *given, steps=1, **options))
    made = tune(recipe, subject, run)
    assert (made / "model_index.json").is_file()
    assert len(list((run / "class").glob("*.png"))) == 3
    assert (run / "class" / "00000.png").stat().st_mtime_ns == first
    with pytest.raises(TrainingError, match="class pictures of another prompt"):
        tune(replace(recipe, class_prompt="a photo of a car"), subject, run)
    (run / "class" / "drawn.json").rename(tmp_path / "drawn.json")
    (run / "class" / "drawn.json").write_text("")  # as a full disk left it
    with pytest.raises(TrainingError, match="class pictures of another prompt"):
        tune(recipe, subject, run)
    (tmp_path / "drawn.json").rename(run / "class" / "drawn.json")
    # The loss, by hand: half a batch is of the class, with its prompt and nothing around it.
    stage = FinetuneStage.open(recipe, subject, run)
    stage.take(run / "cache")
    dataset = stage.dataset
    batch = stage.batch(0, Rank())
    prior = torch.tensor([dataset.prior[i] for i in batch[1]])
    assert int(prior.sum()) == 2
    for i, caption, of_class in zip(batch[1], batch[2], prior, strict=True):
        assert caption == ("a photo of a fox" if of_class else f"{dataset.captions[i]}, large")
    assert "a photo of sks fox" in dataset.captions

    def loss(weight: float) -> float:
        stage.config = replace(recipe, prior_weight=weight)
        torch.manual_seed(4)
        with torch.no_grad():
            return float(stage.loss(batch, 0, Rank())[0])

    subject_alone, both = loss(0.0), loss(1.0)
    assert both > subject_alone
    assert loss(0.5) == pytest.approx(subject_alone + 0.5 * (both - subject_alone), rel=1e-5)
    torch.manual_seed(4)
    with torch.no_grad():
        mean = float(stage.loss(batch, 0, Rank())[1]["error"])
    assert both == pytest.approx(2 * mean, rel=1e-5)  # the sum of two means of halves


def test_an_inpainting_model_begins_as_the_other_and_diffusers_knows_it(
    pictures: Path, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = InpaintingRecipe(**SETTINGS)
    subject = Source(str(tiny_model), str(pictures))
    made = tune(recipe, subject, tmp_path / "run")
    assert json.loads((made / "model_index.json").read_text())["_class_name"] == "StableDiffusionInpaintPipeline"
    pipe = load(made)
    assert pipe.unet.config.in_channels == 9
    assert pipe.unet.conv_in.weight[:, 4:].abs().sum() > 0  # it has learned to look
    picture = Image.open(pictures / "0.png").resize((64, 64))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    from diffusers import StableDiffusionInpaintPipeline

    theirs = StableDiffusionInpaintPipeline.from_pretrained(made, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "a red fox", image=picture, mask_image=mask, num_inference_steps=3, guidance_scale=5.0, strength=1.0,
        generator=torch.Generator().manual_seed(3), output_type="latent", height=64, width=64,
    ).images[0]  # fmt: skip
    ours = pipe.generate(
        "a red fox", image=picture, mask=mask, steps=3, guidance_scale=5.0, strength=1.0, seed=3, output="latent"
    ).images
    assert isinstance(ours, torch.Tensor)
    assert (ours[0] - expected).abs().max() < 2e-3 * expected.abs().max()
    stage = InpaintingStage.open(recipe, Source(str(made), str(pictures)), tmp_path)  # it can go on
    stage.take(tmp_path / "run" / "cache")
    assert stage.pipe.unet.config.in_channels == 9
    assert stage.sheet().width > 4 * 64
    _, rows, _, channels = stage.batch(1, Rank())
    assert channels.shape == (4, 5, 8, 8)
    assert set(channels[:, 0].unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(channels[0], stage.beside(rows[0], 1))  # type: ignore[attr-defined]


def test_a_widened_u_net_answers_as_before() -> None:
    from darkroom.models.config import UNetConfig
    from darkroom.models.unet import UNet

    unet = UNet(UNetConfig(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=(1, 1), attention_levels=(True, False),
        only_cross_attention=(False, False), transformer_layers=(1, 1), heads=(2, 2), cross_attention_dim=8,
        norm_num_groups=8,
    )).eval().requires_grad_(False)  # fmt: skip
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = unet(x, t, text)
        wide = widened(unet, 9).eval().requires_grad_(False)  # as the other, so that both compute alike
        found = wide(torch.cat([x, torch.randn(2, 5, 8, 8)], dim=1), t, text)
    assert torch.equal(found, expected)


def test_masks_are_of_all_kinds() -> None:
    shares = []
    for options in ({"whole": 1.0}, {"whole": 0.0, "borders": 1.0}, {"whole": 0.0, "borders": 0.0, "boxes": 1.0},
                    {"whole": 0.0, "borders": 0.0, "boxes": 0.0}):  # fmt: skip
        recipe = InpaintingRecipe(**SETTINGS, **options)
        masks = [random_mask(np.random.default_rng(seed), 96, 64, recipe) for seed in range(60)]
        assert all(mask.shape == (64, 96) and mask.any() for mask in masks)
        shares.append(np.mean([mask.mean() for mask in masks]))
        if options == {"whole": 0.0, "borders": 1.0}:
            assert all(not mask[24:40, 38:58].all() or mask.mean() < 1 for mask in masks)
            assert all(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any() for mask in masks)
    assert shares[0] == 1
    assert all(0.05 < share < 0.7 for share in shares[1:])
    one = [random_mask(np.random.default_rng((0, 5)), 96, 64, InpaintingRecipe(**SETTINGS)) for _ in range(2)]
    assert np.array_equal(*one)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": "vae"}, "train is 'vae'; it must be"),
        ({"text_lr": 0.1}, "no text encoder learns; set train=both"),
        ({"zero_snr": True, "prediction": "epsilon"}, "zero_snr is true and prediction is 'epsilon'"),
        ({"prediction": "flow"}, "prediction is 'flow'"),
        ({"save_dtype": "int8"}, "save_dtype is 'int8'"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"class_prompt": "a fox", "batch_size": 1}, "batch_size is 1"),
        ({"held_out": -1}, "held_out is -1"),
    ],
)
def test_what_contradicts_itself_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError) as error:
        check(FinetuneRecipe(**{**SETTINGS, **changes}))
    assert said in str(error.value)


def test_models_that_don_t_fit_are_told(tiny_pipe: Pipeline, pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the model predicts epsilon"):
        rescheduled(tiny_pipe, "", zero_snr=True)
    recipe = FinetuneRecipe(**SETTINGS, held_out=6)
    with pytest.raises(TrainingError, match="held_out is 6, and there are 6 pictures"):
        tune(recipe, Source(str(tiny_model), str(pictures)), tmp_path / "run")
    assert not (tmp_path / "run" / "cache").exists()  # nothing was encoded for it


def test_an_inpainting_sheet_shows_the_first_picture_in_its_own_bucket(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a", (128, 64)), ("b", (64, 128))):
        Image.new("RGB", size, "red" if name == "a" else "blue").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
    recipe = InpaintingRecipe(**SETTINGS, buckets=True)
    stage = InpaintingStage.open(recipe, Source(str(tiny_model), str(folder)), tmp_path)
    (width, height), other = stage.dataset.sizes
    assert (width, height) == other[::-1]
    assert width > height
    with stage.drawing() as told:
        assert told["image"].size == told["mask"].size == (width, height)
        assert told["image"].getpixel((width // 2, height // 2))[0] > 200  # the first: red
        assert told["mask"].getbbox() == (width // 4, height // 4, width * 3 // 4 + 1, height * 3 // 4 + 1)
    sheet = stage.sheet()
    assert sheet.width > 2 * width
    assert sheet.height > height
