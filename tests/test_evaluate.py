"""Scores: the metrics by hand, the tasks' forms, and the published numbers of trained weights."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from bge_export.cli import cli as export_cli
from bge_export.evaluate import Scores, System, bundle_system, evaluate, fidelity, ndcg_at, reference_system
from bge_export.export import recipe_of
from bge_export.tasks import KNOWN, Retrieval, SentencePairs, open_task
from bge_onnx import Bundle, CheckpointError, Embedder, InputError
from bge_onnx.cli import cli as bge_cli
from tiny import write_checkpoint

PYTORCH_SCIFACT = 0.64508  # float32 PyTorch on all-MiniLM-L6-v2: `bge-export evaluate … --task scifact --checkpoint …`


@pytest.mark.parametrize(
    ("gains", "relevant", "wanted"),
    [
        ([1, 0, 0], [1], 1.0),
        ([0, 1, 0], [1], 1 / np.log2(3)),
        ([0, 0, 0], [1], 0.0),
        ([1, 0, 1], [1, 1], (1 + 1 / 2) / (1 + 1 / np.log2(3))),
        ([1, 2], [2, 1], (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))),
        ([0] * 10 + [1], [1], 0.0),
        ([1], [1] * 20, 1 / sum(1 / np.log2(rank + 1) for rank in range(1, 11))),
    ],
)
def test_ndcg_at_10(gains, relevant, wanted):
    """nDCG@10 with linear gains, the ideal ranking from all relevant passages, found or not."""
    assert ndcg_at(np.array(gains), relevant, 10) == pytest.approx(wanted)


def embed_letters(texts, prompt):
    """Vectors that count letters: enough to rank by."""
    return np.array([[(prompt + text).count(letter) + 1e-3 for letter in "abc"] for text in texts], dtype=np.float32)


def test_retrieval_scores():
    """Each query is scored on its own judgements, prompts are applied, recall counts the first hundred."""
    corpus = {"1": "aaa", "2": "bbb", "3": "ccc"}
    task = Retrieval(name="t", corpus=corpus, queries={"x": "aa", "y": "bba"}, relevance={"x": {"1": 1}, "y": {"3": 1}})
    system = System(embed=embed_letters)
    plain = evaluate(task, system, {})
    assert plain.values["ndcg_at_10"] == pytest.approx((1 + 1 / 2) / 2)
    assert plain.values["recall_at_100"] == 1
    assert evaluate(task, system, {"query": "cccc"}).values["ndcg_at_10"] > plain.values["ndcg_at_10"] - 0.3
    assert evaluate(task, system, {"query": "ccccc"}).values != plain.values


def test_spearman_is_of_ranks():
    """Any order-keeping change of the gold scores leaves the correlation at one."""
    task = SentencePairs(name="t", left=["a", "a", "a"], right=["a", "ab", "b"], gold=[100, 2, 0.5])
    assert evaluate(task, System(embed=embed_letters), {}).score == pytest.approx(1)


def scores(vectors, best=None, **reranked):
    return Scores(metric="m", values={"m": 0.0}, vectors=np.array(vectors), best=best, reranked=reranked)


def test_fidelity():
    """Cosines of the vectors, and the share of the reference's ten best that are found."""
    left = scores([[1, 0], [0, 1]], np.array([[0, 1, 2, 3], [3, 2, 1, 0]]))
    same = fidelity(left, left)
    assert same == {"cosine_mean": 1, "cosine_p1": 1, "cosine_min": 1, "top_10_overlap": 1}
    right = scores([[0.6, 0.8], [0, 1]], np.array([[0, 1, 7, 8], [0, 1, 2, 3]]))
    found = fidelity(right, left)
    assert (found["cosine_min"], found["cosine_mean"]) == pytest.approx((0.6, 0.8))
    assert found["top_10_overlap"] == pytest.approx(0.75)


def test_fidelity_of_heads():
    """Of the reranked passages: how many of the ten best by sparse scores are kept, and the error of ColBERT's."""
    sparse = np.arange(20.0)[None]
    left = scores([[1.0, 0]], sparse=sparse, colbert=np.zeros((1, 20)))
    right = scores([[1.0, 0]], sparse=np.where(sparse == 19, -1, sparse), colbert=np.full((1, 20), 0.25))
    found = fidelity(right, left)
    assert (found["sparse_top_10_overlap"], found["colbert_error"]) == pytest.approx((0.9, 0.25))


@pytest.mark.parametrize("prompts", [{}, {"query": "find: ", "passage": "text: "}])
def test_heads_are_ranked_like_pytorchs(m3, m3_checkpoint, prompts):
    """Every mode's scores on the reference's candidates are PyTorch's, prompts applied, and so are their nDCG@10."""
    m3 = dataclasses.replace(m3, bundle=dataclasses.replace(m3.bundle, prompts=prompts))
    corpus = {str(number): f"{number} word {'abc' * number}" for number in range(30)}
    queries = {"x": "word 3", "y": "abcabc"}
    task = Retrieval(name="t", corpus=corpus, queries=queries, relevance={"x": {"3": 1}, "y": {"2": 1}})
    wanted = evaluate(task, reference_system(m3_checkpoint, recipe_of(m3.bundle), progress=False), prompts)
    found = evaluate(task, bundle_system(m3), prompts, candidates=wanted.best)
    assert set(wanted.reranked) == {"dense", "sparse", "colbert", "colbert+sparse+dense"}
    for mode, values in wanted.reranked.items():
        np.testing.assert_allclose(found.reranked[mode], values, atol=2e-5)
        assert found.values[f"{mode}_ndcg_at_10"] == pytest.approx(wanted.values[f"{mode}_ndcg_at_10"])
    assert fidelity(found, wanted)["sparse_top_10_overlap"] == 1


