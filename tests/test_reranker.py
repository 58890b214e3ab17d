"""Rerankers: cross-encoders of BERT and XLM-R beside transformers, pair by pair."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.models import random_checkpoint
from bge_export.recheck import check_bundle
from bge_export.request import Request
from bge_onnx import BundleError, CheckpointError, Embedder, InputError, Reranker
from bge_onnx.cli.main import cli
from bge_onnx.flag import FlagAutoReranker, FlagReranker
from bge_onnx.text.pair_tokens import PairTokens
from bge_onnx.text.tokenizer import Tokenizer
from tiny import CONFIG, M3_CONFIG

SIZES = {"hidden_size": 64, "intermediate_size": 128}
HEADS = {
    "bert": {"architectures": ["BertForSequenceClassification"]},
    "xlm-roberta": {"architectures": ["XLMRobertaForSequenceClassification"]},
}
LONG = "what is a bag of words and who ranks it " * 60
PAIRS = [
    ("what is BM25?", "BM25 is a ranking function."),
    ("what is BM25?", "Tea is a drink."),
    ("", ""),
    ("a", ""),
    ("", "a passage"),
    ("short", LONG),
    (LONG, "short"),
    (LONG, LONG),
    ("naïve café [SEP] </s>", "检索 emoji 😀 <s> [CLS]"),
]


def config_of(model_type, **changes):
    base = CONFIG if model_type == "bert" else M3_CONFIG
    return base | SIZES | HEADS[model_type] | {"id2label": {"0": "LABEL_0"}} | changes


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def checkpoint(request, tmp_path_factory):
    """A two-layer cross-encoder with seeded weights."""
    return write_reranker(tmp_path_factory.mktemp(request.param), request.param)


def write_reranker(folder, model_type):
    folder.mkdir(exist_ok=True)
    random_checkpoint.write(folder, config_of(model_type), seed=0, lower_case=False, heads=("score",))
    return folder


def exported(checkpoint, out, target="cpu-fp32", **changes):
    return export(Request(model="tiny", target=target, checkpoint=checkpoint, **changes), out)


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    return exported(checkpoint, tmp_path_factory.mktemp("bundle") / "reranker")


@pytest.fixture(scope="module")
def reranker(bundle):
    return Reranker.open(bundle.folder, threads=2)


def joined(tokenizer, pair, max_length, query_max_length=None):
    """Ids and types as FlagEmbedding 1.4.2 makes them of one pair: cut apart, then joined, the second cut again."""
    query_max_length = query_max_length or max_length * 3 // 4
    query = tokenizer(pair[0], add_special_tokens=False, max_length=query_max_length, truncation=True)["input_ids"]
    passage = tokenizer(pair[1], add_special_tokens=False, max_length=max_length, truncation=True)["input_ids"]
    if tokenizer.backend_tokenizer.encode("a", "a").type_ids[-1]:  # BERT's
        room = max_length - 3 - len(query)
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        passage = passage[:room]
        return [cls, *query, sep, *passage, sep], [0] * (len(query) + 2) + [1] * (len(passage) + 1)
    room = max_length - 4 - len(query)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = [bos, *query, eos, eos, *passage[:room], eos]
    return ids, [0] * len(ids)


def logits(checkpoint, pairs, max_length):
    """transformers' scores, each pair alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    assert model.num_labels == 1
    found = []
    for pair in pairs:
        ids, types = joined(tokenizer, pair, max_length)
        given = {"input_ids": torch.tensor([ids])}
        if model.config.type_vocab_size > 1:
            given["token_type_ids"] = torch.tensor([types])
        with torch.inference_mode():
            found.append(model(**given).logits.item())
    return np.array(found)


@pytest.mark.parametrize("max_tokens", [512, 100, 17])
def test_scores_are_transformers(checkpoint, reranker, max_tokens):
    """Within 2e-5 of the largest logit's size, empty and over-long texts included."""
    wanted = logits(checkpoint, PAIRS, max_tokens)
    found = reranker.score(PAIRS, max_tokens=max_tokens)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert len(np.unique(wanted.round(6))) > 5  # the model tells them apart


