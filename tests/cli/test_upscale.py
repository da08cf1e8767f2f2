"""`darkroom upscale` and `generate --hires`: what is said before and after a model is loaded."""

from __future__ import annotations

import pytest
from PIL import Image

from darkroom.cli import run


@pytest.fixture
def fox(tmp_path):
    path = tmp_path / "fox.png"
    Image.effect_noise((40, 30), 60).convert("RGB").save(path)
    return path


def test_a_picture_twice_as_large(fox, tmp_path, tiny_folder, capsys):
    out = tmp_path / "large.png"
    assert run(["upscale", str(fox), "--model", str(tiny_folder), "--steps", "4", "--seed", "1", "-o", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert Image.open(out).size == (80, 60)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upscale", "nope.png"], "'nope.png' does not exist"),
        (["upscale", "FOX", "--scale", "two"], "'two' is not a number"),
        (["upscale", "FOX", "--tile", "4"], "--tile is 4"),
        (["upscale", "FOX", "--scale", "0"], "--scale is 0"),
        (["upscale", "FOX", "--size", "64x64"], "--size is given"),
        (["generate", "a fox", "--hires-steps", "3"], "without --hires"),
        (["generate", "a fox", "--hires", "0.5"], "hires scale is 0.5"),
    ],
)
def test_one_sentence(fox, tiny_folder, capsys, arguments, words):
    arguments = [str(fox) if argument == "FOX" else argument for argument in arguments]
    assert run([*arguments, "--model", str(tiny_folder)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_by_a_network(tmp_path, capsys):
    import numpy as np
    import torch

    from darkroom.formats.upscaler import save_upscaler
    from darkroom.models.upscaler import Compact, CompactConfig

    config = CompactConfig(width=4, layers=1, scale=2)
    torch.manual_seed(0)
    file = str(save_upscaler(tmp_path / "net.safetensors", Compact(config).state_dict(), config))
    values = np.random.default_rng(0).integers(0, 256, (9, 6, 4)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "small.png")
    small, large = str(tmp_path / "small.png"), str(tmp_path / "large.png")
    assert run(["upscale", small, "--upscaler", file, "-o", large]) == 0
    with Image.open(large) as picture:
        assert (picture.mode, picture.size) == ("RGBA", (12, 18))
    assert run(["upscale", small, "--upscaler", file, "-o", str(tmp_path / "a.jpg"), "--scale", "3"]) == 0
    with Image.open(tmp_path / "a.jpg") as picture:
        assert (picture.mode, picture.size) == ("RGB", (18, 27))
    for arguments, sentence in (
        ([small, "--upscaler", file, "--strength", "0.3"], "--strength is given"),
        ([small, "--upscaler", str(tmp_path / "no.pth")], "there is no upscaler"),
        ([small, "--upscaler", small], "small.png"),
        ([small, "--upscaler", file, "--scale", "99"], "scale is 99"),
    ):
        capsys.readouterr()
        assert run(["upscale", *arguments]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert sentence in told
