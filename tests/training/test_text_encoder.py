"""CLIP's objective against transformers', shares of a batch, and what comes out of a run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from darkroom.data.dataset import SceneDataset
from darkroom.errors import TrainingError
from darkroom.models.clip import Clip, contrastive_loss
from darkroom.prompts.tokenizer import Tokenizer
from darkroom.toy.scenes import draw_scene, render_scene
from darkroom.training import text_encoder
from darkroom.training.kinds import KINDS, Source
from darkroom.training.loop import train
from darkroom.training.parallel import Rank, launch
from darkroom.training.run import run as run_text_encoder
from darkroom.training.text_encoder import TextEncoderRecipe, TextEncoderStage, network, pixels_of, retrieval, swapped
from darkroom.training.tokenizer import scene_tokenizer

TINY = TextEncoderRecipe(
    steps=2, batch_size=8, lr=3e-3, warmup=1, optimizer="adamw", precision="float32", log_every=1, size=128, patch=32,
    image_width=32, image_layers=1, text_width=32, text_layers=1, heads=2, projection=16, scenes=32,
)  # fmt: skip


def stage(**changes: Any) -> TextEncoderStage:
    recipe = dataclasses.replace(TINY, **changes)
    tokenizer = scene_tokenizer()
    return TextEncoderStage(recipe, network(recipe, tokenizer), tokenizer, SceneDataset.of(recipe.scenes, recipe.seed))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the built-in scenes."""
    run = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encoder, "TESTED", 8)
        assert run_text_encoder(TINY, Source(), run) == run / "clip"
    return run


def test_transformers_opens_it_with_the_same_loss_and_embeddings(made: Path) -> None:
    from transformers.models.clip.modeling_clip import CLIPModel

    theirs = CLIPModel.from_pretrained(made / "clip").eval()
    ours = stage()
    saved = torch.load(next(made.glob("step-*2.pt")), weights_only=True)["ema"]["clip"]
    ours.clip.load_state_dict(saved)
    ours.clip.eval()
    pixels, ids = ours.batch(0, Rank())
    ids[:2] = torch.tensor(ours.tokenizer.padded(""))
    with torch.no_grad():
        expected = theirs(pixel_values=pixels, input_ids=ids, return_loss=True)
        pictures, texts, scale = ours.clip(pixels, ids)
        loss, figures = ours.loss((pixels, ids), 0, Rank())
    torch.testing.assert_close(pictures, expected.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts, expected.text_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scale * texts @ pictures.T, expected.logits_per_text, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-4, atol=1e-5)
    assert figures["scale"] == pytest.approx(float(theirs.logit_scale.detach().exp()), rel=1e-4)


