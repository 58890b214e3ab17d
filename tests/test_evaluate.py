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
    assert task.relevance == {"q1": {"d1": 2, "d2": 0}}


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


JSON_PAIRS = """{"sentence1": "a", "sentence2": "b", "score": "1"}
{"sentence1": "c", "sentence2": "d", "score": 2}
"""


def refusal(path, **options):
    """What `open_task` says of a file or a folder."""
    with pytest.raises(InputError) as caught:
        open_task(str(path), None, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.csv", "sentence1,sentence2,score\na,b,1\nc,d,2\n"),
        ("pairs.csv", "\ufeffscore,sentence2,sentence1\r\n1,b,a\r\n2,d,c\r\n"),
        ("pairs.CSV", "a,b,1\n\nc,d,2\n"),
        ("pairs.tsv", "a\tb\t1\nc\td\t2\n"),
        ("pairs.tsv", "score\tsentence1\tsentence2\n1.0\ta\tb\n2.0\tc\td\n"),
        ("pairs.jsonl", JSON_PAIRS),
    ],
)
def test_forms_of_sentence_pairs(tmp_path, name, content):
    """CSV and TSV with a header in any order or without, a byte order mark, blank lines, scores as text."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    task = open_task(str(tmp_path / name), None)
    assert (task.left, task.right, task.gold) == (("a", "c"), ("b", "d"), (1, 2))


def test_quotes_of_csv(tmp_path):
    """A cell in quotes holds commas and newlines."""
    (tmp_path / "pairs.csv").write_text('"a, ""b""\nc",d,1\ne,f,2\n')
    assert open_task(str(tmp_path / "pairs.csv"), None).left == ('a, "b"\nc', "e")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pairs.csv", b"", "pairs.csv: expected pairs of sentences with their scores, found none."),
        ("pairs.csv", b"a,b\n", "pairs.csv, line 1: expected sentence1, sentence2, score, found ['a', 'b']."),
        ("pairs.csv", b"a,b,1\n\nc,d,high\n", "pairs.csv, line 3: expected a number as score, found 'high'."),
        ("pairs.csv", b"a,b,nan\n", "pairs.csv, line 1: expected a number as score, found 'nan'."),
        ("pairs.csv", b"a,\xff,1\n", "pairs.csv, line 1: expected UTF-8, found byte 0xff."),
        ("pairs.jsonl", b"[1]\n", "pairs.jsonl, line 1: expected a JSON object, found [1]."),
        ("pairs.jsonl", b"\n{a}\n", "pairs.jsonl, line 2: expected a JSON object, found no JSON: Expecting property"),
        ("pairs.jsonl", b"[" * 100_000, "pairs.jsonl, line 1: expected a JSON object, found JSON that is nested too"),
        ("pairs.jsonl", b'{"sentence1": null}', "pairs.jsonl, line 1: expected a text as sentence1, found nothing."),
        ("pairs.jsonl.gz", b"no gzip", "pairs.jsonl.gz: expected a file that can be read, found Not a gzipped file"),
    ],
)
def test_a_broken_file_of_pairs_is_refused(tmp_path, name, content, said):
    """Every fault is one error with the file, the line and the field."""
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path}/{said}" in refusal(tmp_path / name)


def beir(folder, **files):
    """A folder in BEIR's form; the files that are not given are sound."""
    sound = {
        "corpus.jsonl": '{"_id": "d1", "title": null, "text": "abc"}\n{"_id": 2, "text": "xyz"}\n',
        "queries.jsonl": '{"_id": "q1", "text": "ab"}\n{"_id": "q2", "text": "xy"}\n',
        "qrels.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
    }
    for name, content in {**sound, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t2.0\nq2\t2\t0\n",
        "q1\td1\t2\nq2\t2\t0\n",
        "q1 0 d1 2\nq2 0 2 0\n",
        "\ufeffq1\t0\td1\t2\r\nq2\tQ0\t2\t0\r\n",
    ],
)
def test_forms_of_judgements(tmp_path, content):
    """BEIR's columns with a header or without, TREC's four, 2.0 for 2, ids that are numbers, null for no title."""
    task = open_task(str(beir(tmp_path / "set", **{"qrels.tsv": content})), None)
    assert task.relevance == {"q1": {"d1": 2}, "q2": {"2": 0}}
    assert task.corpus == {"d1": "abc", "2": "xyz"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("qrels.tsv", "q1\td1\t0.5\n", "qrels.tsv, line 1: expected a whole number as score, found '0.5'."),
        ("qrels.tsv", "q1\td1\n", "qrels.tsv, line 1: expected query-id, corpus-id and score, or TREC's four columns"),
        ("qrels.tsv", "", ": expected queries that qrels.tsv has judgements of, and passages; found 0 judged queries"),
        ("corpus.jsonl", '{"text": "a"}\n', "corpus.jsonl, line 1: expected a text as _id, found nothing."),
        (
            "corpus.jsonl",
            '{"_id": "d", "text": null}\n',
            "corpus.jsonl, line 1: expected a text as text, found nothing.",
        ),
        ("corpus.jsonl", '{"_id": "d", "text": "a"}\n' * 2, "corpus.jsonl, line 2: expected an _id that occurs once"),
        ("queries.jsonl", '{"_id": "q1", "text": 7}\n', "queries.jsonl, line 1: expected a text as text, found 7."),
    ],
)
def test_a_broken_folder_is_refused(tmp_path, name, content, said):
    """Every fault of a folder in BEIR's form is one error with the file, the line and the field."""
    assert said in refusal(beir(tmp_path / "set", **{name: content}))


