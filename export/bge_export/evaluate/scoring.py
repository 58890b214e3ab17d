"""Quality on real data: Spearman for sentence pairs, nDCG@10 and recall@100 for retrieval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from bge_export.checkpoint.pytorch import tokenize
from bge_export.checkpoint.recipe import Recipe
from bge_export.checkpoint.tokenizer import load_tokenizer
from bge_export.evaluate.tasks import Retrieval, SentencePairs, Task
from bge_export.proof import reference
from bge_onnx import Embedder, Embeddings, similarity, top_k
from bge_onnx.bundle.heads import HEADS
from bge_onnx.errors import InputError
from bge_onnx.vectors.pairs import SCORE_PAIRS, SCORED, distinct
from bge_onnx.vectors.scores import colbert_score, hybrid, lexical_score

Vectors = NDArray[np.float32]
Places = NDArray[np.int64]
Embed = Callable[[Sequence[str], str], Vectors]
"""Texts and the prompt to put in front of them, to vectors (N, D)."""

TokenIds = Callable[[Sequence[str]], Sequence[NDArray[np.int64]]]
"""Texts to token ids (T,) of each."""

REFERENCE_TOKENS = 8192  # of a padded batch of the reference
QUERIES_AT_A_TIME = 256  # bounds the matrix of scores
BEST = 101
"""Passages of each query that are kept: a hundred, where one of them may be the query itself."""


RERANKED = 20
"""Passages of each query that bundles of three heads rank again by every head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What is evaluated: a way from texts and the prompt in front of them to dense vectors.

    embed_queries  of a model whose queries need more than a prompt in front, as bge-en-icl's
    score          of (query, passage) pairs by every head, as `Embedder.score`; None where there is only `dense`
    """

    embed: Embed
    embed_queries: Callable[[Sequence[str]], Vectors] | None = None
    score: Callable[[Sequence[tuple[str, str]]], Mapping[str, Vectors]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one system reached. `values` holds every metric by name, `metric` names the main one.

    vectors  (N, D) of unit length, of all texts in the task's order
    best     (Q, up to 101) passages of each query, best first, its own last; None for sentence pairs
    reranked  scores (Q, RERANKED) by every head; none where there is only `dense`
    """

    metric: str
    values: Mapping[str, float]
    vectors: Vectors
    best: Places | None = None
    reranked: Mapping[str, Vectors] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The main metric's value."""
        return self.values[self.metric]

    @property
    def texts(self) -> int:
        """How many texts were embedded."""
        return len(self.vectors)


def bundle_system(embedder: Embedder) -> System:
    """A bundle as the system to evaluate."""
    return System(
        embed=lambda texts, prompt: embedder.embed(texts, prompt=prompt).dense,
        embed_queries=(lambda queries: embedder.embed_queries(queries).dense) if embedder.takes_examples else None,
        score=embedder.score if set(SCORED) <= set(embedder.bundle.outputs) else None,
    )


def reference_system(checkpoint: Path, recipe: Recipe, *, progress: bool, query_ids: TokenIds | None = None) -> System:
    """Float32 PyTorch as the system to evaluate.

    query_ids  token ids of queries that need more than a prompt in front
    """
    tokenizer = load_tokenizer(checkpoint)

    def run(ids: Sequence[NDArray[np.int64]], names: tuple[str, ...]) -> Embeddings:
        some = dataclasses.replace(recipe, heads=names)
        return _cut(reference.embed(checkpoint, some, ids, budget_tokens=REFERENCE_TOKENS, progress=progress), recipe)

    def heads(texts: Sequence[str], names: tuple[str, ...]) -> Embeddings:
        return run([np.array(row, dtype=np.int64) for row in tokenize(tokenizer, recipe, texts)], names)

    def score(pairs: Sequence[tuple[str, str]]) -> dict[str, Vectors]:
        chunks = [pairs[start : start + SCORE_PAIRS] for start in range(0, len(pairs), SCORE_PAIRS)]
        scored = [score_some(chunk) for chunk in chunks]
        return {mode: np.concatenate([part[mode] for part in scored]) for mode in scored[0]}

    def score_some(pairs: Sequence[tuple[str, str]]) -> dict[str, Vectors]:
        queries, query_of = distinct([query for query, _ in pairs])
        passages, passage_of = distinct([passage for _, passage in pairs])
        query_prompt, passage_prompt = (recipe.prompts.get(side, "") for side in ("query", "passage"))
        left = heads([query_prompt + query for query in queries], SCORED)
        right = heads([passage_prompt + passage for passage in passages], SCORED)
        places = list(zip(query_of, passage_of, strict=True))
        heads_of: tuple[tuple[str, Callable[[Any, Any], Any], Any, Any], ...] = (
            ("dense", np.dot, left.dense, right.dense),
            ("sparse", lexical_score, left.sparse, right.sparse),
            ("colbert", colbert_score, left.colbert, right.colbert),
        )
        found = {
            mode: np.array([product(ours[query], theirs[passage]) for query, passage in places], dtype=np.float32)
            for mode, product, ours, theirs in heads_of
        }
        return {**found, "colbert+sparse+dense": hybrid(found["dense"], found["sparse"], found["colbert"])}

    return System(
        embed=lambda texts, prompt: heads([prompt + text for text in texts], ("dense",)).dense,
        embed_queries=(lambda queries: run(query_ids(queries), ("dense",)).dense) if query_ids else None,
        score=score if recipe.heads == SCORED else None,
    )


