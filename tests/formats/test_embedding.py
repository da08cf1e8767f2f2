"""Textual-inversion files of every form, as their tools write them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from darkroom.errors import CheckpointError, RequestError
from darkroom.formats.embedding import (
    Embedding,
    convert_embedding,
    is_embedding,
    learned_words,
    named_in,
    read_embedding,
    save_embedding,
    scan_embeddings,
)
from darkroom.formats.tensors import Glance
from darkroom.prompts.embeddings import LearnedWord, unused

V = torch.randn(3, 768, generator=torch.Generator().manual_seed(0))
G = torch.randn(3, 1280, generator=torch.Generator().manual_seed(1))


def a1111(vectors, wrap=lambda params: params, **more):
    return {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": wrap({"*": vectors}),
        "name": "my style",
        "step": 1500,
        "sd_checkpoint": "81761151",
        "sd_checkpoint_name": "v1-5",
        **more,
    }


def only(path, name=None):
    (word,) = read_embedding(path).learned(name)
    return word


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["tensor", "parameter", "dict"])
def test_a1111(tmp_path, kind, legacy):
    vectors = V if kind == "tensor" else torch.nn.Parameter(V)
    wrap = torch.nn.ParameterDict if kind == "dict" else dict
    path = tmp_path / "My-Style.pt"
    torch.save(a1111(vectors, wrap), path, _use_new_zipfile_serialization=not legacy)
    found = read_embedding(path)
    assert found.form == "a1111"
    assert found.about == {"name": "my style", "step": 1500, "sd_checkpoint": "81761151", "sd_checkpoint_name": "v1-5"}
    word = only(path)
    assert word.names == ("My-Style",)
    assert torch.equal(word.parts[0], V)
    assert is_embedding(Glance(path))


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_diffusers(tmp_path, ending):
    def save(tensors, name):
        path = tmp_path / f"{name}.{ending}"
        save_file(tensors, path) if ending == "safetensors" else torch.save(tensors, path)
        assert is_embedding(Glance(path))
        return path

    one = only(save({"<cat>": V[0].clone()}, "learned_embeds"))
    assert one.names == ("learned_embeds", "<cat>")
    assert torch.equal(one.parts[0], V[:1])
    many = only(save({"<cat>": V.half()}, "half"))
    assert many.parts[0].dtype == torch.float32
    assert torch.equal(many.parts[0], V.half().float())
    rows = {"<cat>_2": V[2].clone(), "<cat>": V[0].clone(), "<cat>_1": V[1].clone()}
    assert torch.equal(only(save(rows, "rows")).parts[0], V)
    several = read_embedding(save({"<a>": V[0].clone(), "<b>": V[1].clone(), "<b>_1": V[2].clone()}, "several"))
    assert {w.names: w.count for w in several.learned()} == {("<a>",): 1, ("<b>",): 2}
    with pytest.raises(RequestError, match="2 words"):
        several.learned("x")
    gap = read_embedding(save({"<a>": V[0].clone(), "<a>_2": V[1].clone()}, "gap"))
    assert [w.names for w in gap.learned()] == [("<a>",), ("<a>_2",)]


def test_kohya_and_sdxl(tmp_path):
    save_file({"emb_params": V}, tmp_path / "k.safetensors")
    assert read_embedding(tmp_path / "k.safetensors").form == "kohya"
    assert only(tmp_path / "k.safetensors").names == ("k",)
    save_file({"clip_l": V, "clip_g": G}, tmp_path / "x.safetensors")
    assert only(tmp_path / "x.safetensors").widths == (768, 1280)
    save_file({"clip_l": V, "clip_g": G[:2].clone()}, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match="3 vectors for one text encoder, 2"):
        read_embedding(tmp_path / "bad.safetensors")


def test_a_name_replaces_the_others(tmp_path):
    save_embedding(tmp_path / "e.safetensors", V, "<cat>")
    assert only(tmp_path / "e.safetensors").names == ("e", "<cat>")
    (word,) = Embedding(tmp_path / "e.safetensors", "Toy").words
    assert word.names == ("Toy",)
    with pytest.raises(RequestError, match="can't be called ''"):
        Embedding(tmp_path / "e.safetensors", "")


@pytest.mark.parametrize("form", ["diffusers", "kohya", "sdxl"])
def test_what_is_saved_comes_back(tmp_path, form):
    vectors = (V, G) if form == "sdxl" else V
    path = save_embedding(tmp_path / "new" / "e.safetensors", vectors, "<cat>", form)
    found = read_embedding(path)
    assert found.form == form
    assert [w.parts[0].equal(V) for w in found.learned()] == [True]
    assert set(load_file(path)) == {"diffusers": {"<cat>"}, "kohya": {"emb_params"}, "sdxl": {"clip_l", "clip_g"}}[form]


def test_saving_what_cannot_be(tmp_path):
    with pytest.raises(CheckpointError, match="no pickles"):
        save_embedding(tmp_path / "e.pt", V, "x")
    with pytest.raises(CheckpointError, match="NaN"):
        save_embedding(tmp_path / "e.safetensors", V * float("nan"), "x")
    with pytest.raises(RequestError, match="'a1111'"):
        save_embedding(tmp_path / "e.safetensors", V, "x", "a1111")
    with pytest.raises(RequestError, match="2 text encoders, not of 1"):
        save_embedding(tmp_path / "e.safetensors", V, "x", "sdxl")
    with pytest.raises(RequestError, match="can't be called ''"):
        save_embedding(tmp_path / "e.safetensors", V)
    assert list(tmp_path.iterdir()) == []


def test_convert_between_the_forms(tmp_path):
    torch.save(a1111(V), tmp_path / "toy.pt")
    first = convert_embedding(tmp_path / "toy.pt", tmp_path / "1.safetensors")
    assert set(load_file(first)) == {"toy"}
    second = convert_embedding(first, tmp_path / "2.safetensors")
    assert set(load_file(second)) == {"emb_params"}
    third = convert_embedding(second, tmp_path / "3.safetensors", "diffusers")
    assert torch.equal(load_file(third)["2"], V)
    with pytest.raises(CheckpointError, match="both the source and the target"):
        convert_embedding(first, first)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"a": torch.tensor([float("nan")] * 8)}, "NaN"),
        ({"emb_params": torch.full((2, 8), float("inf"))}, "NaN or infinity"),
        ({"a": torch.zeros(2, 3, 4)}, r"is \[2, 3, 4\] of float32"),
        ({"a": torch.zeros(0, 8)}, r"is \[0, 8\]"),
        ({"a": torch.zeros(4, dtype=torch.int64)}, "of int64"),
        ({"a": torch.zeros(1025, 4)}, "1,025 vectors"),
        ({"to_q.weight": torch.zeros(4, 4)}, "no textual-inversion"),
        ({str(i): torch.zeros(4) for i in range(300)}, "no textual-inversion"),
        ({"t": torch.zeros(4), "t_1": torch.zeros(5)}, "different widths"),
    ],
)
def test_bad_files(tmp_path, content, told):
    path = tmp_path / "e.safetensors"
    save_file(content, path)
    with pytest.raises(CheckpointError, match=told):
        read_embedding(path).learned()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"string_to_param": {}}, "0 learned words"),
        ({"string_to_param": 3}, "0 learned words"),
        ({"string_to_param": {"*": V, "+": V}}, "2 learned words"),
        (a1111(V * float("nan")), "NaN"),
        (V, "no textual-inversion"),
        ([V], "no textual-inversion"),
        ({"a": V, "b": 3}, "no textual-inversion"),
        ({}, "no textual-inversion"),
    ],
)
def test_bad_pickles(tmp_path, content, told):
    torch.save(content, tmp_path / "e.pt")
    with pytest.raises(CheckpointError, match=told):
        read_embedding(tmp_path / "e.pt")


WIDE = torch.linspace(-1, 1, 3 * 1280).reshape(3, 1280)


@pytest.mark.parametrize(
    ("content", "form", "expected"),
    [
        ({"emp_params": V}, "kohya", (V,)),  # OneTrainer's spelling
        ({"clip_l": V}, "kohya", (V,)),
        ({"clip_h": V}, "kohya", (V,)),
        ({"clip_g": WIDE}, "kohya", (WIDE,)),
        ({"clip_g": WIDE, "clip_l": V}, "sdxl", (V, WIDE)),
        ({"text_encoders_0": V}, "kohya", (V,)),
        ({"text_encoders_1": WIDE, "text_encoders_0": V}, "sdxl", (V, WIDE)),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_tensors_called_by_a_text_encoder(tmp_path, content, form, expected, ending):
    """They are one word's, and not words called `clip_l` that no prompt says."""
    path = tmp_path / f"zork.{ending}"
    (save_file if ending == "safetensors" else torch.save)(
        {name: tensor.contiguous().clone() for name, tensor in content.items()}, path
    )
    found = read_embedding(path)
    assert found.form == form
    (word,) = found.learned()
    assert word.names == ("zork",)
    assert len(word.parts) == len(expected)
    assert all(torch.equal(part, wanted) for part, wanted in zip(word.parts, expected, strict=True))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"clip_l": V, "clip_g": V, "clip_l_out": V, "clip_g_out": V}, "output of a text encoder .clip_g_out"),
        ({"emp_params": V, "emp_params_out": V}, "output of a text encoder .emp_params_out"),
        ({"emp_params_out": V}, "output of a text encoder"),
        ({"clip_l": V, "clip_g": V, "t5": V}, "vectors for t5, a text encoder of Stable Diffusion 3"),
        ({"clip_l": V, "t5_out": V}, "vectors for t5_out"),
        ({"t5": V}, "vectors for t5"),
        ({"clip_l": V, "llama": V}, "vectors for llama"),
        ({"clip_l": V, "cat": V}, "has cat, clip_l for one word"),
        ({"clip_l": V, "emb_params": V}, "has clip_l, emb_params for one word"),
        ({"clip_l": V, "text_encoders_0": V, "clip_g": V}, "for one word"),
    ],
)
def test_tensors_that_would_be_without_effect(tmp_path, content, told):
    content = {name: tensor.clone() for name, tensor in content.items()}
    save_file(content, tmp_path / "e.safetensors")
    torch.save(content, tmp_path / "e.pt")
    for path in (tmp_path / "e.safetensors", tmp_path / "e.pt"):
        assert is_embedding(Glance(path))
        with pytest.raises(CheckpointError, match=told):
            read_embedding(path)