def write_beir(folder, compressed):
    rows = '{"_id": "d1", "title": "T", "text": "abc"}\n{"_id": "d2", "text": "xyz"}\n'
    folder.mkdir()
    if compressed:
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
        (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    else:
        (folder / "corpus.jsonl").write_text(rows)
        (folder / "qrels").mkdir()
        (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "ab"}\n{"_id": "q2", "text": "unjudged"}\n')


@pytest.mark.parametrize("compressed", [True, False])
def test_beir_folders(tmp_path, compressed):
    """Both usual layouts are read; titles stand before texts; queries without judgements are left out."""
    write_beir(tmp_path / "set", compressed)
    task = open_task(str(tmp_path / "set"), None)
    assert task.corpus == {"d1": "T abc", "d2": "xyz"}
    assert task.queries == {"q1": "ab"}
    assert task.relevance == {"q1": {"d1": 2}}


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl", "pairs.jsonl.gz"])
def test_sentence_pair_files(tmp_path, name):
    """CSV without a header and JSON lines, compressed or not, are read."""
    row = json.dumps({"sentence1": "a", "sentence2": "b", "score": 2.5}).encode()
    text = b"a,b,2.5\n" if name.endswith(".csv") else row
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    task = open_task(str(tmp_path / name), None)
    assert (task.left, task.right, task.gold) == (("a",), ("b",), (2.5,))


def test_an_unknown_task_is_refused(tmp_path):
    """A task that is neither known nor a folder says what is possible."""
    with pytest.raises(InputError, match=r"nothere: expected a task \(stsb, scifact\), a folder with corpus.jsonl"):
        open_task("nothere", None)


def test_a_broken_file_of_pairs_is_refused(tmp_path):
    """A CSV with another number of columns is an error that names the file."""
    (tmp_path / "pairs.csv").write_text("a,b\n")
    with pytest.raises(InputError, match=r"pairs\.csv: expected rows of sentence1, sentence2 and score"):
        open_task(str(tmp_path / "pairs.csv"), None)


def test_known_tasks_read_the_variable(data, monkeypatch):
    """BGE_EVAL_DATA stands in for --data."""
    monkeypatch.setenv("BGE_EVAL_DATA", str(data))
    assert len(open_task("stsb", None).gold) == 1379
    scifact = open_task("scifact", None)
    assert (len(scifact.corpus), len(scifact.queries)) == (5183, 300)
    assert set(KNOWN) == {"stsb", "scifact"}


def test_a_bundle_keeps_what_was_found(tiny_bundle, tiny_checkpoint, tmp_path, capsys):
    """`evaluate` beside a checkpoint writes the manifest, `bge info` prints it; other weights are refused."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "pairs.csv").write_text("a,b,2.5\na,a,5\nb c,c,3\n")
    arguments = ["evaluate", str(folder), "--task", str(tmp_path / "pairs.csv")]
    assert CliRunner().invoke(export_cli, arguments).exit_code == 0
    assert Bundle.open(folder).quality == {}
    found = CliRunner().invoke(export_cli, [*arguments, "--checkpoint", str(tiny_checkpoint), "--json"])
    values = Bundle.open(folder).quality["pairs"]
    assert json.loads(found.stdout)["fidelity"]["cosine_min"] == values["cosine_min"] == pytest.approx(1)
    assert values["reference_cosine_spearman"] == pytest.approx(values["cosine_spearman"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in tiny_bundle.iterdir())
    shown = CliRunner().invoke(bge_cli, ["info", str(folder)]).stdout
    assert "on pairs" in shown
    assert "cosine_min 1.0000" in shown
    other = write_checkpoint(tmp_path / "other", seed=5)
    result = CliRunner().invoke(export_cli, [*arguments, "--checkpoint", str(other)])
    assert isinstance(result.exception, CheckpointError)


@pytest.mark.checkpoint
def test_minilm_reaches_its_published_spearman(minilm_bundle, data):
    """all-MiniLM-L6-v2 has the STS-B score that MTEB published, to four decimals and a half."""
    embedder = Embedder.open(minilm_bundle)
    scores = evaluate(open_task("stsb", data), bundle_system(embedder), embedder.bundle.prompts)
    published = json.loads((data / "eval-stsb/reference.json").read_text())
    wanted = published["sentence-transformers/all-MiniLM-L6-v2"]["cosine_spearman"]
    assert scores.score == pytest.approx(wanted, abs=5e-5)
    assert scores.score == pytest.approx(0.82032, abs=5e-5)


@pytest.mark.checkpoint
def test_minilm_reaches_pytorchs_ndcg(minilm_bundle, data):
    """On all of SciFact the bundle ranks as PyTorch does, to four decimals."""
    embedder = Embedder.open(minilm_bundle)
    scores = evaluate(open_task("scifact", data), bundle_system(embedder), embedder.bundle.prompts)
    assert round(scores.score, 4) == round(PYTORCH_SCIFACT, 4)
