"""One step of each training against diffusers' own example scripts: same weights, noise, timesteps; loss and gradients.

The scripts are not part of the package; what they do in a step is written out here with diffusers' own parts.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # for peers
import peers

import darkroom
from darkroom.pipeline import Pipeline
from darkroom.training.controlnet import ControlNetRecipe
from darkroom.training.finetune import FinetuneRecipe, rebuilt
from darkroom.training.objective import DenoisingRecipe, noise_of, times_of
from darkroom.training.parallel import Rank
from darkroom.training.pictures import PictureStage
from darkroom.training.textual_inversion import InversionRecipe

FINE = FinetuneRecipe(**peers.PLAIN, train="both")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peers.write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def pipe(tiny_folder: Path) -> Pipeline:
    return darkroom.load(tiny_folder, device="cpu", dtype="float32")


class Theirs:
    """diffusers' and transformers' networks of a saved model, and its noise schedule."""

    def __init__(self, pipe: Pipeline, place: Path) -> None:
        from diffusers import DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        pipe.save(place, dtype="float32")
        self.unet: Any = UNet2DConditionModel.from_pretrained(place / "unet")
        self.text_encoder: Any = CLIPTextModel.from_pretrained(place / "text_encoder")
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(place / "tokenizer")
        self.scheduler: Any = DDPMScheduler.from_config(dict(pipe.scheduler_config))

    def text(self, captions: list[str]) -> Tensor:
        options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
        answer: Tensor = self.text_encoder(self.tokenizer(captions, **options).input_ids)[0]
        return answer

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        v = self.scheduler.config.prediction_type == "v_prediction"
        answer: Tensor = self.scheduler.get_velocity(x0, noise, t) if v else noise
        return answer


def ours(stage: PictureStage) -> tuple[Tensor, Any]:
    """The loss of a step, with gradients, and its batch."""
    batch = stage.batch(0, Rank())
    torch.manual_seed(7)
    loss, _ = stage.loss(batch, 0, Rank())
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), batch


def draws(recipe: DenoisingRecipe, pipe: Pipeline, x0: Tensor) -> tuple[Tensor, Tensor]:
    """The noise and the timesteps of that step."""
    torch.manual_seed(7)
    noise = noise_of(recipe, x0, Rank())
    t = times_of(recipe, pipe.schedule, len(x0)).long()
    assert len(set(t.tolist())) == len(x0)
    return noise, t


@pytest.mark.parametrize(
    ("prediction", "options"),
    [
        ("epsilon", {}),
        ("epsilon", {"weight": "min-snr", "gamma": 3.0}),
        ("v_prediction", {"noise_offset": 0.1}),
        ("v_prediction", {"weight": "min-snr"}),
    ],
    ids=["epsilon", "epsilon-min-snr", "v-offset", "v-min-snr"],
)
def test_fine_tuning(prediction: str, options: dict[str, Any], pipe: Pipeline, folder: Path, tmp_path: Path) -> None:
    """examples/text_to_image/train_text_to_image.py; the text encoder as train_dreambooth.py has it."""
    from diffusers.training_utils import compute_snr

    pipe = rebuilt(pipe, scheduler_config={**pipe.scheduler_config, "prediction_type": prediction})
    theirs, recipe = Theirs(pipe, tmp_path / "model"), replace(FINE, **options)
    stage = peers.stage_over(recipe, pipe, folder)
    loss, (x0, _, captions) = ours(stage)
    noise, t = draws(recipe, pipe, x0)
    noisy = theirs.scheduler.add_noise(x0, noise, t)
    answer = theirs.unet(noisy, t, encoder_hidden_states=theirs.text(captions)).sample
    error = F.mse_loss(answer, theirs.target(x0, noise, t), reduction="none").mean(dim=(1, 2, 3))
    if recipe.weight == "min-snr":
        snr = compute_snr(theirs.scheduler, t)
        over = snr + 1 if prediction == "v_prediction" else snr
        error = torch.minimum(snr, torch.full_like(snr, recipe.gamma)) / over * error
    expected = error.mean()
    expected.backward()
    assert abs(loss.item() - expected.item()) < 1e-4 * expected.item()
    peers.assert_same_gradients(peers.gradients("unet", pipe.unet), theirs.unet)
    found = peers.gradients("text_encoder", pipe.text_encoder)
    if not any(name.startswith("text_model.") for name, _ in theirs.text_encoder.named_parameters()):
        found = {name.removeprefix("text_model."): gradient for name, gradient in found.items()}  # newer transformers
    peers.assert_same_gradients(found, theirs.text_encoder)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_controlnet(prediction: str, pipe: Pipeline, folder: Path, tmp_path: Path) -> None:
    """examples/controlnet/train_controlnet.py."""
    from diffusers import ControlNetModel

    from darkroom.formats.control import save_controlnet

    pipe = rebuilt(pipe, scheduler_config={**pipe.scheduler_config, "prediction_type": prediction})
    theirs = Theirs(pipe, tmp_path / "model")
    recipe = ControlNetRecipe(**peers.PLAIN, hint="canny", hint_widths=(4, 8, 8, 16))
    stage = peers.stage_over(recipe, pipe, folder)
    net: Any = stage.modules["controlnet"]
    with torch.no_grad():  # zero convolutions would hide everything behind them
        for name, parameter in net.named_parameters():
            if not parameter.any():
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    save_controlnet(tmp_path / "net", net.state_dict(), net.config, torch.float32)
    their_net: Any = ControlNetModel.from_pretrained(tmp_path / "net")
    loss, (x0, _, captions, hints) = ours(stage)
    noise, t = draws(recipe, pipe, x0)
    noisy, text = theirs.scheduler.add_noise(x0, noise, t), theirs.text(captions).detach()
    down, mid = their_net(noisy, t, encoder_hidden_states=text, controlnet_cond=hints, return_dict=False)
    theirs.unet.requires_grad_(False)
    answer = theirs.unet(
        noisy, t, encoder_hidden_states=text, down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample
    expected = F.mse_loss(answer, theirs.target(x0, noise, t))
    expected.backward()
    assert abs(loss.item() - expected.item()) < 1e-4 * expected.item()
    peers.assert_same_gradients(peers.gradients("controlnet", net), their_net)


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_learned_word(vectors: int, pipe: Pipeline, folder: Path, tmp_path: Path) -> None:
    """examples/textual_inversion/textual_inversion.py: gradients of the word's own vectors, several of them too."""
    theirs = Theirs(pipe, tmp_path / "model")
    recipe = InversionRecipe(**peers.PLAIN, word="<blorb>", vectors=vectors, initial="fox")
    stage = peers.stage_over(recipe, pipe, folder)
    loss, (x0, _, captions) = ours(stage)
    assert captions == ["a photo of <blorb>"] * 4
    learned = stage.modules["word"].vectors
    assert isinstance(learned, nn.Parameter)
    names = ["<blorb>", *[f"<blorb>_{i}" for i in range(1, vectors)]]
    assert theirs.tokenizer.add_tokens(names) == vectors
    theirs.text_encoder.resize_token_embeddings(len(theirs.tokenizer))
    table = theirs.text_encoder.get_input_embeddings().weight
    ids = theirs.tokenizer.convert_tokens_to_ids(names)
    table.data[ids] = learned.detach()
    noise, t = draws(recipe, pipe, x0)
    noisy = theirs.scheduler.add_noise(x0, noise, t)
    text = theirs.text([f"a photo of {' '.join(names)}"] * 4)
    expected = F.mse_loss(theirs.unet(noisy, t, encoder_hidden_states=text).sample, theirs.target(x0, noise, t))
    expected.backward()
    assert abs(loss.item() - expected.item()) < 1e-4 * expected.item()
    assert learned.grad is not None
    gradient = table.grad[ids]
    assert (learned.grad - gradient).abs().max() < 1e-3 * gradient.abs().max()
