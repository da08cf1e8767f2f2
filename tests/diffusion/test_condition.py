"""Conditions of different lengths in one call."""

from __future__ import annotations

import torch

from darkroom.diffusion.condition import alike


def test_texts_of_different_lengths_answer_in_one_call_as_alone(tiny_pipe):
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randn(1, length, 32, generator=generator) for length in (4, 6, 2, 4)]
    x, t = torch.randn(4, 4, 8, 8, generator=generator), torch.tensor([3.0, 500.0, 900.0, 20.0])
    together = torch.cat(alike(texts))
    assert together.shape == (4, 12, 32)
    with torch.no_grad():
        found = tiny_pipe.unet(x, t, together)
        for i, text in enumerate(texts):
            torch.testing.assert_close(found[i : i + 1], tiny_pipe.unet(x[i : i + 1], t[i : i + 1], text))


def test_texts_of_one_length_stay_as_they_are():
    texts = [torch.randn(3, 8), torch.randn(3, 8)]
    assert all(torch.equal(a, b) for a, b in zip(alike(texts), texts, strict=True))
