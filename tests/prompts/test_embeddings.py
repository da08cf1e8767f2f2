"""Learned words: found in texts, kept whole, in place of tokens, as diffusers has them."""

from typing import ClassVar

import pytest
import torch

from darkroom.errors import RequestError
from darkroom.models.config import TextEncoderConfig
from darkroom.models.text_encoder import TextEncoder
from darkroom.prompts.chunks import chunk_prompt
from darkroom.prompts.embeddings import Finder, LearnedWord, names_in
from darkroom.prompts.encoder import PromptEncoder
from darkroom.prompts.tokenizer import Tokenizer, build_vocabulary

D = 32
TOKENIZER = Tokenizer(*build_vocabulary(["a", "large", "fox", "cat", "cats", "dog", ","]))


def word(*names, count=1, seed=0, width=D):
    return LearnedWord(names, (0.3 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed)),))


def encoder(**options):
    torch.manual_seed(0)
    config = TextEncoderConfig(
        vocab_size=TOKENIZER.vocab_size,
        hidden_size=D,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=TOKENIZER.bos_id,
        eos_token_id=TOKENIZER.eos_id,
        pad_token_id=TOKENIZER.pad_id,
    )
    return PromptEncoder(TOKENIZER, TextEncoder(config).eval(), **options)


def split(text, *names, style="a1111"):
    words = [word(name, seed=i) for i, name in enumerate(names)]
    return [piece if isinstance(piece, str) else (piece.name,) for piece in Finder(words, style).split(text)]


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("a cat", ["cat"], ["a ", ("cat",)]),
        ("A CAT, cat!", ["Cat"], ["a ", ("Cat",), ", ", ("Cat",), "!"]),
        ("cats scat bobcat", ["cat"], ["cats scat bobcat"]),
        ("cat's cat1 1cat cat_x _cat_", ["cat"], [("cat",), "'s ", ("cat",), "1 1", ("cat",), " ", ("cat",), "_x _",
                                                  ("cat",), "_"]),
        ("a a, an", ["a"], [("a",), " ", ("a",), ", an"]),
        ("my_style-v2 my_style-v21", ["my_style-v2"], [("my_style-v2",), " ", ("my_style-v2",), "1"]),
        ("bad bad_hand bad_hand_5", ["bad", "bad_hand_5", "bad_hand"], [("bad",), " ", ("bad_hand",), " ",
                                                                        ("bad_hand_5",)]),
        ("<cat> a<cat>b <cat>, <cat2>", ["<cat>"], [("<cat>",), " a", ("<cat>",), "b ", ("<cat>",), ", <cat2>"]),
        ("two  words twowords", ["two words"], [("two words",), " twowords"]),
        ("ÉTÉ été étés e\u0301te\u0301", ["été"], [("été",), " ", ("été",), " étés ", ("été",)]),
        ("狐が狐", ["狐"], ["狐が狐"]),  # letters touch: CLIP reads one word
        ("a 🦊🦊", ["🦊"], ["a ", ("🦊",), ("🦊",)]),
        ("\ud800 cat", ["cat"], ["\ufffd ", ("cat",)]),
        (".* a+ [x] \\d", [".*", "a+", "[x]", "\\d"], [(".*",), " ", ("a+",), " ", ("[x]",), " ", ("\\d",)]),
    ],
)  # fmt: skip
def test_names_are_found(text, names, expected):
    assert split(text, *names) == expected
    assert split(text, *names, style="plain") == expected


def test_comfy_calls_them_by_a_prefix():
    assert split("a cat embedding:cat, x", "cat", style="comfy") == ["a cat ", ("cat",), ", x"]
    assert split("embedding:cat.pt Embedding:CAT.safetensors", "cat", style="comfy") == [("cat",), " ", ("cat",)]
    with pytest.raises(RequestError, match="asks for 'embedding:cats'; the embeddings given are cat"):
        split("embedding:cats", "cat", style="comfy")
    assert split("embedding:cat", style="comfy") == ["embedding:cat"]


def test_names_in_a_text():
    assert names_in("A (Cat:1.2) [dog:fox:3]", {"cat", "dog", "a b"}) == {"cat", "dog"}
    assert names_in("a cat embedding:dog", {"cat", "dog"}, "comfy") == {"dog"}
    assert names_in("a", {}) == set()


def test_two_words_of_one_name():
    with pytest.raises(RequestError, match="two embeddings are called 'cat'"):
        Finder([word("cat"), word("CAT", seed=1)])
    assert len(Finder([word("cat"), word("cat")]).words) == 1  # the same file twice


@pytest.mark.parametrize("name", ["", " \n", "x" * 201, None, 3])
def test_bad_names(name):
    with pytest.raises(RequestError, match="can't be called"):
        word(name)


def tokens(text, *words, style="a1111"):
    return [chunk.tokens for chunk in chunk_prompt(text, TOKENIZER, style, words=words)]