def test_transformers_prepares_pictures_and_captions_alike(made: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    scene = draw_scene(0, 1)
    picture = render_scene(scene)
    prepared = CLIPImageProcessorPil.from_pretrained(made / "clip")(Image.fromarray(picture), return_tensors="pt")
    torch.testing.assert_close(pixels_of([picture]), prepared["pixel_values"], rtol=1e-4, atol=1e-5)
    tokenizer = CLIPTokenizer.from_pretrained(str(made / "clip"))
    ids = tokenizer(scene.caption, padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert ids == Tokenizer.from_folder(made / "clip").padded(scene.caption)


def test_the_loss_of_a_perfect_and_of_a_blind_encoder() -> None:
    right = torch.eye(6)
    assert float(contrastive_loss(right, right, torch.tensor([100.0]))) < 1e-6
    same = torch.ones(6, 4) / 2
    assert float(contrastive_loss(same, same, torch.tensor([30.0]))) == pytest.approx(math.log(6))
    assert float(contrastive_loss(right, right.roll(1, 0), torch.tensor([20.0]))) > 19


def test_the_scale_is_clipped_and_comes_back() -> None:
    one = stage()
    one.clip.logit_scale.data.fill_(10.0)
    loss, figures = one.loss(one.batch(0, Rank()), 0, Rank())
    assert float(figures["scale"]) == pytest.approx(100, rel=1e-4)
    assert float(one.clip.logit_scale.detach()) == pytest.approx(math.log(100))
    loss.backward()
    assert one.clip.logit_scale.grad is not None
    assert one.clip.logit_scale.grad.abs() > 0


def test_shares_make_up_a_batch_of_the_order() -> None:
    one = stage()
    whole, halves = one.batch(1, Rank()), [one.batch(1, Rank(rank, 2)) for rank in (0, 1)]
    for k in (0, 1):
        assert torch.equal(whole[k], torch.stack([h[k] for h in halves], dim=1).flatten(0, 1))
    i = int(one.order.rows(1)[3])
    assert torch.equal(whole[0][3], pixels_of([one.dataset.picture(i)])[0])
    assert whole[1][3].tolist() == one.tokenizer.padded(one.dataset.captions[i])


def _two_ranks(folder: str) -> None:
    torch.set_num_threads(1)
    train(stage(), Path(folder))


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """The loss is over the pictures and captions of both: a rank of its own would tell four apart, not eight."""
    for workers, name in ((1, "one"), (2, "two")):
        launch(_two_ranks, workers, str(tmp_path / name))
    one, two = (
        torch.load(next((tmp_path / n).glob("*.pt")), weights_only=True)["modules"]["clip"] for n in ("one", "two")
    )
    for name, value in one.items():
        if name.endswith("attention.k.bias"):
            continue  # softmax doesn't see it: its gradient is nothing but rounding
        torch.testing.assert_close(value, two[name], rtol=2e-3, atol=2e-5, msg=name)
    logs = [[json.loads(line)["loss"] for line in (tmp_path / n / "log.jsonl").open()] for n in ("one", "two")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


def test_a_few_steps_find_pictures_by_their_captions(tmp_path: Path) -> None:
    """Six scenes learned by heart."""

    class Same(TextEncoderStage):
        def batch(self, step: int, rank: Rank) -> tuple[torch.Tensor, torch.Tensor]:
            return super().batch(0, rank)

    few = stage(steps=30, lr=1e-2, batch_size=6)
    train(Same(few.config, few.clip, few.tokenizer, few.dataset), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert rows[-1]["found"] == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        scene = draw_scene(3, i)
        picture = Image.fromarray(render_scene(scene)).resize((90, 60 + i))
        picture.convert("L" if i == 2 else "RGB").save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"ein Bild: {scene.caption}", encoding="utf-8")
    return place


def test_one_s_own_pictures_with_a_tokenizer_of_their_words(folder: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, size=64, batch_size=4, tokens=24, vocabulary=600, template="sieh, {}")
    run_text_encoder(recipe, Source(data=str(folder)), tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path / "clip")
    assert (tokenizer.max_length, tokenizer.vocab_size <= 600) == (24, True)
    assert len(tokenizer.encode("ein bild:")) <= 4
    assert not (tmp_path / "scores.json").exists()
    again = dataclasses.replace(recipe, steps=3)
    (folder / "0.txt").write_text("anders", encoding="utf-8")
    with pytest.raises(TrainingError, match="other pictures or captions"):
        run_text_encoder(again, Source(data=str(folder)), tmp_path)


def test_one_caption_for_all_is_refused(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (64, 64), (i * 40, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(TrainingError, match="all 3 pictures have the caption 'a dog'"):
        run_text_encoder(dataclasses.replace(TINY, caption="a dog"), Source(data=str(tmp_path)), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heads": 5}, "can't be built: num_attention_heads is 5"),
        ({"patch": 256}, "patch_size is 256, larger than"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be between"),
        ({"tokens": 2}, "tokens is 2"),
        ({"template": "no place"}, "template is 'no place'"),
        ({"size": 64}, "128x128"),
    ],
)
def test_recipes_that_can_not_be_are_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=sentence):
        run_text_encoder(dataclasses.replace(TINY, **changes), Source(), tmp_path)


def test_it_is_one_of_the_kinds() -> None:
    for preset in ("cpu", "gpu"):
        assert isinstance(KINDS["text-encoder"].recipe_of(preset), TextEncoderRecipe)


def test_scores_by_hand() -> None:
    pictures = torch.eye(6)
    texts = pictures[[0, 1, 2, 3, 5, 4]]
    found = retrieval(pictures, texts)
    assert found["text_to_picture"] == found["picture_to_text"] == pytest.approx(4 / 6)
    assert found["text_to_picture_5"] >= found["text_to_picture"]


def test_a_twin_says_what_the_picture_does_not_show() -> None:
    scene = next(s for s in (draw_scene(0, i, kind="relation") for i in range(20)) if s.relation == "above")
    first, second = (o.noun for o in scene.objects)
    twin = swapped(scene)
    assert twin != scene.caption
    assert sorted(twin.split()) == sorted(scene.caption.split())
    assert twin.index(second) < twin.index(" above ") < twin.index(first)


def test_both_encoders_must_meet() -> None:
    one = stage()
    other = stage(projection=8)
    with pytest.raises(ValueError, match="16 and pictures to 8"):
        Clip(one.clip.text, other.clip.image)
