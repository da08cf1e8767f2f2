"""Finished text encoders to train a U-Net on: out of a model and out of a CLIP's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from darkroom.errors import TrainingError
from darkroom.formats.save import save_clip
from darkroom.training.pretrained import open_text
from darkroom.training.text_encoder import TextEncoderRecipe, network
from darkroom.training.tokenizer import scene_tokenizer

RECIPE = TextEncoderRecipe(
    steps=1, batch_size=2, lr=1e-3, patch=64, image_width=16, image_layers=1, text_width=16, text_layers=2, heads=2,
    projection=8,
)  # fmt: skip


def test_a_clip_s_text_encoder_is_taken_without_its_projection(tmp_path: Path) -> None:
    tokenizer = scene_tokenizer()
    clip = network(RECIPE, tokenizer).eval()
    save_clip(
        tmp_path, text_encoder=clip.text.state_dict(), text_encoder_config=clip.text.config,
        image_encoder=clip.image.state_dict(), image_encoder_config=clip.image.config, logit_scale=1.0,
        tokenizer=tokenizer,
    )  # fmt: skip
    found, words = open_text(str(tmp_path), "cpu")
    ids = torch.tensor([words.padded("a large fox")])
    assert ids.tolist() == [tokenizer.padded("a large fox")]
    with torch.no_grad():
        assert torch.equal(found(ids), clip.text(ids))
    assert found.projection is None
    assert not any(p.requires_grad for p in found.parameters())
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(TrainingError, match="no CLIP and no model"):
        open_text(str(tmp_path), "cpu")