def _cut(whole: Embeddings, recipe: Recipe) -> Embeddings:
    """Vectors of as many components as the recipe says, cut and normalised again as `Embedder` does it."""
    if recipe.truncate_dim is None:
        return whole

    def cut(vectors: Vectors) -> Vectors:
        leading = vectors[:, : recipe.truncate_dim]
        return _unit(leading) if recipe.normalize else leading

    cutters: dict[str, Callable[[Any], Any]] = {"vector": cut, "rows": lambda rows: [*map(cut, rows)]}
    return Embeddings(
        count=whole.count,
        by_head={
            head: cutters.get(HEADS[head].gives, lambda weights: weights)(found)
            for head, found in whole.by_head.items()
        },
    )


def evaluate(task: Task, system: System, prompts: Mapping[str, str], *, candidates: Places | None = None) -> Scores:
    """Scores of one system. Sentence pairs get no prompt; queries and passages get theirs.

    candidates  (Q, at least RERANKED) passages to rank again by every head; None for the system's own best

    Raises InputError: a task without pairs or judged queries.
    """
    if isinstance(task, SentencePairs):
        return _spearman(task, system)
    return _retrieval(task, system, prompts, candidates)


def fidelity(found: Scores, reference: Scores) -> dict[str, float]:
    """How close a system is to the reference, on the same task.

    cosine_mean, cosine_p1, cosine_min  of dense vectors to the reference's: mean, first percentile, least
    top_10_overlap                      share of the reference's ten best passages that are among the system's
    sparse_top_10_overlap               the same by sparse scores, and
    colbert_error                       the mean difference of ColBERT scores, both on the reranked passages
    """
    cosines = np.einsum("nd,nd->n", found.vectors, reference.vectors, dtype=np.float64)
    values = {
        "cosine_mean": float(cosines.mean()),
        "cosine_p1": float(np.percentile(cosines, 1)),
        "cosine_min": float(cosines.min()),
    }
    if found.best is not None and reference.best is not None:
        values["top_10_overlap"] = _overlap(found.best[:, :10], reference.best[:, :10])
    if found.reranked and reference.reranked:
        ours, theirs = (top_k(scores.reranked["sparse"], 10) for scores in (found, reference))
        values["sparse_top_10_overlap"] = _overlap(ours, theirs)
        errors = np.abs(found.reranked["colbert"] - reference.reranked["colbert"])
        values["colbert_error"] = float(errors.mean())
    return values


def _overlap(found: Places, wanted: Places) -> float:
    """The mean share of `wanted` (Q, k) that is in the same row of `found`."""
    pairs = zip(found, wanted, strict=True)
    return float(np.mean([len(set(ours) & set(theirs)) / len(theirs) for ours, theirs in pairs]))


def _spearman(task: SentencePairs, system: System) -> Scores:
    """Spearman's rank correlation of cosine similarity with the gold scores, as MTEB's `cosine_spearman`."""
    if len(set(task.gold)) < 2:
        raise InputError(f"{task.name}: expected gold scores that differ, found {len(task.gold)} pairs with one score.")
    vectors = _unit(system.embed([*task.left, *task.right], ""))
    cosines = (vectors[: len(task.left)] * vectors[len(task.left) :]).sum(axis=1)
    if len(np.unique(cosines)) < 2:
        raise InputError(
            f"{task.name}: expected pairs of different cosines, found {cosines[0]:.4f} for all {len(cosines)}.\n"
            "    Ranks of one value correlate with nothing."
        )
    value = float(spearmanr(cosines, task.gold).statistic)
    return Scores(metric="cosine_spearman", values={"cosine_spearman": value}, vectors=vectors)