def test_a_split_is_chosen(tmp_path):
    """--split names the judgements; a folder that has one split needs none."""
    folder = beir(tmp_path / "set", **{"qrels.tsv": None, "qrels/dev.tsv": "q2\td1\t1\n"})
    assert open_task(str(folder), None).relevance == {"q2": {"d1": 1}}
    beir(folder, **{"qrels.tsv": None, "qrels/train.tsv": "q1\td1\t1\n"})
    assert "expected one file of judgements, found dev, train.\n    Choose one with --split." in refusal(folder)
    assert open_task(str(folder), None, split="train").relevance == {"q1": {"d1": 1}}
    assert "qrels/test.tsv" in refusal(folder, split="test")


def test_a_name_is_chosen(tmp_path):
    """--name tells two folders with one name apart; a path's dots are no names."""
    assert open_task(str(beir(tmp_path / "de")), None).name == "de"
    assert open_task(str(tmp_path / "de"), None, name="germanquad").name == "germanquad"


def test_scores_are_trec_evals():
    """nDCG@10 and recall@100 are pytrec_eval's on random rankings: ties, judgements of 0, queries without any."""
    import pytrec_eval

    rng = np.random.default_rng(0)
    corpus = {f"d{number}": "" for number in range(150)}
    queries = {f"q{number}": "" for number in range(40)}
    relevance = {
        query: {f"d{rng.integers(150)}": int(rng.integers(0, 4)) for _ in range(rng.integers(1, 30))}
        for query in queries
    }
    relevance["q7"] = {"d1": 0, "d2": 0}
    table = rng.integers(0, 6, (40, 150)).astype(np.float32)
    task = Retrieval(name="t", corpus=corpus, queries=queries, relevance=relevance)

    def embed(texts, prompt):  # queries' rows of the table, and unit vectors for passages: their products are the table
        return np.eye(150, dtype=np.float32) if prompt == "passage" else table / np.linalg.norm(table, axis=1)[:, None]

    found = evaluate(task, System(embed=embed), {"passage": "passage"}).values
    run = {
        query: {name: float(score) for name, score in zip(corpus, row, strict=True)}
        for query, row in zip(queries, table / np.linalg.norm(table, axis=1)[:, None], strict=True)
    }
    scored = pytrec_eval.RelevanceEvaluator(relevance, {"ndcg_cut.10", "recall.100"}).evaluate(run)
    assert found["ndcg_at_10"] == pytest.approx(np.mean([one["ndcg_cut_10"] for one in scored.values()]))
    assert found["recall_at_100"] == pytest.approx(np.mean([one["recall_100"] for one in scored.values()]))


def test_a_query_does_not_find_itself():
    """A passage with the query's own id is left out, as in BEIR's evaluation of ArguAna and Quora."""
    task = Retrieval(name="t", corpus={"1": "aaa", "2": "aab"}, queries={"1": "aaa"}, relevance={"1": {"2": 1}})
    assert evaluate(task, System(embed=embed_letters), {}).score == 1


def test_pytorchs_side_is_computed_once(tiny_bundle, tiny_checkpoint, tmp_path, monkeypatch):
    """What PyTorch reached is kept for the next bundle, and found by weights, recipe and task."""
    from bge_export import reference_cache

    monkeypatch.setenv("BGE_CACHE", str(tmp_path / "cache"))
    recipe = recipe_of(Bundle.open(tiny_bundle))
    task = SentencePairs(name="t", left=["a", "b"], right=["c", "d"], gold=[1, 2])
    first = scores([[0.6, 0.8]], np.array([[0, 1]]), dense=np.zeros((1, 2)))
    kept = reference_cache.scores_of("weights", recipe, task, lambda: first)
    again = reference_cache.scores_of("weights", recipe, task, lambda: pytest.fail("computed again"))
    assert (again.metric, again.values) == (kept.metric, kept.values)
    np.testing.assert_array_equal(again.vectors, first.vectors)
    np.testing.assert_array_equal(again.best, first.best)
    np.testing.assert_array_equal(again.reranked["dense"], first.reranked["dense"])
    other = scores([[1.0, 0]])
    for change in ({"sha": "others"}, {"task": dataclasses.replace(task, gold=[2, 1])}):
        wanted = reference_cache.scores_of(
            change.get("sha", "weights"), recipe, change.get("task", task), lambda: other
        )
        assert wanted is other
    (damaged,) = [path for path in (tmp_path / "cache/reference").iterdir() if np.load(path)["vectors"][0, 0] < 1]
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert reference_cache.scores_of("weights", recipe, task, lambda: other) is other


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
