"""Encoded prompts: against diffusers' and transformers' way, A1111's and ComfyUI's weights, the cache, bad input."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from darkroom.errors import CheckpointError, RequestError
from darkroom.models.config import TextEncoderConfig
from darkroom.models.text_encoder import TextEncoder
from darkroom.prompts.encoder import PromptEncoder
from darkroom.prompts.tokenizer import Tokenizer, build_vocabulary, write_vocabulary

WORDS = ["a", "large", "fox", "on", "yellow", "background", "very", "cat", ","]
D = 32


def tiny(pad="<|endoftext|>"):
    torch.manual_seed(0)
    tokenizer = Tokenizer(*build_vocabulary(WORDS), pad_token=pad)
    config = TextEncoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=D,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    text_encoder = TextEncoder(config).eval()
    with torch.no_grad():  # as in a trained encoder, whose output has a mean
        for parameter in text_encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        text_encoder.final_norm.bias.sub_(0.2)
    return PromptEncoder(tokenizer, text_encoder)


@pytest.fixture
def encoder():
    return tiny()


def run(encoder, rows, clip_skip=0):
    with torch.no_grad():
        return encoder.text_encoder(torch.tensor(rows), clip_skip=clip_skip)


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def twins(request, tmp_path_factory):
    """Our encoder, and the same weights and vocabulary in transformers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    ours = tiny(request.param)
    folder = tmp_path_factory.mktemp("tokenizer")
    ours.tokenizer.save(folder)
    theirs = CLIPTextModel(CLIPTextConfig(**ours.text_encoder.config.to_diffusers())).eval()
    names = {
        "token_embedding": "embeddings.token_embedding",
        "position_embedding": "embeddings.position_embedding",
        "final_norm": "final_layer_norm",
    }
    parts = {"norm1": "layer_norm1", "norm2": "layer_norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    parts |= {f"attention.{n}": f"self_attn.{n}_proj" for n in "qkv"} | {"attention.out": "self_attn.out_proj"}
    state = {}
    prefix = "text_model." if any(k.startswith("text_model.") for k in theirs.state_dict()) else ""
    for name, value in ours.text_encoder.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if stem.startswith("layers."):
            _, i, part = stem.split(".", 2)
            state[f"{prefix}encoder.layers.{i}.{parts[part]}.{kind}"] = value
        else:
            state[f"{prefix}{names[stem]}.{kind}"] = value
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("position_ids") for name in missing)
    return ours, CLIPTokenizer.from_pretrained(str(folder)), theirs