def test_a_word_that_no_prompt_calls_is_told():
    word = LearnedWord(("cat-toy", "<toy>"), (V,))
    assert not unused([word], [("a Cat-Toy", "a1111"), ("", "a1111")])
    assert not unused([word], [("a fox", "plain"), ("<toy>", "plain")])
    (told,) = unused([word], [("a cat", "a1111")])
    assert told == (
        "the embedding 'cat-toy' has no effect: no prompt calls it; write 'cat-toy' or '<toy>', or leave it out"
    )
    (told,) = unused([word], [("a cat-toy", "comfy")])
    assert "write 'embedding:cat-toy' or" in told
    assert not unused([word], [("a embedding:cat-toy", "comfy")])


def test_python_is_told_too(tiny_pipe, tmp_path):
    path = save_embedding(tmp_path / "zork.safetensors", torch.ones(1, 32), "zork")
    with pytest.warns(UserWarning, match="the embedding 'zork' has no effect"):
        tiny_pipe.generate("a fox", embeddings=[path], steps=1)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/darkroom-was-here",)


def test_hostile_and_missing_files(tmp_path):
    torch.save(a1111(V, extra=Evil()), tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"names (posix|nt|os)\.system"):
        read_embedding(tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_embedding(tmp_path / "none.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        read_embedding(tmp_path / "empty.pt")
    with open(tmp_path / "big.safetensors", "wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(CheckpointError, match="more than any embedding"):
        read_embedding(tmp_path / "big.safetensors")
    for name in ("evil", "none", "empty"):
        assert not is_embedding(Glance(tmp_path / f"{name}.pt"))


def test_a_lora_is_no_embedding(tmp_path):
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 768)}, tmp_path / "lora.safetensors")
    assert not is_embedding(Glance(tmp_path / "lora.safetensors"))


