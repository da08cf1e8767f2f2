"""Token ids against transformers' CLIPTokenizer, known ids, and what no reference can say."""

import json
import pickle
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from darkroom.errors import CheckpointError
from darkroom.prompts.tokenizer import Tokenizer, build_vocabulary, vocabulary_of, write_vocabulary

TORTURE = {
    "empty": "",
    "plain": "a photo of a cat",
    "case": "A PHOTO of a Cat, İstanbul, straße, STRASSE, ǅ ΑΣ ΟΔΟΣ",
    "numbers": "4k 1024x768 3.14159 ² ½ Ⅷ ٣ 1,000,000",
    "apostrophes": "it's IT'S we'RE they've I'm he'll she'd don't rock'n'roll ''s 's' 'tis ' '' '''s ’s !'s",
    "punctuation": "wow!!! what?! (a:1.3) [b] {c} <d> a-b_c/d\\e #tag @me 50% $5 ~ ` ^ | ... … — –",
    "emoji": "🦊 on 🌈 👍🏽 🇫🇷 ❤️ ☺ 1️⃣",
    "zwj": "👨‍👩‍👧‍👦 🏳️‍🌈 👩🏾‍🚀",
    "cjk": "一只狐狸 黄色い背景のキツネ 노란 배경의 여우 漢字かな交じり文ｶﾀｶﾅ",
    "composed": "é ñ ü Å ﬁ ﬀ ㎏ Ω",
    "combining": "e\u0301 n\u0303 a\u0308\u0323 \u0301alone z\u0335\u0321\u0322" + "\u0300" * 50,
    "jamo": "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "indic": "हिन्दी தமிழ் ภาษาไทย བོད་ཡིག",
    "rtl": "שלום \u200fعالم\u200e \u202eevil\u202c \u2066x\u2069 العَرَبِيَّة",
    "controls": "a\x01b\x07c\x1b[31md\x7fe\x80f\x85g\x9fh",
    "nul": "a\0b \0 c\0",
    "spaces": " a\tb\nc\rd\x0be\x0cf\u00a0g\u1680h\u2003i\u2028j\u2029k\u202fl\u205fm\u3000n\u200bo\ufeffp\u180eq ",
    "separators": "a\x1cb\x1dc\x1ed\x1fe",
    "only space": " \t\n\u3000 ",
    "private": "\ue000 \U000f0000 \U0010ffff \uffff \ufffd \ufdd0",
    "astral letters": "𝕳𝖊𝖑𝖑𝖔 𐍈 𠜎 𝟘𝟙",
    "long word": "antidisestablishmentarianism" * 40,
    "long number": "31415926535" * 30,
    "long punctuation": "!?" * 300,
    "no spaces": "thequickbrownfoxjumpsoverthelazydog" * 20,
    "almost special": "<|endoftext <|endoftext| > < |endoftext|> |endoftext| <|START|> </w> a</w> </w>b",
    "break": "a BREAK b AND c <lora:x:1> embedding:foo",
    "html": "a &amp; b &lt;i&gt; <script>alert(1)</script>",
}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    clip = Tokenizer.default()
    write_vocabulary(folder, clip.vocab, clip.merges)
    return folder


@pytest.fixture(scope="module")
def reference(clip_folder):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(clip_folder))


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_vocabulary(
        folder, *build_vocabulary(["a large fox", "on", "yellow", "background", "jalapeño", "狐", ",", "!!"])
    )
    return folder


def reference_ids(reference, text):
    return reference(text, add_special_tokens=False).input_ids


def test_known_ids_of_openai_clip():
    clip = Tokenizer.default()
    assert [clip.bos_id, *clip.encode("a photo of a cat"), clip.eos_id] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (clip.vocab_size, clip.pad_id, clip.max_length, clip.comma_id) == (49408, 49407, 77, 267)
    assert len(clip.merges) == 48894
    assert clip.tokens("A photo's!") == ["a</w>", "photo</w>", "'s</w>", "!</w>"]


@pytest.mark.parametrize("name", TORTURE)
def test_torture_list_equals_transformers(reference, name):
    text = TORTURE[name]
    assert Tokenizer.default().encode(text) == reference_ids(reference, text)


@pytest.mark.parametrize("name", TORTURE)
def test_torture_list_with_a_small_vocabulary(small_folder, name):
    from transformers import CLIPTokenizer

    text = TORTURE[name]
    small = Tokenizer.from_folder(small_folder)
    assert small.encode(text) == reference_ids(CLIPTokenizer.from_pretrained(str(small_folder)), text)


