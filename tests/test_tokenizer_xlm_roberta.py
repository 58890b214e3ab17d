"""XLM-RoBERTa's kind of tokenizer, on small SentencePiece unigram models that were really trained."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from bge_export.checkpoint.tokenizer import load_tokenizer
from bge_export.proof.check import TEXTS
from bge_onnx.errors import CheckpointError
from bge_onnx.text.tokenizer import Tokenizer
from tiny import truncated

NAMES = ("unigram_en_1000", "unigram_ja_8000")
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "<mask>")


def write_folder(folder, data, name):
    """What XLM-RoBERTa's checkpoints had before there was tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(data / f"tokenizer-spm-small/{name}.model", folder / "sentencepiece.bpe.model")
    (folder / "config.json").write_text('{"model_type": "xlm-roberta"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    return folder


@pytest.fixture(scope="session")
def opened(data, tmp_path_factory):
    """The runtime's tokenizer of each model, 16 tokens, by name."""
    found = {}
    for name in NAMES:
        folder = write_folder(tmp_path_factory.mktemp(name), data, name)
        load_tokenizer(folder).backend_tokenizer.save(str(folder / "exported.json"))
        found[name] = Tokenizer.open(folder / "exported.json", max_tokens=16)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_sentencepiece_s(opened, data, name):
    """Ids are those of the sentencepiece library moved by one, <s> and </s> around them, as fairseq numbered them."""
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(data / f"tokenizer-spm-small/{name}.model"))
    texts = [text for text in TEXTS if text.strip() and not any(token in text for token in SPECIAL)]
    assert len(texts) > 10
    found = [opened[name].backend.encode(text).ids for text in texts]
    assert found == [[0, *(piece + 1 if piece else 3 for piece in oracle.encode(text)), 2] for text in texts]


@pytest.mark.parametrize("name", NAMES)
def test_specials_in_a_text_are_themselves(opened, name):
    """A special token's name in a text is that token, and a white text has the two special tokens only."""
    found = opened[name].encode(["<pad><unk></s>", "", " \t\n "])
    assert [ids.tolist() for ids in found] == [[0, 1, 3, 2, 2], [0, 2], [0, 2]]


@pytest.mark.parametrize("count", [600, 601, 1000, 1001])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_without_spaces_is_read_whole(opened, name, count):
    """The end of a word changes its first tokens: a run of dashes begins with one where its number is odd, else two."""
    (ids,) = opened[name].encode(["-" * count])
    assert ids.tolist() == truncated(opened[name], "-" * count)


words = st.text(st.sampled_from("ab-- 日本語アー。e\u0301 \u3000<pad>"), min_size=1, max_size=60)


@given(st.sampled_from(NAMES), st.lists(words, min_size=1, max_size=6), st.integers(1, 400))
def test_reading_a_beginning_changes_no_token(opened, name, parts, repeats):
    """A long text gives the ids that reading it whole gives, though only its beginning is read."""
    text = "".join(parts) * repeats
    (ours,) = opened[name].encode([text])
    assert ours.tolist() == truncated(opened[name], text)


def test_a_damaged_model_is_named(data, tmp_path):
    """A sentencepiece file that is cut is an error that names it."""
    folder = write_folder(tmp_path, data, NAMES[0])
    path = folder / "sentencepiece.bpe.model"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"expected a tokenizer, found .*\n.*ownload the checkpoint again"):
        load_tokenizer(folder)


def test_recorded_ids(data):
    """The ids that transformers' tests record for XLM-RoBERTa, where bge-m3's own tokenizer is given."""
    checkpoints = os.environ.get("BGE_CHECKPOINTS")
    path = Path(checkpoints or "") / "bge-m3/tokenizer.json"
    if not checkpoints or not path.is_file():
        pytest.skip("needs the tokenizer of BAAI/bge-m3 in a folder bge-m3 under BGE_CHECKPOINTS")
    cases = json.loads((data / "tokenization-golden/xlmr.json").read_text(encoding="utf-8"))["cases"]
    found = Tokenizer.open(path, max_tokens=8192).encode([case["text"] for case in cases])
    assert [ids.tolist() for ids in found] == [case["ids"] for case in cases]