def _retrieval(task: Retrieval, system: System, prompts: Mapping[str, str], candidates: Places | None) -> Scores:
    if not task.queries or not task.corpus:
        raise InputError(f"{task.name}: expected judged queries and passages, found none.")
    passages = _unit(system.embed(list(task.corpus.values()), prompts.get("passage", "")))
    asked = list(task.queries.values())
    embed_queries = system.embed_queries or (lambda texts: system.embed(texts, prompts.get("query", "")))
    queries = _unit(embed_queries(asked))
    order = descending_ids(task)
    own = _own_passages(task)
    best = np.empty((len(queries), min(BEST, len(passages))), dtype=np.int64)
    for start in range(0, len(queries), QUERIES_AT_A_TIME):
        rows = slice(start, start + QUERIES_AT_A_TIME)
        found = similarity(queries[rows], passages)
        for line, place in enumerate(own[rows]):
            if place is not None:
                found[line, place] = -np.inf
        best[rows] = order[top_k(found[:, order], BEST)]
    values = ranking_scores(task, best)
    places = (best if candidates is None else candidates)[:, :RERANKED]
    rank_of_id = np.argsort(order)
    reranked = _rerank(task, system, places)
    for mode, scores in reranked.items():
        again = np.lexsort((rank_of_id[places], -scores), axis=1)
        chosen = np.take_along_axis(places, again, axis=1)
        values[f"{mode}_ndcg_at_10"] = ranking_scores(task, chosen)["ndcg_at_10"]
    vectors = np.concatenate([passages, queries])
    return Scores(metric="ndcg_at_10", values=values, vectors=vectors, best=best, reranked=reranked)


def descending_ids(task: Retrieval) -> Places:
    """The passages' columns by descending id: of equal scores trec_eval takes the larger id first."""
    return np.array(sorted(range(len(task.corpus)), key=list(task.corpus).__getitem__, reverse=True), dtype=np.int64)


def _own_passages(task: Retrieval) -> list[int | None]:
    """For each query the column of the passage with its id, which is the query itself (ArguAna, Quora): BEIR's
    evaluation leaves it out.
    """
    columns = {name: column for column, name in enumerate(task.corpus)}
    return [columns.get(query) for query in task.queries]


def ranking_scores(task: Retrieval, best: Places) -> dict[str, float]:
    """nDCG@10 and recall@100 of ranked passages (Q, up to 100); 0 for a query of which nothing is relevant."""
    passage_ids = list(task.corpus)
    ndcg, recall = [], []
    for query, columns in zip(task.queries, best, strict=True):
        relevance = task.relevance[query]
        ranked = [name for name in (passage_ids[column] for column in columns) if name != query]
        gains = np.array([max(0, relevance.get(name, 0)) for name in ranked[:100]], dtype=np.int64)
        relevant = [gain for gain in relevance.values() if gain > 0]
        ndcg.append(ndcg_at(gains, relevant, 10) if relevant else 0.0)
        recall.append(float((gains > 0).sum() / len(relevant)) if relevant else 0.0)
    return {"ndcg_at_10": float(np.mean(ndcg)), "recall_at_100": float(np.mean(recall))}


def _rerank(task: Retrieval, system: System, places: Places) -> dict[str, Vectors]:
    """Scores (Q, RERANKED) of each query's candidates by every head."""
    if system.score is None:
        return {}
    texts = list(task.corpus.values())
    pairs = [
        (query, texts[place])
        for query, row in zip(task.queries.values(), places, strict=True)
        for place in row.tolist()
    ]
    return {mode: scores.reshape(places.shape) for mode, scores in system.score(pairs).items()}


def ndcg_at(gains: NDArray[np.int64], all_gains: Sequence[int], k: int) -> float:
    """Normalised discounted cumulative gain of a ranking, as trec_eval's ndcg_cut: sum of gain / log2(rank + 1).

    gains      (P,) of the ranked passages, best first
    all_gains  of every relevant passage, ranked or not
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.sort(all_gains)[::-1][:k]
    found = gains[:k]
    return float((found * discounts[: len(found)]).sum() / (ideal * discounts[: len(ideal)]).sum())


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)  # a vector of zeros stays one
    return unit
