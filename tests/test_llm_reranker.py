"""Rerankers that are language models, beside transformers: pairs, the logit of one word, a query computed once."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

from bge_export.checkpoint.recipe import Options
from bge_export.checkpoint.word_logit import PROMPTS
from bge_export.cli.main import cli as export_cli
from bge_export.export import export
from bge_export.recheck import check_bundle
from bge_export.request import Request
from bge_onnx import BundleError, CheckpointError, InputError, Reranker
from bge_onnx.bundle.manifest import sealed
from bge_onnx.cli.main import cli
from bge_onnx.flag import FlagAutoReranker, FlagLLMReranker, FlagReranker
from test_decoders import CONFIGS, write_decoder

SCORE = Options(heads=("score",))
LONG = "what is a bag of words and who ranks it " * 40
PAIRS = [
    ("what is BM25?", "BM25 is a ranking function."),
    ("what is BM25?", "Tea is a drink."),
    ("what is BM25?", ""),
    ("", ""),
    ("", "a passage"),
    ("short", LONG),
    (LONG, "short"),
    (LONG, LONG),
    ("naïve café </s>", "检索 emoji 😀 <bos>"),
]
TASKS = {"gemma": "GemmaForCausalLM", "qwen2": "Qwen2ForCausalLM", "mistral": "MistralForCausalLM"}


def config_of(kind, **changes):
    base = CONFIGS[kind] | {"max_position_embeddings": 2048, "sliding_window": None}
    return base | {"architectures": [TASKS[kind]], "tie_word_embeddings": True} | changes


@pytest.fixture(scope="module", params=["gemma", "qwen2"])
def checkpoint(request, tmp_path_factory):
    return write_decoder(tmp_path_factory.mktemp(request.param) / "checkpoint", config_of(request.param))


def exported(checkpoint, out, target="cpu-fp32", **changes):
    request = Request(model="tiny", target=target, checkpoint=checkpoint, options=Options(heads=("score",), **changes))
    return export(request, out)


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    return exported(checkpoint, tmp_path_factory.mktemp("bundle") / "reranker", max_tokens=512)


@pytest.fixture(scope="module")
def reranker(bundle):
    return Reranker.open(bundle.folder, threads=2)


def joined(tokenizer, pair, max_length, query_max_length=None, prompt=PROMPTS["behind"]):
    """Ids as FlagEmbedding 1.4.2's decoder-only BaseReranker makes them of one pair."""
    query, passage = (
        tokenizer(text, add_special_tokens=False, max_length=length, truncation=True)["input_ids"]
        for text, length in (
            (f"A: {pair[0]}", query_max_length or max_length * 3 // 4),
            (f"B: {pair[1]}", max_length),
        )
    )
    sep, asked = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", prompt))
    first, second = [tokenizer.bos_token_id, *query], [*sep, *passage]
    room = max_length + len(sep) + len(asked) - len(first)
    return [*first, *second[:room], *sep, *asked]


def logits(checkpoint, pairs, max_length):
    """transformers' logits of "Yes" at the last token, each pair alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    yes = tokenizer("Yes", add_special_tokens=False)["input_ids"][0]
    with torch.inference_mode():
        return np.array([
            model(input_ids=torch.tensor([joined(tokenizer, pair, max_length)])).logits[0, -1, yes].item()
            for pair in pairs
        ])  # fmt: skip


@pytest.mark.parametrize("max_tokens", [512, 100, 17])
def test_scores_are_transformers(checkpoint, reranker, max_tokens):
    """Within 2e-5 of the largest logit's size, empty and over-long texts included."""
    wanted = logits(checkpoint, PAIRS, max_tokens)
    found = reranker.score(PAIRS, max_tokens=max_tokens)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert len(np.unique(wanted.round(4))) > 3


@pytest.mark.parametrize("query_max", [None, 5])
def test_token_ids_are_flagembeddings(checkpoint, reranker, query_max):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    found = reranker.pairs.encode(PAIRS, max_tokens=64, query_max_tokens=query_max)
    for pair, ids in zip(PAIRS, found, strict=True):
        assert ids.tolist() == joined(tokenizer, pair, 64, query_max)


def test_a_score_is_the_same_alone_and_in_any_batch(reranker):
    """Bit for bit: a query's keys and values are computed alone, however many passages it has."""
    pairs = PAIRS + [("what is BM25?", f"passage {number} of the same length") for number in range(10, 30)]
    together = reranker.score(pairs)
    alone = np.concatenate([reranker.score([pair]) for pair in pairs])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(reranker.score(pairs[::-1], budget_tokens=64)[::-1], together)


def test_a_query_is_computed_once(reranker, monkeypatch):
    """Its keys and values serve all its passages."""
    beginnings = []
    past_of = type(reranker.session).past_of

    def counted(self, ids):
        beginnings.append(len(ids))
        return past_of(self, ids)

    monkeypatch.setattr(type(reranker.session), "past_of", counted)
    ranked = reranker.rank("what is BM25?", [f"passage {number}" for number in range(8)], top_k=3)
    assert len(ranked) == 3
    assert len(beginnings) == 1


def test_a_long_passage_is_computed_whole(checkpoint, reranker, monkeypatch):
    """Behind a prefix its attention would need a matrix of tokens by tokens."""
    import bge_onnx.reranker

    wanted = reranker.score(PAIRS)
    monkeypatch.setattr(bge_onnx.reranker, "LONG_TOKENS", 1)
    found = reranker.score(PAIRS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_an_output_matrix_of_its_own(tmp_path):
    """Weights that are not tied: the row is lm_head's."""
    folder = write_decoder(tmp_path / "checkpoint", config_of("mistral", tie_word_embeddings=False))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight   expected \(300, 64\), found nothing"):
        exported(folder, tmp_path / "bundle")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(0))
    for file in folder.glob("model*"):
        file.unlink()
    model.save_pretrained(folder)
    reranker = Reranker.open(exported(folder, tmp_path / "bundle").folder)
    wanted = logits(folder, PAIRS[:3], 512)
    np.testing.assert_allclose(reranker.score(PAIRS[:3], max_tokens=512), wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("target", ["cpu-int8", "cpu-int4"])
def test_few_bits(checkpoint, bundle, tmp_path, target):
    """The export's check passes, and the word's row is not rounded."""
    found = exported(checkpoint, tmp_path / "bundle", target, max_tokens=512)
    assert found.parity.heads["score"].measure == "relative"
    assert found.parity.passed
    scores = Reranker.open(found.folder).score(PAIRS)
    np.testing.assert_array_equal(scores[:1], Reranker.open(found.folder).score(PAIRS[:1]))


def test_the_prompt_fits_beside_the_pair(checkpoint, tmp_path):
    """The longest pair has no more tokens than the model has positions."""
    with pytest.raises(CheckpointError, match="expected a maximum of 3 to"):
        exported(checkpoint, tmp_path / "bundle", max_tokens=2048)
    reranker = Reranker.open(exported(checkpoint, tmp_path / "bundle").folder)
    (ids,) = reranker.pairs.encode([(LONG * 9, LONG * 9)], max_tokens=reranker.bundle.max_tokens, query_max_tokens=None)
    assert len(ids) == 2048
    with pytest.raises(InputError, match=r"max_tokens: expected 1 to \d+"):
        reranker.score(PAIRS, max_tokens=2048)


def test_the_bundle_can_be_checked_again(checkpoint, bundle):
    found = check_bundle(bundle.folder, checkpoint)
    assert found.passed
    assert found.heads["score"].max_error == bundle.parity.heads["score"].max_error


def test_a_manifest_without_its_question(bundle, tmp_path):
    """It names what is missing, also where the hash is right."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.folder, folder)
    record = json.loads((folder / "bundle.json").read_text())
    del record["prompts"]["behind"]
    (folder / "bundle.json").write_text(json.dumps(sealed(record)))
    with pytest.raises(BundleError, match="no prompt behind"):
        Reranker.open(folder)


def test_no_language_model(checkpoint, tmp_path):
    """A checkpoint of an embedding model has no logits."""
    folder = write_decoder(tmp_path / "checkpoint", config_of("gemma", architectures=["GemmaModel"]))
    with pytest.raises(CheckpointError, match="expected a language model"):
        exported(folder, tmp_path / "bundle")


def test_flagembeddings_class(checkpoint, bundle, reranker):
    """The same scores, one pair or many; another prompt and other instructions; an adapter is refused."""
    flag = FlagAutoReranker.from_finetuned(str(bundle.folder))
    assert isinstance(flag, FlagLLMReranker)
    wanted = reranker.score(PAIRS, max_tokens=512)
    assert flag.compute_score([list(pair) for pair in PAIRS]) == wanted.tolist()
    assert flag.compute_score(PAIRS[0]) == wanted[:1].tolist()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    prompted = FlagLLMReranker(str(bundle.folder), prompt="Is it?", max_length=64)
    assert prompted.compute_score(PAIRS[:2]) != wanted[:2].tolist()
    assert prompted.compute_score(PAIRS[:2]) == flag.compute_score(PAIRS[:2], prompt="Is it?", max_length=64)
    ids = joined(tokenizer, PAIRS[0], 64, prompt="Is it?")
    pairs = type(reranker.pairs).prompted(
        reranker.tokenizer, bundle.special_ids, {**bundle.prompts, "behind": "Is it?"}
    )
    assert pairs.encode(PAIRS[:1], max_tokens=64, query_max_tokens=None)[0].tolist() == ids
    other = FlagLLMReranker(str(bundle.folder), query_instruction_for_rerank="q: ")
    assert other.compute_score(PAIRS[0]) != wanted[:1].tolist()
    with pytest.raises(InputError, match="peft_path: expected None"):
        FlagLLMReranker(str(bundle.folder), peft_path="adapter")


def test_the_other_class_says_so(bundle):
    with pytest.raises(BundleError, match="Use FlagLLMReranker"):
        FlagReranker(str(bundle.folder))


def test_the_command(checkpoint, tmp_path):
    """`--heads score` exports, beside other heads it is refused; `bge rank` and `bge info` read the bundle."""
    out, passages = tmp_path / "bundle", tmp_path / "passages.txt"
    passages.write_text("tea is a drink\nranking is a task\n")
    command = ["run", "tiny", "--target", "cpu-int8", "--checkpoint", str(checkpoint), "--out", str(out), "--heads"]
    refused = CliRunner().invoke(export_cli, [*command, "dense,score"])
    assert refused.exit_code == 2
    assert "expected score, or dense" in refused.output
    done = CliRunner().invoke(export_cli, [*command, "score"])
    assert done.exit_code == 0, done.output
    ranked = CliRunner().invoke(cli, ["rank", str(out), "what is tea?", str(passages)])
    assert ranked.exit_code == 0, ranked.output
    assert "tea is a drink" in ranked.stdout
    told = CliRunner().invoke(cli, ["info", str(out)])
    assert told.exit_code == 0, told.output
