"""What a training reads of captions of any length: what drawing would tell the U-Net, and gradients on the way back."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for peers
import peers

import darkroom
from darkroom.diffusion.condition import Condition
from darkroom.errors import TrainingError
from darkroom.training.finetune import FinetuneRecipe
from darkroom.training.lora import LoraRecipe
from darkroom.training.pictures import PictureRecipe
from darkroom.training.recipe import check, check_recipe
from darkroom.training.textual_inversion import InversionRecipe

SHORT = "a red fox"
LONG = "a large fox on the left of a green car" + ", on the car" * 20  # two chunks
LONGER = "the blue rocket" + ", the blue rocket" * 49  # three
CAPTIONS = (SHORT, LONG, "", LONGER)
PLAIN = FinetuneRecipe(**peers.PLAIN)
READING: list[PictureRecipe] = [
    PLAIN,
    replace(PLAIN, train="both"),
    LoraRecipe(**peers.PLAIN, rank=2, train="both"),
    InversionRecipe(**peers.PLAIN, word="<blorb>", vectors=2),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, with captions of zero to three chunks."""
    place = peers.write_pictures(tmp_path_factory.mktemp("pictures"))
    for number, caption in enumerate(CAPTIONS):
        (place / f"{number}.txt").write_text(caption)
    return place


@pytest.fixture
def pipe(tiny_folder: Path) -> darkroom.Pipeline:
    return darkroom.load(tiny_folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("recipe", READING, ids=["frozen", "both", "lora", "word"])
def test_captions_are_read_as_prompts_are(recipe: PictureRecipe, pipe: darkroom.Pipeline, folder: Path) -> None:
    stage = peers.stage_over(replace(recipe, chunks=3), pipe, folder)
    captions = [f"{c}{' <blorb>' if stage.words and c else ''}" for c in CAPTIONS]
    chunks = pipe.prompts.length
    expected = [pipe.prompts.encode(caption, "plain", words=stage.words) for caption in captions]
    assert [len(text) // chunks for text in expected] == [1, 2, 1, 3]
    for caption, text in zip(captions, expected, strict=True):
        alone = stage.condition([caption], [0], 0).text
        torch.testing.assert_close(alone, text[None], rtol=1e-5, atol=1e-5)
    together = stage.condition(captions, range(4), 0)
    assert together.text.shape[1] == 6 * chunks
    for found, text in zip(together.text, expected, strict=True):
        for part in found.split(len(text)):
            torch.testing.assert_close(part, text, rtol=1e-5, atol=1e-5)
    x, sigma = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2)), [0.5, 2.0, 5.0, 9.0]
    with torch.no_grad():
        answers = pipe.denoiser(x, sigma, together)
        for i, text in enumerate(expected):
            drawn = pipe.denoiser(x[i : i + 1], sigma[i], [Condition(text)])
            torch.testing.assert_close(answers[i : i + 1], drawn, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", READING, ids=["frozen", "both", "lora", "word"])
def test_without_a_word_the_first_chunk_is_read(recipe: PictureRecipe, pipe: darkroom.Pipeline, folder: Path) -> None:
    stage = peers.stage_over(recipe, pipe, folder)
    length = pipe.prompts.length
    text = stage.condition(CAPTIONS, range(4), 0).text
    assert text.shape == (4, length, 32)
    for found, caption in zip(text, CAPTIONS, strict=True):
        torch.testing.assert_close(found, pipe.prompts.encode(caption, "plain")[:length], rtol=1e-5, atol=1e-5)
    counts = []
    for stage.config in (replace(recipe, chunks=n) for n in (1, 2, 3)):
        counts.append(stage.cut_captions())
    assert counts == [2, 1, 0]


def test_gradients_reach_a_word_in_the_second_chunk(pipe: darkroom.Pipeline, folder: Path) -> None:
    recipe = InversionRecipe(**peers.PLAIN, word="<blorb>", vectors=2, chunks=2)
    stage = peers.stage_over(recipe, pipe, folder)
    cut = peers.stage_over(replace(recipe, chunks=1), pipe, folder)
    late = f"{'fox ' * 80}<blorb>"
    stage.dataset.captions[1] = cut.dataset.captions[1] = late
    assert stage.captions([1], 0) == [late]
    assert cut.captions([1], 0) == ["a photo of <blorb>"]
    (vectors,) = stage.words[0].parts
    text = stage.condition([late, SHORT], [1, 0], 0).text
    weights = torch.randn(text.shape[1:], generator=torch.Generator().manual_seed(1))
    first, second = ((row * weights).sum() for row in text)
    assert torch.autograd.grad(first, vectors, retain_graph=True)[0].abs().min() > 1e-4
    assert torch.autograd.grad(second, vectors)[0].abs().max() == 0


def test_gradients_reach_a_text_encoder_by_all_chunks(pipe: darkroom.Pipeline, folder: Path) -> None:
    """Those of a text that stands in a batch several times are those of the text alone."""
    stage = peers.stage_over(replace(PLAIN, train="both", chunks=3), pipe, folder)
    table = pipe.text_encoder.token_embedding.weight
    x, row = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)), slice(0, 1)
    found = []
    for captions in ([LONG], [LONG, LONGER]):
        told = stage.condition(captions, range(len(captions)), 0)
        answer = pipe.denoiser.raw(x.expand(len(captions), -1, -1, -1), 2.0, told)[row]
        found.append(torch.autograd.grad(answer.square().sum(), table)[0])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3 * float(found[0].abs().max()))


def test_texts_of_other_lengths_are_kept_apart(
    pipe: darkroom.Pipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number of chunks has its own texts on disk, those of one shape in one file; the bits are those without."""
    for chunks in (1, 3):
        recipe = replace(PLAIN, chunks=chunks, template="{}|a photo of {}|a picture of {}")
        without, stage = (peers.stage_over(recipe, pipe, folder) for _ in range(2))
        before = set(tmp_path.iterdir())
        stage.keep_texts(tmp_path, ahead=True)
        (place,) = set(tmp_path.iterdir()) - before
        assert len(list(place.iterdir())) == chunks
        live = [without.condition([caption], [0], 0).text for caption in CAPTIONS]
        with monkeypatch.context() as patched:
            patched.setattr(stage.encoders[0], "run", None)  # all is there
            kept = [stage.condition([caption], [0], 0).text for caption in CAPTIONS]
        assert all(map(torch.equal, kept, live))


def test_a_run_from_before_goes_on(tmp_path: Path) -> None:
    old: dict[str, Any] = asdict(PLAIN)
    del old["chunks"]
    check_recipe(old, PLAIN, tmp_path)
    with pytest.raises(TrainingError, match="was trained with chunks=1, not 2"):
        check_recipe(old, replace(PLAIN, chunks=2), tmp_path)


@pytest.mark.parametrize("chunks", [0, -1, 5])
def test_impossible_numbers_of_chunks_are_refused(chunks: int) -> None:
    with pytest.raises(TrainingError, match=f"chunks is {chunks}; it must be between 1 and 4"):
        check(replace(PLAIN, chunks=chunks))
