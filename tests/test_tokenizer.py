"""Texts to token ids: the published ids, truncation, and what is no text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from bge_export.models.random_checkpoint import bert_tokenizer
from bge_onnx import InputError
from bge_onnx.text.tokenizer import Tokenizer
from tiny import truncated

ENGLISH, CHINESE = "tokenizer-bge-small-en-v1.5", "tokenizer-bge-small-zh-v1.5"


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    bert_tokenizer(2000, lower_case=True).save(str(path))
    return Tokenizer.open(path, max_tokens=16)


def golden_cases(data):
    texts = (data / "tokenization-golden/ggml-vocab-bert-bge.gguf.inp").open(encoding="utf-8", newline="").read()
    ids = (data / "tokenization-golden/ggml-vocab-bert-bge.gguf.out").read_text().splitlines()
    return list(zip(texts.split("\n__ggml_vocab_test__\n"), ids, strict=False))


def test_ids_are_those_llama_cpp_recorded(data):
    """All cases that llama.cpp recorded for bge-small-en-v1.5 give the same ids, special tokens around them."""
    tokenizer = Tokenizer.open(data / ENGLISH / "tokenizer.json", max_tokens=512)
    cases = golden_cases(data)
    assert len(cases) == 46
    found = [ids[1:-1].tolist() for ids in tokenizer.encode([text for text, _ in cases])]
    assert found == [[int(token) for token in ids.split()] for _, ids in cases]


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
def test_ids_are_those_of_transformers(data, name):
    """Ids equal AutoTokenizer's, which FlagEmbedding uses, on every text of the parity check."""
    from bge_export.proof.check import TEXTS

    theirs = transformers.AutoTokenizer.from_pretrained(data / name)
    wanted = theirs(list(TEXTS), truncation=True, max_length=512)["input_ids"]
    ours = Tokenizer.open(data / name / "tokenizer.json", max_tokens=512).encode(TEXTS)
    assert [ids.tolist() for ids in ours] == wanted


def test_small_zh_is_cased(data):
    """small-zh turns a word with a capital into [UNK], as in FlagEmbedding: its vocabulary has no capitals."""
    tokenizer = Tokenizer.open(data / CHINESE / "tokenizer.json", max_tokens=512)
    upper, lower = tokenizer.encode(["Hello 中", "hello 中"])
    assert upper[1] == 100
    assert 100 not in lower


@pytest.mark.parametrize("max_tokens", [3, 4, 16])
def test_truncation_keeps_the_end_token(synthetic, max_tokens):
    """A text that is too long ends in [SEP], like every other."""
    (ids,) = synthetic.with_max_tokens(max_tokens).encode(["abc " * 100])
    assert len(ids) == max_tokens
    assert (ids[0], ids[-1]) == (101, 102)


@pytest.mark.parametrize("max_tokens", [-1, 0, 2, 17])
def test_a_limit_out_of_range_is_refused(synthetic, max_tokens):
    """Fewer tokens than the special ones, or more than the model has positions, is an error with the range."""
    with pytest.raises(InputError, match=f"max_tokens: expected 3 to 16 .*, found {max_tokens}"):
        synthetic.with_max_tokens(max_tokens)


def test_an_empty_text_is_a_text(synthetic):
    """Empty and white texts become [CLS] [SEP]."""
    assert [ids.tolist() for ids in synthetic.encode(["", " \t\n"])] == [[101, 102]] * 2


def test_an_iterator_is_read_once(synthetic):
    """Texts may come from an iterator; the check of what they are does not use them up."""
    assert [ids.tolist() for ids in synthetic.encode(text for text in ("ab", "cd"))] == [
        ids.tolist() for ids in synthetic.encode(["ab", "cd"])
    ]


def test_no_texts_give_no_ids(synthetic):
    """An empty list gives an empty list."""
    assert synthetic.encode([]) == []


def test_the_prompt_stands_in_front(synthetic):
    """A prompt and its text are tokenised as one string."""
    (with_prompt,) = synthetic.encode(["def"], prompt="abc")
    (joined,) = synthetic.encode(["abcdef"])
    assert with_prompt.tolist() == joined.tolist()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None], r"texts\[1\]: None"),
        ([b"bytes"], r"texts\[0\]: bytes \(\"b'bytes'\"\)"),
        (["a", "b", 3], r"texts\[2\]: int \('3'\)"),
        (["ok", "cut \ud83d here"], r"texts\[1\]: a lone surrogate .* at position 4"),
        ("one text", r"expected a list of strings, found one string. Put it in a list"),
        (7, "expected a list of strings, found int"),
        (b"one text", r"expected a list of strings, found one string"),
        ([None] * 9, r"texts\[4\]: None\n    and 4 more"),
    ],
)
def test_what_is_no_text_is_named(synthetic, texts, message):
    """Anything but a whole string is an error that names its index and what it is."""
    with pytest.raises(InputError, match=message):
        synthetic.encode(texts)


