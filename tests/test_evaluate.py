"""Scores: the metrics by hand and beside trec_eval's, and the published numbers of trained weights."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from bge_export.evaluate.scoring import Scores, System, bundle_system, evaluate, fidelity, ndcg_at, reference_system
from bge_export.evaluate.tasks import Retrieval, SentencePairs, open_task
from bge_export.recheck import recipe_of
from bge_onnx import Embedder, InputError

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


@pytest.mark.parametrize(
    ("texts", "gold", "said"),
    [
        (["a", "ab"], [1, 1], "t: expected gold scores that differ, found 2 pairs with one score."),
        (["a", "a"], [1, 2], "t: expected pairs of different cosines, found 1.0000 for all 2."),
    ],
)
def test_ranks_of_one_value_are_refused(texts, gold, said):
    """A correlation that is no number is an error, never a NaN in a report."""
    task = SentencePairs(name="t", left=["a", "a"], right=texts, gold=gold)
    with pytest.raises(InputError) as caught:
        evaluate(task, System(embed=embed_letters), {})
    assert said in str(caught.value)


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


@pytest.mark.parametrize("truncate_dim", [None, 8])
@pytest.mark.parametrize("prompts", [{}, {"query": "find: ", "passage": "text: "}])
def test_heads_are_ranked_like_pytorchs(m3, m3_checkpoint, prompts, truncate_dim):
    """Every mode's scores on the reference's candidates are PyTorch's, prompts and a cut applied, and so is nDCG@10."""
    m3 = dataclasses.replace(m3, bundle=dataclasses.replace(m3.bundle, prompts=prompts, truncate_dim=truncate_dim))
    corpus = {str(number): f"{number} word {'abc' * number}" for number in range(30)}
    queries = {"x": "word 3", "y": "abcabc"}
    task = Retrieval(name="t", corpus=corpus, queries=queries, relevance={"x": {"3": 1}, "y": {"2": 1}})
    wanted = evaluate(task, reference_system(m3_checkpoint, recipe_of(m3.bundle), progress=False), prompts)
    found = evaluate(task, bundle_system(m3), prompts, candidates=wanted.best)
    assert set(wanted.reranked) == {"dense", "sparse", "colbert", "colbert+sparse+dense"}
    for mode, values in wanted.reranked.items():
        np.testing.assert_allclose(found.reranked[mode], values, atol=2e-5)
        assert found.values[f"{mode}_ndcg_at_10"] == pytest.approx(wanted.values[f"{mode}_ndcg_at_10"])
    close = fidelity(found, wanted)
    assert close["sparse_top_10_overlap"] == 1
    assert close["cosine_min"] == pytest.approx(1, abs=1e-6)
    assert found.vectors.shape[1] == (truncate_dim or 32)


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


def random_task(rng):
    """A task of few distinct scores and awkward ids, and the table (Q, P) of scores to rank by."""
    letters = ["d", "é", "茶", "\U0001f600", "Z", "-", "1"]
    corpus = {"".join(rng.choice(letters, rng.integers(1, 5))): "" for _ in range(rng.integers(1, 260))}
    queries = dict.fromkeys([*list(corpus)[:8], "x", "y"], "")
    judged = [*corpus, "not in the corpus"]
    relevance = {
        query: {judged[rng.integers(len(judged))]: int(rng.integers(-1, 4)) for _ in range(rng.integers(1, 15))}
        for query in queries
    }
    table = rng.integers(0, rng.integers(1, 6), (len(queries), len(corpus))).astype(np.float32) - 1
    table[:, 0] += 0.5
    return Retrieval(name="t", corpus=corpus, queries=queries, relevance=relevance), table


@pytest.mark.parametrize("seed", range(20))
def test_random_tasks_score_as_trec_eval_without_own_passages(seed):
    """Ids in any script, ties past the hundredth, judgements below 0 and of passages that are not there."""
    import pytrec_eval

    task, table = random_task(np.random.default_rng(seed))
    eye = np.eye(len(task.corpus), dtype=np.float32)
    found = evaluate(task, System(embed=lambda _, prompt: eye if prompt else table), {"passage": "p"}).values
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    run = {
        query: {passage: float(score) for passage, score in zip(task.corpus, row, strict=True) if passage != query}
        for query, row in zip(task.queries, unit, strict=True)
    }
    scored = pytrec_eval.RelevanceEvaluator(task.relevance, {"ndcg_cut.10", "recall.100"}).evaluate(run)
    means = [
        np.mean([scored.get(query, {}).get(measure, 0) for query in run]) for measure in ("ndcg_cut_10", "recall_100")
    ]
    assert [found["ndcg_at_10"], found["recall_at_100"]] == pytest.approx(means, abs=1e-12)


def test_lengths_of_vectors_do_not_count():
    """A model without Normalize is scored by cosine too."""
    task = Retrieval(name="t", corpus={"1": "aaa", "2": "b"}, queries={"x": "ab"}, relevance={"x": {"2": 1}})

    def long(texts, prompt):
        return embed_letters(texts, prompt) * np.arange(1, len(texts) + 1, dtype=np.float32)[:, None]

    assert evaluate(task, System(embed=long), {}).values == evaluate(task, System(embed=embed_letters), {}).values


def test_equal_scores_of_a_head_are_ranked_by_falling_id():
    """Ranked again by a head that scores all alike, passages stand by falling id, whatever their dense rank was."""
    task = Retrieval(name="t", corpus={"1": "aaa", "2": "aab"}, queries={"x": "aaa"}, relevance={"x": {"2": 1}})
    system = System(embed=embed_letters, score=lambda pairs: {"sparse": np.zeros(len(pairs), dtype=np.float32)})
    found = evaluate(task, system, {}).values
    assert found["sparse_ndcg_at_10"] == 1
    assert found["ndcg_at_10"] == pytest.approx(1 / np.log2(3))


def test_a_query_does_not_find_itself():
    """A passage with the query's own id is left out, as in BEIR's evaluation of ArguAna and Quora."""
    task = Retrieval(name="t", corpus={"1": "aaa", "2": "aab"}, queries={"1": "aaa"}, relevance={"1": {"2": 1}})
    assert evaluate(task, System(embed=embed_letters), {}).score == 1


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