@pytest.mark.parametrize("style", ["plain", "a1111", "comfy"])
@pytest.mark.parametrize("text", ["", "a large fox on yellow background!", "very " * 75, "狐 🦊, e\u0301"])
def test_up_to_75_tokens_equals_diffusers(twins, text, style):
    """What StableDiffusionPipeline.encode_prompt computes."""
    ours, tokenizer, text_model = twins
    ids = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = text_model(ids)[0][0]
    torch.testing.assert_close(ours.encode(text, style), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_equals_diffusers(twins, clip_skip):
    """diffusers counts clip_skip from 0 where A1111 counts from 1."""
    ours, tokenizer, text_model = twins
    ids = tokenizer("a fox", padding="max_length", max_length=77, return_tensors="pt").input_ids
    norm = getattr(text_model, "text_model", text_model).final_layer_norm
    with torch.no_grad():
        expected = norm(text_model(ids, output_hidden_states=True).hidden_states[-clip_skip])[0]
    torch.testing.assert_close(ours.encode("a fox", clip_skip=clip_skip), expected, rtol=1e-5, atol=1e-5)


def test_long_prompts_are_their_chunks_side_by_side(encoder):
    text = "very " * 100 + "fox"
    rows = [encoder.tokenizer.padded("very " * 75), encoder.tokenizer.padded("very " * 25 + "fox")]
    for style in ("plain", "a1111", "comfy"):
        encoded = encoder.encode(text, style)
        assert encoded.shape == (154, D)
        torch.testing.assert_close(encoded, run(encoder, rows).flatten(0, 1))


def test_a1111_weights_multiply_and_keep_the_mean_of_each_chunk(encoder):
    tokenizer = encoder.tokenizer
    encoded = encoder.encode("a (large:1.4) [fox] BREAK a cat BREAK (yellow)")
    expected = []
    for text, weights in (("a large fox", [1, 1.4, 1 / 1.1]), ("a cat", [1, 1]), ("yellow", [1.1])):
        z = run(encoder, [tokenizer.padded(text)])
        weighted = z * torch.tensor([1, *weights, *[1] * (76 - len(weights))])[None, :, None]
        expected.append(weighted * (z.mean() / weighted.mean()))
    torch.testing.assert_close(encoded, torch.cat(expected, 1)[0], rtol=1e-5, atol=1e-6)
    assert (encoded[2] - encoder.encode("a large fox")[2]).abs().max() > 0.01


def test_comfy_weights_are_measured_from_the_empty_prompt(encoder):
    encoded = encoder.encode("a (large:1.4) (fox:0)" + " very" * 80, "comfy")
    rows = [encoder.tokenizer.padded("a large fox" + " very" * 72), encoder.tokenizer.padded(" very" * 8)]
    empty = run(encoder, [encoder.tokenizer.padded("")])[0]
    expected = run(encoder, rows).flatten(0, 1)
    expected[2] = empty[2] + 1.4 * (expected[2] - empty[2])
    expected[3] = empty[3]
    torch.testing.assert_close(encoded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("style", ["a1111", "comfy"])
def test_weights_of_one_change_nothing_to_the_last_bit(encoder, style):
    plain = encoder.encode("a large fox", "plain")
    assert torch.equal(encoder.encode("a large fox", style), plain)
    assert torch.equal(encoder.encode("a large (fox:1.0)", style), plain)
    # A chunk without weights is not touched by those of another.
    long = encoder.encode("very " * 75, "plain")
    if style == "a1111":
        assert torch.equal(encoder.encode("very " * 75 + "BREAK (fox:1.5)")[:77], long)


def test_an_output_without_a_mean_is_not_rescaled(encoder):
    with torch.no_grad():
        encoder.text_encoder.final_norm.weight.fill_(1)
        encoder.text_encoder.final_norm.bias.zero_()
    ratio = encoder.encode("a (fox:1.5)") / encoder.encode("a fox")
    torch.testing.assert_close(ratio[2], torch.full((D,), 1.5))
    torch.testing.assert_close(ratio[3], torch.ones(D))


@pytest.mark.parametrize(
    "text", ["(a:0)", "(a fox:-1)", "(a:1000)", "(" * 10_000 + "a", "[" * 10_000 + "a", "(a:0" * 99]
)
def test_extreme_weights_stay_finite(encoder, text):
    for style in ("a1111", "comfy"):
        assert torch.isfinite(encoder.encode(text, style)).all()


def test_hostile_prompts_are_encoded(encoder):
    for text in ("x" * 32_000, "\0\u202e\ud800<|endoftext|>" * 100, "(" * 10_000, " " * 32_000, "a BREAK " * 400):
        encoded = encoder.encode(text)
        assert encoded.dtype == torch.float32
        assert encoded.shape[0] % 77 == 0
        assert torch.isfinite(encoded).all()


def test_rows_do_not_depend_on_their_number(encoder):
    """More chunks than one call takes, in order, and repeated ones."""
    text = " BREAK ".join(f"a {'very ' * (i % 20)}fox" for i in range(45))
    rows = [encoder.tokenizer.padded(f"a {'very ' * (i % 20)}fox") for i in range(45)]
    torch.testing.assert_close(encoder.encode(text), run(encoder, rows).flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_half_precision_gives_float32(encoder):
    encoder.text_encoder.to(torch.bfloat16)
    assert encoder.encode("a (fox:1.2)").dtype == torch.float32


def count_calls(encoder):
    calls = []
    encoder.text_encoder.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[0]))
    return calls


def test_cache_remembers_by_text_style_and_clip_skip(encoder):
    calls = count_calls(encoder)
    first = encoder.encode("a (fox)")
    assert torch.equal(encoder.encode("a (fox)"), first)
    assert torch.equal(encoder.encode("a (fox)", "a1111", 1), first)  # 0 and 1 are the same layer
    assert len(calls) == 1
    assert not torch.equal(encoder.encode("a (fox)", "plain"), first)
    assert not torch.equal(encoder.encode("a (fox)", clip_skip=2), first)
    assert len(calls) == 3
    encoder.clear()
    encoder.encode("a (fox)")
    assert len(calls) == 4


def test_what_is_returned_is_the_callers(encoder):
    first = encoder.encode("a fox")
    kept = first.clone()
    first.zero_()
    second = encoder.encode("a fox")
    second.zero_()
    assert torch.equal(encoder.encode("a fox"), kept)


def test_cache_is_bounded_and_forgets_the_oldest(encoder):
    encoder.cache_bytes = 3 * 77 * D * 4
    calls = count_calls(encoder)
    for text in ("a", "fox", "cat", "a", "very", "a"):  # "fox" goes when "very" comes
        encoder.encode(text)
    assert len(calls) == 4
    encoder.encode("fox")
    assert len(calls) == 5
    encoder.encode("very " * 400)  # larger than the cache
    encoder.encode("fox")
    assert len(calls) == 6


def test_threads(encoder):
    texts = ["a fox", "a (cat:1.2)", "very " * 100, ""] * 10
    with ThreadPoolExecutor(4) as pool:
        for text, encoded in zip(texts, pool.map(encoder.encode, texts), strict=True):
            torch.testing.assert_close(encoded, encoder.encode(text))


def test_no_gradient_is_kept(encoder):
    assert not encoder.encode("a fox").requires_grad
    assert not encoder.encode("a (fox)").requires_grad


@pytest.mark.parametrize("clip_skip", [-1, 4, 1.5, True, None, "2"])
def test_bad_clip_skip(encoder, clip_skip):
    with pytest.raises(RequestError, match="from 0 to 3"):
        encoder.encode("a", clip_skip=clip_skip)


def test_bad_text_and_style(encoder):
    with pytest.raises(RequestError, match="32,001"):
        encoder.encode("a" * 32_001)
    with pytest.raises(RequestError, match="'x' is unknown"):
        encoder.encode("a", "x")
    with pytest.raises(RequestError, match="not list"):
        encoder.encode(["a"])


def test_tokenizer_of_another_model(encoder):
    other = PromptEncoder(Tokenizer.default(), encoder.text_encoder)
    with pytest.raises(CheckpointError, match="different models"):
        other.encode("a fox")


def test_shorter_positions_make_shorter_chunks(tmp_path):
    write_vocabulary(tmp_path, *build_vocabulary(WORDS), max_length=12)
    encoder = tiny()
    short = PromptEncoder(Tokenizer.from_folder(tmp_path), encoder.text_encoder)
    assert short.encode("very " * 11).shape == (24, D)
