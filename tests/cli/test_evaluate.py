"""`darkroom evaluate`: a table, or JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluate"))
from judges import WrittenOut, prepared, write_clip, write_inception

Command = Callable[..., Any]  # see conftest.py


def test_scores_of_a_model(command: Command, model: Path) -> None:
    answer = command("evaluate", model, "-n", 2, "--steps", 1, "--guidance", 1, "--json")
    assert (answer.code, answer.err) == (0, "")
    scores = answer.json
    assert scores["pictures_a_category"] == 2
    assert scores["autoencoder_psnr"] > 0
    assert set(scores["categories"]) == {"single", "count", "relation"}
    for rows in scores["categories"].values():
        assert set(rows) == {"seen", "held out", "renders", "reconstructions", "chance"}
        assert rows["renders"]["right"] >= 0.5
        assert rows["seen"]["right"] == 0  # a model of random weights draws no fox


def test_a_new_object(command: Command, model: Path, tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    picture = Image.new("RGBA", (100, 100))
    ImageDraw.Draw(picture).ellipse((10, 10, 90, 90), fill="teal")
    picture.save(tmp_path / "coin.png")
    about = ("--object", "coin", "--glyph", tmp_path / "coin.png", "--word", "<coin>")
    few = ("-n", 2, "--steps", 1, "--guidance", 1)
    answer = command("evaluate", model, *about, *few, "--json")
    assert (answer.code, answer.err) == (0, "")
    rows = answer.json["rows"]
    assert set(rows) == {"new, before", "new, after", "old, before", "old, after", "renders", "reconstructions"}
    assert rows["renders"]["right"] == 1
    assert rows["new, after"]["right"] == 0


def test_pictures_are_measured_and_kept(command: Command, model: Path, tmp_path: Path) -> None:
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(256, size=(40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / f"{i}.png")
        (data / f"{i}.txt").write_text("a fox")
    asked = ("--metrics", "reconstruction,memorisation", "--data", data, "--steps", 1, "--keep", tmp_path / "kept")
    answer = command("evaluate", model, *asked, "--json", "--sheet", tmp_path / "pairs.png")
    assert (answer.code, answer.err) == (0, "")
    assert answer.json["reconstruction"]["pictures"] == answer.json["pictures"] == 4
    assert answer.json["memorisation"]["training_pictures"] == 4
    assert len(list((tmp_path / "kept").glob("*.png"))) == 4
    assert (tmp_path / "pairs.png").is_file()
    folders = command("evaluate", "--pictures", tmp_path / "kept", "--data", data, "--metrics", "memorisation")
    assert folders.out.startswith(f"4 pictures, compared with {data}\nmemorisation: ")


def mmd(x: np.ndarray, y: np.ndarray, kernel: Callable[[np.ndarray, np.ndarray], float], itself: bool) -> float:
    """The squared maximum mean discrepancy as a sum over pairs; `itself`: those of one with itself count too."""
    within = [
        np.mean([kernel(a, b) for i, a in enumerate(v) for j, b in enumerate(v) if itself or i != j]) for v in (x, y)
    ]
    return float(sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y]))


def test_all_distances_from_the_ecosystems_files(command: Command, model: Path, tmp_path: Path) -> None:
    """Drawn, looked at and compared by the command; every figure again from transformers' CLIP, from Inception written
    out, and from the metrics' sums."""
    import torch
    from PIL import Image
    from scipy.linalg import sqrtm
    from transformers import CLIPTokenizer

    data, clip_folder = tmp_path / "data", tmp_path / "clip"
    data.mkdir()
    clip_folder.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(256, size=(5, 6, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
        Image.fromarray(pixels).save(data / f"{i}.png")
        (data / f"{i}.txt").write_text(f"picture number {i} of a fox")
    clip = write_clip(clip_folder)
    state = write_inception(tmp_path / "inception.pth")
    asked = ("--metrics", "fid,kid,cmmd,clip", "--data", data, "--features", tmp_path / "inception.pth", "--features")
    kept = ("--keep", tmp_path / "kept", "--cache", tmp_path / "cache", "--resize", "pytorch-fid")
    answer = command("evaluate", model, *asked, clip_folder, *kept, "-n", 5, "--steps", 1, "--json")
    assert (answer.code, answer.err) == (0, "")
    found = answer.json
    assert found["pictures"] == 5

    drawn = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "kept").glob("*.png"))]
    given = [np.asarray(Image.open(file)) for file in sorted(data.glob("*.png"))]
    # With a model, the data come as it learns them: scaled to its 64 x 64 pixels, the middle cut out.
    given = [np.asarray(Image.fromarray(p).resize((77, 64), Image.Resampling.LANCZOS))[:, 6:70] for p in given]
    captions = [f"picture number {i % 4} of a fox" for i in range(5)]

    def inception(pictures: list[np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
        wide = torch.nn.functional.interpolate(pixels, (299, 299), mode="bilinear", align_corners=False)
        with torch.no_grad():
            return WrittenOut(state)(2 * wide - 1).double().numpy()

    tokenize = CLIPTokenizer.from_pretrained(clip_folder)

    def unit(answer: Any) -> np.ndarray:
        vectors = getattr(answer, "pooler_output", answer).detach().double().numpy()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def see(pictures: list[np.ndarray]) -> np.ndarray:
        return unit(clip.get_image_features(pixel_values=prepared(pictures)))

    x, y = inception(drawn), inception(given)
    mean = x.mean(0) - y.mean(0)
    sigmas = [np.cov(v.T) for v in (x, y)]
    # Covariances of few pictures have few dimensions: in a basis of all of them the matrix root is small and exact.
    basis = np.linalg.svd(np.concatenate([x - x.mean(0), y - y.mean(0)]), full_matrices=False)[2]
    small = [basis @ s @ basis.T for s in sigmas]
    root = sqrtm(small[0] @ small[1]).real
    fid = mean @ mean + sum(np.trace(s) for s in sigmas) - 2 * np.trace(root)
    assert found["fid"] == pytest.approx(fid, rel=1e-3)
    random, expected = np.random.default_rng(0), []
    for _ in range(100):  # subsets of half of the smaller set
        a, b = (v[random.choice(len(v), 2, replace=False)] for v in (x, y))
        expected.append(mmd(a, b, lambda p, q: float(p @ q / 2048 + 1) ** 3, itself=False))
    assert found["kid"]["mean"] == pytest.approx(np.mean(expected), rel=1e-2)
    a, b = see(drawn), see(given)
    distance = 1000 * mmd(a, b, lambda p, q: float(np.exp(-np.square(p - q).sum() / 200)), itself=True)
    assert found["cmmd"] == pytest.approx(distance, rel=1e-3)
    ids = tokenize(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    texts = unit(clip.get_text_features(input_ids=ids))
    assert found["clip"] == pytest.approx(100 * (a * texts).sum(1).clip(0).mean(), rel=1e-3, abs=1e-4)

    (tmp_path / "inception.pth").unlink()
    metrics = ("--metrics", "cmmd,clip", "--data", data, "--features", clip_folder)
    again = command("evaluate", model, *metrics, *kept[:4], "-n", 5, "--steps", 1)
    assert again.out.splitlines()[1:] == [f"CMMD {found['cmmd']:.4f}", f"CLIP score {found['clip']:.2f} (100 cos)"]


def test_scores_of_a_new_object_as_a_table() -> None:
    from darkroom.evaluate.call import as_text

    score = {"background": 1.0, "objects": 0.5, "layout": 0.25, "right": 0.125}
    text = as_text({"word": "<coin>", "pictures_a_row": 8, "rows": {"new, after": score}})
    assert [line.split() for line in text.splitlines()][1:] == [
        ["new,", "after", "100.0%", "50.0%", "25.0%", "12.5%"],
        [],
        ["8", "pictures", "a", "row;", "new:", "<coin>"],
    ]


def test_scores_as_a_table() -> None:
    from darkroom.evaluate.call import as_text

    score = {"background": 1.0, "objects": 0.5, "layout": 0.25, "right": 0.125}
    text = as_text({"autoencoder_psnr": 30.5, "pictures_a_category": 8, "categories": {"single": {"seen": score}}})
    assert [line.split() for line in text.splitlines()] == [
        ["background", "objects", "layout", "right"],
        ["single", "seen", "100.0%", "50.0%", "25.0%", "12.5%"],
        [],
        ["8", "pictures", "a", "row;", "the", "autoencoder", "reconstructs", "with", "30.50", "dB", "PSNR"],
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--count", "0"], "--count is 0"),
        (["--steps", "0"], "--steps is 0"),
        (["--guidance", "nan"], "--guidance is nan"),
        (["--sampler", "eulr"], "eulr"),
        (["--word", "<x>"], "--word tells of a new object; name it, too: object"),
        (["--metrics", ","], "--metrics is empty"),
        (["--data", "x"], "--data is of no use to adherence; name other metrics"),
        (["--metrics", "fud"], "--metrics is 'fud'; it must be one of adherence"),
        (["--metrics", "fid"], "fid needs a network that is not given; name it by --features: pt_inception"),
        (["--metrics", "memorisation"], "name them by --data"),
        (["--resize", "bicubic"], "--resize is 'bicubic'"),
        (["--features", "/nowhere.pth"], "/nowhere.pth does not exist"),
        (["--pictures", "x"], "would draw others; give one"),
        (["--object", "fox"], "'fox' is one of the built-in objects"),
        (["--object", "blarg", "--glyph", "nowhere.png"], "nowhere.png"),
        (["/nowhere"], "/nowhere"),
    ],
)
def test_what_can_t_be_is_one_sentence(arguments: list[str], said: str, command: Command, model: Path) -> None:
    answer = command("evaluate", *([model] if arguments[0].startswith("-") else []), *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence


def test_what_else_was_measured_as_lines() -> None:
    from darkroom.evaluate.call import as_text

    copies = {
        "suspicious": 0.25, "pictures": 8, "training_pictures": 20, "threshold": 0.125, "seen_by": "clip",
        "closest": [{"distance": 0.0625, "picture": f"{i}.png", "training": "t.png"} for i in range(7)],
    }  # fmt: skip
    scores = {
        "reconstruction": {"pictures": 3, "psnr": 30.456, "ssim": 0.91236, "lpips": 0.05},
        "pictures": 8, "compared_with": "24 of data/", "fid": 12.3456, "kid": {"mean": 0.012344, "deviation": 0.001},
        "cmmd": 0.5, "clip": 27.126, "memorisation": copies,
    }  # fmt: skip
    few = " (of few pictures: it says more about their number than about them)"
    lines = as_text(scores).splitlines()
    assert lines[:6] == [
        "reconstruction of 3 pictures: PSNR 30.46 dB, SSIM 0.9124, LPIPS 0.0500",
        "8 pictures, compared with 24 of data/",
        f"FID 12.346{few}",
        "KID 0.01234 +- 0.00100",
        "CMMD 0.5000",
        "CLIP score 27.13 (100 cos)",
    ]
    assert lines[6].startswith(
        "memorisation: 25.0% of 8 pictures are nearer to one of 20 training pictures than 0.1250"
    )
    assert lines[7:] == [f"  0.0625  {i}.png  t.png" for i in range(5)]
    assert as_text({"pictures": 10_000, "compared_with": "x", "fid": 1.0}).splitlines()[1] == "FID 1.000"
    assert as_text({"reconstruction": {"pictures": 1, "psnr": 1.0, "ssim": 0.5}}) == (
        "reconstruction of 1 pictures: PSNR 1.00 dB, SSIM 0.5000"
    )