@pytest.mark.parametrize("style", ["a1111", "comfy", "plain"])
@pytest.mark.parametrize("count", [1, 2, 74, 75])
def test_a_word_is_never_cut(style, count):
    name = "embedding:w" if style == "comfy" else "w"
    for before in (0, 1, 10, 74, 75, 76):
        text = "cat " * before + f"{name} " + "dog " * 80
        chunks = chunk_prompt(text, TOKENIZER, style, words=[word("w", count=count)])
        assert sum(chunk.tokens for chunk in chunks) == before + count + 80
        found = [(i, at) for i, chunk in enumerate(chunks) for at, _ in chunk.learned]
        assert len(found) == 1
        i, at = found[0]
        assert at + count <= 1 + chunks[i].tokens
        fits = before % 75 + count <= 75
        assert (i, at) == ((before // 75, before % 75 + 1) if fits else (before // 75 + 1, 1))


def test_a_word_moves_with_what_follows_a_comma():
    chunks = chunk_prompt("cat " * 60 + ", w dog " + "dog " * 20, TOKENIZER, words=[word("w", count=3)])
    assert [chunk.tokens for chunk in chunks] == [61, 24]
    assert [at for chunk in chunks for at, _ in chunk.learned] == [1]
    assert tokens("cat " * 70 + ", " + "w", word("w", count=5)) == [71, 5]


@pytest.mark.parametrize("style", ["a1111", "plain"])
def test_a_word_longer_than_a_chunk(style):
    with pytest.raises(RequestError, match="'w' has 76 vectors, more than the 75"):
        tokens("a w", word("w", count=76), style=style)


def test_vectors_stand_in_for_tokens():
    """A word with a token's own vector changes nothing; weights apply to all vectors."""
    enc = encoder()
    table = enc.text_encoder.token_embedding.weight
    fox, cat = (TOKENIZER.encode(text)[0] for text in ("fox", "cat"))
    same = LearnedWord(("w",), (table[[fox, cat]].detach().clone(),))
    for style, called in (("a1111", "w"), ("plain", "w"), ("comfy", "embedding:w")):
        got = enc.encode(f"a large {called}, dog", style, words=[same])
        torch.testing.assert_close(got, enc.encode("a large fox cat, dog", style))
    got = enc.encode("a (w:1.3) dog", words=[same])
    torch.testing.assert_close(got, enc.encode("a (fox cat:1.3) dog"))
    torch.testing.assert_close(
        enc.encode("dog " * 74 + "w", words=[same]), enc.encode("dog " * 74 + "BREAK fox cat"), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("prompt", ["<cat>", "a large <cat> and a dog", "<cat> <cat>", "a fox, <cat>, a dog", "a dog"])
def test_equal_to_diffusers(tmp_path_factory, count, prompt):
    from diffusers import StableDiffusionPipeline
    from diffusers.loaders import TextualInversionLoaderMixin
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(folder)
    enc = encoder()
    tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    model = CLIPTextModel(CLIPTextConfig(**enc.text_encoder.config.to_diffusers())).eval()

    class Loader(TextualInversionLoaderMixin):
        components: ClassVar = {}
        hf_device_map = None

    learned = word("<cat>", count=count)
    theirs = Loader()
    theirs.load_textual_inversion({"<cat>": learned.parts[0].clone()}, tokenizer=tokenizer, text_encoder=model)
    pipe = StableDiffusionPipeline.__new__(StableDiffusionPipeline)
    text = TextualInversionLoaderMixin.maybe_convert_prompt(pipe, prompt, tokenizer)
    ids = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        # Their table, with our words in it, looks the vectors up; our text encoder runs on what was looked up.
        n = TOKENIZER.vocab_size
        ours_ids = torch.tensor([chunk.ids for chunk in enc.chunks(prompt, "plain", [learned])])
        assert ours_ids.shape == ids.shape
        ordinary = ids < n
        assert torch.equal(ours_ids[ordinary], ids[ordinary])
        model.get_input_embeddings().weight[:n] = enc.text_encoder.token_embedding.weight
        looked_up = model.get_input_embeddings()(ids)
        expected = enc.text_encoder(ids, embeddings=looked_up)[0]
    assert torch.equal(~ordinary, (ids >= n))
    torch.testing.assert_close(enc.encode(prompt, "plain", words=[learned]), expected, rtol=1e-5, atol=1e-5)


def test_the_cache_knows_the_words():
    enc = encoder()
    plain = enc.encode("a w")
    one, other = enc.encode("a w", words=[word("w")]), enc.encode("a w", words=[word("w", seed=1)])
    assert not torch.equal(plain, one)
    assert not torch.equal(one, other)
    assert torch.equal(enc.encode("a w", words=[word("w")]), one)
    assert torch.equal(enc.encode("a w"), plain)
    assert torch.equal(enc.encode("a w", words=[word("v")]), plain)


def test_chunks_that_differ_by_a_word_are_not_taken_for_one():
    enc = encoder()
    words = [word("v"), word("w", seed=1)]
    both = enc.encode("a v BREAK a w", words=words)
    torch.testing.assert_close(both[:77], enc.encode("a v", words=words), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[77:], enc.encode("a w", words=words), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(both[:77], both[77:])


def test_words_of_another_model():
    enc = encoder()
    with pytest.raises(RequestError, match=r"'w' is for Stable Diffusion 1.x \(width 768\), and this model is a cu"):
        enc.encode("w", words=[word("w", width=768)])
    enc.encode("a fox", words=[word("w", width=768)])  # not used
    sd2 = encoder(widths=(1024,))
    with pytest.raises(RequestError, match=r"1.x \(width 768\), and this model is Stable Diffusion 2.x \(width 1024\)"):
        sd2.encode("w", words=[word("w", width=768)])
    sdxl = LearnedWord(("w",), (torch.zeros(2, 768), torch.zeros(2, 1280)))
    with pytest.raises(RequestError, match=r"is for SDXL \(width 768 and 1280\)"):
        enc.encode("w", words=[sdxl])


def test_the_part_of_an_encoder_among_several():
    enc = encoder(widths=(16, D), part=1)
    vectors = word("w").parts[0]
    two = LearnedWord(("w",), (torch.zeros(1, 16), vectors))
    torch.testing.assert_close(enc.encode("a w", words=[two]), encoder().encode("a w", words=[word("w")]))


def test_half_precision():
    enc = encoder()
    enc.text_encoder.to(torch.bfloat16)
    assert enc.encode("a (w:1.2)", words=[word("w", count=2)]).dtype == torch.float32