@pytest.mark.parametrize("query_max", [None, 5])
def test_token_ids_are_flagembeddings(checkpoint, bundle, query_max):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    own = PairTokens.of(Tokenizer.open(bundle.folder / bundle.tokenizer, max_tokens=bundle.max_tokens))
    found = own.encode(PAIRS, max_tokens=64, query_max_tokens=query_max)
    for pair, ids in zip(PAIRS, found, strict=True):
        types, token_ids = np.divmod(ids, 1 << 40)
        wanted = joined(tokenizer, pair, 64, query_max)
        assert (token_ids.tolist(), types.tolist()) == wanted, pair


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8"])
def test_a_score_does_not_depend_on_the_others(checkpoint, tmp_path, target):
    """Bit for bit, alone, in any order and with any threads."""
    bundle = exported(checkpoint, tmp_path / "bundle", target)
    both = [Reranker.open(bundle.folder, threads=threads) for threads in (1, 2)]
    together = both[1].score(PAIRS)
    for reranker in both:
        np.testing.assert_array_equal(reranker.score(PAIRS[::-1])[::-1], together)
        alone = [reranker.score([pair])[0] for pair in PAIRS]
        np.testing.assert_array_equal(np.array(alone), together)


def test_eight_bits_are_close(checkpoint, reranker, tmp_path):
    """Rounded scores keep the order of pairs that are apart."""
    rounded = Reranker.open(exported(checkpoint, tmp_path / "int8", "cpu-int8").folder).score(PAIRS)
    exact = reranker.score(PAIRS)
    assert np.corrcoef(rounded, exact)[0, 1] > 0.99


def test_portable_gives_the_same(checkpoint, reranker, tmp_path):
    """And its graph is what sentence-transformers' CrossEncoder looks for."""
    bundle = exported(checkpoint, tmp_path / "portable", "portable")
    np.testing.assert_allclose(Reranker.open(bundle.folder).score(PAIRS), reranker.score(PAIRS), atol=2e-6)
    assert (bundle.graph, bundle.outputs["score"]) == ("onnx/model.onnx", "logits")
    assert not (bundle.folder / "modules.json").exists()


def test_the_bundle_can_be_checked_again(checkpoint, bundle):
    parity = check_bundle(bundle.folder, checkpoint)
    assert parity.passed
    assert set(parity.heads) == {"score"}


def test_the_last_layer_is_computed_for_the_first_token_alone(bundle):
    import onnx

    graph = onnx.load(bundle.folder / "model.onnx", load_external_data=False).graph
    assert {value.name for value in graph.output} == {"score"}
    assert "pooling.Slice" in {node.name for node in graph.node}


def test_rank(reranker):
    """Best first, equal scores in the order given, as many as asked for."""
    passages = ["BM25 is a ranking function.", "Tea is a drink.", "Tea is a drink."]
    scores = reranker.score([("what is BM25?", passage) for passage in passages])
    ranked = reranker.rank("what is BM25?", passages)
    assert [place.index for place in ranked] == np.argsort(-scores, kind="stable").tolist()
    assert ranked[0].score == scores.max()
    assert reranker.rank("what is BM25?", passages, top_k=1) == ranked[:1]
    assert reranker.rank("what is BM25?", []) == []


def test_streams_and_windows(reranker, monkeypatch):
    whole = reranker.score(PAIRS)
    np.testing.assert_array_equal(np.concatenate(list(reranker.stream(iter(PAIRS), window=2))), whole)
    monkeypatch.setattr("bge_onnx.reranker.WINDOW_PAIRS", 2)
    np.testing.assert_array_equal(reranker.score(PAIRS), whole)
    assert reranker.score([]).shape == (0,)
    assert list(reranker.stream([])) == []


def test_normalized_scores_are_shares(reranker):
    plain = reranker.score(PAIRS).astype(np.float64)
    np.testing.assert_allclose(reranker.score(PAIRS, normalize=True), 1 / (1 + np.exp(-plain)), atol=1e-6)


def test_a_reranker_can_be_pickled(reranker):
    again = pickle.loads(pickle.dumps(reranker))
    np.testing.assert_array_equal(again.score(PAIRS), reranker.score(PAIRS))


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ("text", {}, "pairs: expected a list of pairs"),
        (["text"], {}, r"pairs\[0\]: expected a query and a passage, found 'text'"),
        ([("a", None)], {}, r"pairs\[0\]: expected a query and a passage, found None"),
        ([("a", "b", "c")], {}, r"pairs\[0\]: expected a query and a passage"),
        ([("a", "\ud800")], {}, "lone surrogate"),
        ([("a", "b")], {"max_tokens": 4}, "max_tokens: expected"),
        ([("a", "b")], {"max_tokens": 100_000}, "max_tokens: expected .*limit.*, found 100000"),
        ([("a", "b")], {"max_tokens": 20, "query_max_tokens": 20}, "query_max_tokens: expected 1 to 1[67]"),
    ],
)
def test_bad_input_is_named(reranker, pairs, options, message):
    with pytest.raises(InputError, match=message):
        reranker.score(pairs, **options)