@settings(max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example("\u0345\u0301\u0300 \u1e9e\u0130")
def test_any_text_equals_transformers(reference, text):
    assert Tokenizer.default().encode(text) == reference_ids(reference, text)


@pytest.mark.parametrize("unit", ["x", "a fox, ", "🦊", "\u0301", "!'s "])
def test_a_megabyte_equals_transformers(reference, unit):
    text = unit * (1_000_000 // len(unit.encode()))
    ids = Tokenizer.default().encode(text)
    assert len(ids) > 1000
    assert ids == reference_ids(reference, text)


def test_special_tokens_are_never_parsed_from_text(reference):
    clip = Tokenizer.default()
    text = "a cat<|endoftext|> <|startoftext|> a dog <|ENDOFTEXT|>"
    ids = clip.encode(text)
    assert not {clip.bos_id, clip.eos_id} & set(ids)
    # transformers does parse them; where it is told not to, the ids are ours.
    assert clip.eos_id in reference_ids(reference, text)
    assert ids == reference(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert clip.decode(ids).replace(" ", "") == text.lower().replace(" ", "")


def test_lone_surrogates_are_replaced():
    clip = Tokenizer.default()
    assert clip.encode("a \ud800 cat\udfff") == clip.encode("a \ufffd cat\ufffd")
    assert clip.encode("\ud83e\udd8a") == clip.encode("🦊")


def test_pad_token_that_is_a_character_is_read_as_transformers_reads_it(tmp_path):
    from transformers import CLIPTokenizer

    sd2 = Tokenizer.default("!")
    sd2.save(tmp_path)
    reference = CLIPTokenizer.from_pretrained(str(tmp_path))
    assert (sd2.pad_id, reference.pad_token_id) == (0, 0)
    for text in ("wow!", "a !! b ! c", "!", "e!\u0301 x", "don!'t"):
        assert sd2.encode(text) == reference_ids(reference, text)
    assert Tokenizer.default().encode("wow!") != sd2.encode("wow!")


def test_characters_outside_the_vocabulary_become_unk(tmp_path):
    from transformers import CLIPTokenizer

    tokens = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "ab", "abc</w>", "<|startoftext|>", "<|endoftext|>", "<unk>"]
    vocab = {t: i for i, t in enumerate(tokens)}
    for unk in ("<|endoftext|>", "<unk>"):
        folder = tmp_path / unk.strip("<|>")
        write_vocabulary(folder, vocab, ["a b", "ab c</w>"], unk_token=unk)
        ours, reference = Tokenizer.from_folder(folder), CLIPTokenizer.from_pretrained(str(folder))
        for text in ("abc", "abd", "xyz", "é", "abc zz abca", "狐", ""):
            assert ours.encode(text) == reference_ids(reference, text), text
        assert ours.encode("xy") == [vocab[unk]] * 2


def test_folder_as_transformers_saves_it(tmp_path, reference, clip_folder):
    """transformers 5 writes tokenizer.json in place of vocab.json and merges.txt."""
    from transformers import CLIPTokenizer

    CLIPTokenizer.from_pretrained(str(clip_folder), pad_token="!").save_pretrained(str(tmp_path))
    (tmp_path / "vocab.json").unlink(missing_ok=True)
    ours = Tokenizer.from_folder(tmp_path)
    assert (ours.pad_id, ours.eos_id, ours.max_length) == (0, 49407, 77)
    assert ours.merges == Tokenizer.default().merges
    assert ours.vocab == Tokenizer.default().vocab


def test_special_tokens_map_goes_before_the_configuration(small_folder, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((small_folder / name).read_bytes())
    eos = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True}
    config = {"pad_token": eos, "eos_token": eos, "model_max_length": 20}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_folder(tmp_path).pad_token == "<|endoftext|>"
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    assert Tokenizer.from_folder(tmp_path).pad_id == 0
    assert Tokenizer.from_folder(tmp_path).max_length == 20
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": int(1e30)}))
    assert Tokenizer.from_folder(tmp_path).max_length == 77


def test_saved_and_read_again(tmp_path):
    original = Tokenizer.from_files(*_files(tmp_path / "a", ["fox", "yellow"]), max_length=33)
    original.save(tmp_path / "b")
    again = Tokenizer.from_folder(tmp_path / "b")
    assert (again.vocab, again.merges, again.max_length) == (original.vocab, original.merges, 33)
    assert (tmp_path / "a" / "vocab.json").read_bytes() == (tmp_path / "b" / "vocab.json").read_bytes()


@pytest.mark.parametrize("text", ["a photo of a cat", "wow !!", "狐 🦊 jalapeño", "it 's 4 2"])
def test_decode_gives_the_text_back(text):
    for clip in (Tokenizer.default(), Tokenizer.default("!")):
        if clip.pad_token not in text:
            assert clip.decode(clip.encode(text)) == unicodedata.normalize("NFC", text)
            assert clip.decode(clip.padded(text)) == unicodedata.normalize("NFC", text)


def test_decode_of_broken_and_foreign_ids():
    clip = Tokenizer.default()
    assert clip.decode(clip.encode("🦊")[:1]).endswith("\ufffd")
    assert clip.decode([]) == ""
    with pytest.raises(ValueError, match="49408"):
        clip.decode([49408])


def test_padded_equals_transformers(reference):
    for text in ("", "a cat", "very " * 200):
        expected = reference(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert Tokenizer.default().padded(text) == expected


def test_many_threads_and_pickling():
    clip = pickle.loads(pickle.dumps(Tokenizer.default()))
    texts = [f"{i} foxes on a {'very ' * (i % 9)}yellow background" for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(clip.encode, texts)) == [Tokenizer.default().encode(t) for t in texts]


def _files(folder, words=("fox",)):
    write_vocabulary(folder, *build_vocabulary(words))
    return folder / "vocab.json", folder / "merges.txt"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("vocab.json", b"[1, 2]", "no vocabulary"),
        ("vocab.json", b"{}", "no vocabulary"),
        ("vocab.json", b'{"a": "1"}', "id of token 'a' is 1"),
        ("vocab.json", b'{"a": true}', "id of token 'a' is True"),
        ("vocab.json", b'{"a": -1}', "is -1"),
        ("vocab.json", b'{"a": 1e3}', "1000.0"),
        ("vocab.json", b'{"a": 99999999999}', "99999999999"),
        ("vocab.json", b'{"a": 1}', "no token '<|startoftext|>'"),
        ("vocab.json", b'{"a": ', "not readable JSON"),
        ("vocab.json", b"\xff\xfe\x00", "not readable JSON"),
        ("vocab.json", b"[" * 100_000, "not readable JSON"),
        ("merges.txt", b"#version: 0.2\nf o\nf\n", "line 3: 'f' is not two symbols"),
        ("merges.txt", b"f o x\n", "line 1"),
        ("merges.txt", b"f  o\n", "line 1"),
        ("merges.txt", b"f \n", "line 1"),
        ("merges.txt", b"f q\n", "'f' and 'q'"),
        ("merges.txt", b"f \xff\n", "not UTF-8"),
        ("merges.txt", b"\x80\x02}q\x00.", "not UTF-8"),
        ("tokenizer_config.json", b"[]", "not a JSON object"),
        ("tokenizer_config.json", b'{"eos_token": 5}', "eos_token is 5"),
        ("tokenizer_config.json", b'{"model_max_length": 2}', "2 tokens at once"),
        ("special_tokens_map.json", b'{"pad_token": "[PAD]"}', "no token '[PAD]'"),
        ("tokenizer.json", b'{"model": {"type": "Unigram"}}', "no byte-pair encoding"),
        ("tokenizer.json", b"3", "no byte-pair encoding"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": {}}}', "not a list"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}}', "not two symbols"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "merges": []}}', "no vocabulary"),
    ],
)
def test_broken_files_get_one_sentence(tmp_path, name, content, says):
    _files(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_folder(tmp_path)
    message = str(caught.value)
    assert says in message
    assert str(tmp_path) in message
    assert "\n" not in message
    assert len(message) < 300


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"no vocab\.json"):
        Tokenizer.from_folder(tmp_path)
    vocab, merges = _files(tmp_path)
    merges.unlink()
    with pytest.raises(CheckpointError, match=r"no merges\.txt"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match="can't be read"):
        Tokenizer.from_files(vocab, merges)


def test_windows_line_ends_and_empty_lines_are_no_harm(tmp_path):
    vocab, merges = _files(tmp_path)
    expected = Tokenizer.from_files(vocab, merges).encode("a fox")
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert Tokenizer.from_files(vocab, merges).encode("a fox") == expected


def test_vocabulary_numbering_is_openais():
    clip = Tokenizer.default()
    assert list(vocabulary_of(clip.merges).values()) == list(range(49408))
    assert (clip.vocab["!"], clip.vocab["!</w>"], clip.vocab["in"], clip.vocab["<|startoftext|>"]) == (
        0,
        256,
        512,
        49406,
    )