def test_a_folder_is_an_index(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("cat.pt", "sub/Dog.safetensors", "sub/cat.bin", "note.txt"):
        (tmp_path / name).write_bytes(b"x")
    folder = scan_embeddings(tmp_path)
    assert folder == {"cat": tmp_path / "cat.pt", "Dog": tmp_path / "sub" / "Dog.safetensors"}
    assert named_in(folder, ["a DOG", "cats"]) == [tmp_path / "sub" / "Dog.safetensors"]
    assert named_in(folder, ["../cat"]) == [tmp_path / "cat.pt"]
    assert named_in(folder, ["a cat embedding:dog"], "comfy") == [tmp_path / "sub" / "Dog.safetensors"]
    with pytest.raises(RequestError, match="is no folder"):
        scan_embeddings(tmp_path / "none")


@pytest.mark.parametrize("given", [3, [3], None, [None]])
def test_what_is_no_list_of_files(given):
    with pytest.raises(RequestError, match="paths of textual-inversion files"):
        learned_words(given)


def test_one_alone_is_a_list(tmp_path):
    path = save_embedding(tmp_path / "e.safetensors", V, "x")
    assert [w.names for w in learned_words(path)] == [("e", "x")]
    assert len(learned_words([str(path), Embedding(path)])) == 2