def test_bad_rankings_are_named(reranker):
    with pytest.raises(InputError, match="query: expected a string, found None"):
        reranker.rank(None, ["a"])
    with pytest.raises(InputError, match="texts: expected a list of strings, found one string"):
        reranker.rank("a", "b")
    with pytest.raises(InputError, match="top_k: expected a whole number"):
        reranker.rank("a", ["b"], top_k=0)


def test_the_wrong_class_says_which(bundle, tiny_bundle):
    with pytest.raises(BundleError, match=r"found a reranker.*\n.*Reranker\.open"):
        Embedder.open(bundle.folder)
    with pytest.raises(BundleError, match=r"expected a reranker, found a bundle that gives dense.*\n.*Embedder\.open"):
        Reranker.open(tiny_bundle)


def changed(checkpoint, folder, **changes):
    shutil.copytree(checkpoint, folder)
    record = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("labels", [{"0": "no", "1": "yes"}, None])
def test_several_labels_are_refused(checkpoint, tmp_path, labels):
    """Two are transformers' default where a file says nothing."""
    folder = changed(checkpoint, tmp_path / "labels", id2label=labels)
    with pytest.raises(CheckpointError, match="expected a reranker, with one label"):
        exported(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_missing_is_refused(tiny_checkpoint, tmp_path):
    """transformers would make a random one."""
    folder = changed(tiny_checkpoint, tmp_path / "none", id2label={"0": "LABEL_0"}, **HEADS["bert"])
    with pytest.raises(CheckpointError, match=r"classifier\.weight   expected \(1, 32\), found nothing"):
        exported(folder, tmp_path / "out")


def test_the_encoder_of_a_reranker_can_be_exported_for_its_vectors(checkpoint, tmp_path):
    """Where the files say that it is no reranker: then the head is harmless, or unknown."""
    folder = changed(checkpoint, tmp_path / "encoder", architectures=["BertModel"])
    with pytest.raises(CheckpointError, match=r"classifier.*unknown"):
        exported(folder, tmp_path / "out", options=Options(pooling="cls"))


def test_the_command_ranks_a_file(bundle, reranker, tmp_path):
    file = tmp_path / "hits.jsonl"
    passages = ["BM25 is a ranking function.", "Tea is a drink."]
    file.write_text("".join(json.dumps({"_id": f"p{n}", "text": text}) + "\n" for n, text in enumerate(passages)))
    shown = CliRunner().invoke(cli, ["rank", str(bundle.folder), "what is BM25?", str(file), "--top-k", "1"])
    assert shown.exit_code == 0, shown.output
    (line,) = map(json.loads, shown.stdout.splitlines())
    best = reranker.rank("what is BM25?", passages)[0]
    assert line == {
        "score": round(best.score, 6), "index": best.index, "id": f"p{best.index}", "passage": passages[best.index]
    }  # fmt: skip


def test_the_command_says_what_is_no_reranker(tiny_bundle):
    shown = CliRunner().invoke(cli, ["rank", str(tiny_bundle), "a", "-"], input="b\n")
    assert isinstance(shown.exception, BundleError)


def test_flagembeddings_class(bundle, reranker):
    """A list of floats, of one pair too; instructions stand in front; 512 tokens by default."""
    flag = FlagReranker(str(bundle.folder), query_instruction_for_rerank="A: ", passage_instruction_for_rerank="B: ")
    found = flag.compute_score(PAIRS)
    assert isinstance(found, list)
    limit = min(512, bundle.max_tokens)
    wanted = reranker.score([("A: " + query, "B: " + passage) for query, passage in PAIRS], max_tokens=limit)
    np.testing.assert_array_equal(np.array(found, dtype=np.float32), wanted)
    assert flag.compute_score(list(PAIRS[0])) == found[:1]
    shares = FlagAutoReranker.from_finetuned(str(bundle.folder), normalize=True).compute_score([PAIRS[0]])
    assert shares == reranker.score([PAIRS[0]], normalize=True, max_tokens=limit).tolist()
    assert flag.compute_score(PAIRS[:1], max_length=20, query_max_length=4, normalize=True)[0] > 0
    with pytest.raises(InputError, match="model_class: expected one of encoder-only-base"):
        FlagAutoReranker.from_finetuned(str(bundle.folder), model_class="decoder-only-layerwise")
    with pytest.raises(BundleError, match="Use FlagReranker"):
        FlagAutoReranker.from_finetuned(str(bundle.folder), model_class="decoder-only-base")


def test_an_error_is_relative_to_the_largest_score(checkpoint, bundle, reranker, monkeypatch):
    """A pair that runs alone, whose score is close to 0, is not compared with its own score."""
    from bge_export.checkpoint.recipe import read_recipe
    from bge_export.lowering.limits import Limits
    from bge_export.lowering.lower import Lowering
    from bge_export.proof import check, compare

    expected = check.expect(checkpoint, read_recipe(checkpoint, None, 512, Options()), Lowering({}))
    scores = expected.heads.by_head["score"]
    largest = np.abs(scores).max()
    scores[3] = largest / 1000
    alone = [([3], scores[[3]] + largest / 100)]
    monkeypatch.setattr(compare, "vectors_of", lambda *_, **__: expected.heads)
    monkeypatch.setattr(compare, "_other_ways", lambda *_: iter(alone))
    found = compare.compare(reranker, expected, Limits()).heads["score"]
    assert found.text == 3
    assert found.max_error == pytest.approx(0.01, rel=1e-3)


@pytest.fixture
def task(tmp_path):
    """A folder in BEIR's form: five queries, twelve passages."""
    folder = tmp_path / "task"
    folder.mkdir()
    words = ["tea", "coffee", "rank", "search", "vector", "token", "graph", "model", "score", "text", "word", "page"]
    passages = [{"_id": f"p{n}", "text": " ".join(words[n:] + words[:n])} for n in range(12)]
    queries = [{"_id": f"q{n}", "text": f"{words[n]} {words[n + 1]}"} for n in range(5)]
    for name, rows in (("corpus", passages), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"q{n}\tp{n}\t1\n" for n in range(5))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def test_evaluate_reranks_the_best(bundle, checkpoint, tiny_bundle, task, tmp_path):
    """nDCG@10 of the new ranking; two rerankers are compared, and one with itself is the same."""
    from bge_export.cli.main import cli as export_cli

    command = ["evaluate", str(tiny_bundle), "--task", str(task), "--top-k", "8", "--json"]
    once = CliRunner().invoke(export_cli, [*command, "--rerank", str(bundle.folder)])
    assert once.exit_code == 0, once.output
    assert 0 < json.loads(once.stdout)["all"]["reranked_ndcg_at_10"] <= 1
    both = CliRunner().invoke(export_cli, [*command, *["--rerank", str(bundle.folder)] * 2])
    found = json.loads(both.stdout)["all"]
    assert found["reranked_ndcg_at_10"] == found["other_reranked_ndcg_at_10"]
    assert [found[f"rerankers_{name}"] for name in ("top_10_overlap", "same_best")] == [1, 1]
    assert found["rerankers_spearman"] == pytest.approx(1)


def test_a_reranked_ranking_is_by_score(bundle, reranker, task):
    """The candidates in the order of their scores; those alone count."""
    from bge_export.evaluate.reranking import rerank
    from bge_export.evaluate.tasks import open_task

    opened = open_task(str(task), None)
    candidates = np.array([[0, 5, 7], [2, 1, 3], [4, 6, 8], [3, 9, 10], [11, 4, 0]])
    found = rerank(opened, candidates, reranker)
    passages, queries = list(opened.corpus.values()), list(opened.queries.values())
    for row, places in enumerate(candidates):
        ranked = reranker.rank(queries[row], [passages[place] for place in places])
        assert found.best[row].tolist() == [places[hit.index] for hit in ranked]


def test_sentence_pairs_are_not_reranked(bundle, tiny_bundle, tmp_path):
    from bge_export.cli.main import cli as export_cli

    pairs = tmp_path / "pairs.csv"
    pairs.write_text("ab,ab cd,5\nab,xy,1\ncd,cd,4\n")
    shown = CliRunner().invoke(
        export_cli, ["evaluate", str(tiny_bundle), "--task", str(pairs), "--rerank", str(bundle.folder)]
    )
    assert isinstance(shown.exception, InputError)
    assert "--rerank: expected a task with queries and passages" in str(shown.exception)