words = st.text(st.sampled_from("ab cdé 中!'\u0301\u00a0x"), min_size=1, max_size=150)


@given(st.lists(words, min_size=1, max_size=6), st.integers(1, 400))
def test_reading_a_beginning_changes_no_token(synthetic, parts, repeats):
    """A long text gives the ids that reading it whole gives, though only its beginning is read."""
    text = "".join(parts) * repeats
    (ours,) = synthetic.encode([text])
    assert ours.tolist() == truncated(synthetic, text)


@pytest.mark.parametrize("unit", ["word ", "中", "a", " ", "e\u0301", "!"])
def test_ten_megabytes_take_little_memory(synthetic, unit):
    """A text of 10 MB is read only as far as its tokens reach, where it has enough of them."""
    text = unit * (10_000_000 // len(unit.encode()))
    clipped = synthetic._clip(text)
    (ids,) = synthetic.encode([text])
    assert len(ids) <= 16
    if unit in ("word ", "中", "!"):
        assert len(clipped) < 10_000


def test_stored_padding_and_truncation_are_not_used(synthetic, tmp_path):
    """A tokenizer.json that pads to 128, as all-MiniLM-L6-v2's does, does not pad."""
    record = json.loads(synthetic.backend.to_str())
    record["padding"] = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None}
    record["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    (ids,) = Tokenizer.open(tmp_path / "tokenizer.json", max_tokens=16).encode(["abc"])
    assert ids.tolist() == synthetic.encode(["abc"])[0].tolist()
    assert ids.dtype == np.int64


class Table:
    """What a DataFrame has in common with a mapping: going through it gives the names of its columns."""

    columns = ("text", "title")

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize("texts", [{"text": ["a"]}, Table()], ids=["dict", "table"])
def test_what_has_keys_is_refused(tiny, texts):
    """A dict or a DataFrame is refused with what to give instead: its keys are no texts."""
    with pytest.raises(InputError, match=r"whose keys would be taken.\n    Give its texts: list\(table"):
        tiny.embed(texts)
    with pytest.raises(InputError, match="whose keys would be taken"):
        next(tiny.stream(texts))


@pytest.mark.parametrize("texts", [{"a", "b"}, frozenset("ab")])
def test_what_has_no_order_is_refused(tiny, texts):
    """A set has another order in every process: nobody could tell whose vector a row is."""
    with pytest.raises(InputError, match=r"which has no order that vectors could keep.\n    Put it in one: sorted"):
        tiny.embed(texts)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompt": None}, "prompt: expected a string, which may be empty, found None"),
        ({"max_tokens": "x"}, "max_tokens: expected 3 to 512"),
        ({"max_tokens": True}, "max_tokens: expected 3 to 512"),
        ({"normalize": "no"}, "normalize: expected True, False or None, found 'no'"),
        ({"heads": None}, "heads: expected a list of names, as ['dense'], found None"),
        ({"heads": "dense"}, "heads: expected a list of names, as ['dense'], found 'dense'"),
        ({"heads": [None]}, "heads: expected names, as 'dense', found (None,)"),
        ({"truncate_dim": 1.5}, "truncate_dim: expected a whole number or None, found 1.5"),
        ({"mcls": 1}, "mcls: expected True or False, found 1"),
        ({"budget_tokens": "many"}, "budget_tokens: expected a whole number, at least 1, found 'many'"),
    ],
)
def test_arguments_of_another_type(tiny, arguments, said):
    """An argument of another type is one clear error, and never taken for something else."""
    with pytest.raises(InputError) as caught:
        tiny.embed(["a"], **arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize("window", [0, -1, None, 1.5, True])
def test_a_window_of_no_texts_is_refused(tiny, window):
    """A stream would end before its first text."""
    with pytest.raises(InputError, match="window: expected a whole number of texts, at least 1"):
        next(tiny.stream(["a"], window=window))


@pytest.mark.parametrize("token_ids", ["ab", {1: 2}, 7, [7], [[[1]]], [[1], "x"], [[1, [2]]], [None]])
def test_token_ids_of_another_form(tiny, token_ids):
    """Token ids that are no lists of whole numbers are one clear error."""
    with pytest.raises(InputError, match="token_ids"):
        tiny.embed_token_ids(token_ids)
