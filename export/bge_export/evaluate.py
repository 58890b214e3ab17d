"""Quality on real data: Spearman for sentence pairs, nDCG@10 and recall@100 for retrieval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from bge_export import checkpoint_tokenizer, reference
from bge_export.checkpoint import Recipe
from bge_export.tasks import Retrieval, SentencePairs, Task
from bge_onnx import Embedder, similarity, top_k
from bge_onnx.errors import InputError

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str], str], Vectors]
"""Texts and the prompt to put in front of them, to vectors (N, D)."""

REFERENCE_TOKENS = 8192  # of a padded batch of the reference
QUERIES_AT_A_TIME = 256  # bounds the matrix of scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one system reached. `values` holds every metric by name, `metric` names the main one."""

    metric: str
    values: Mapping[str, float]
    texts: int

    @property
    def score(self) -> float:
        """The main metric's value."""
        return self.values[self.metric]


def bundle_embed(embedder: Embedder) -> Embed:
    """A bundle as the system to evaluate."""
    return lambda texts, prompt: embedder.embed(texts, prompt=prompt).dense


def reference_embed(checkpoint: Path, recipe: Recipe, *, progress: bool) -> Embed:
    """Float32 PyTorch as the system to evaluate."""
    tokenizer = checkpoint_tokenizer.load(checkpoint)

    def embed(texts: Sequence[str], prompt: str) -> Vectors:
        ids = reference.tokenize(tokenizer, recipe, [prompt + text for text in texts])
        arrays = [np.array(row, dtype=np.int64) for row in ids]
        dense = dataclasses.replace(recipe, heads=("dense",))
        return reference.embed(checkpoint, dense, arrays, budget_tokens=REFERENCE_TOKENS, progress=progress).dense

    return embed


def evaluate(task: Task, embed: Embed, prompts: Mapping[str, str]) -> Scores:
    """Scores of one system. Sentence pairs get no prompt; queries and passages get theirs.

    Raises InputError: a task without pairs or judged queries.
    """
    if isinstance(task, SentencePairs):
        return _spearman(task, embed)
    return _retrieval(task, embed, prompts)


def _spearman(task: SentencePairs, embed: Embed) -> Scores:
    """Spearman's rank correlation of cosine similarity with the gold scores, as MTEB's `cosine_spearman`."""
    vectors = _unit(embed([*task.left, *task.right], ""))
    cosines = (vectors[: len(task.left)] * vectors[len(task.left) :]).sum(axis=1)
    value = float(spearmanr(cosines, task.gold).statistic)
    return Scores(metric="cosine_spearman", values={"cosine_spearman": value}, texts=len(vectors))


def _retrieval(task: Retrieval, embed: Embed, prompts: Mapping[str, str]) -> Scores:
    if not task.queries or not task.corpus:
        raise InputError(f"{task.name}: expected judged queries and passages, found none.")
    passage_ids, query_ids = list(task.corpus), list(task.queries)
    passages = _unit(embed(list(task.corpus.values()), prompts.get("passage", "")))
    queries = _unit(embed(list(task.queries.values()), prompts.get("query", "")))
    ndcg, recall = [], []
    for start in range(0, len(queries), QUERIES_AT_A_TIME):
        best = top_k(similarity(queries[start : start + QUERIES_AT_A_TIME], passages), 100)
        for query, columns in zip(query_ids[start : start + QUERIES_AT_A_TIME], best, strict=True):
            gains = np.array([task.relevance[query].get(passage_ids[column], 0) for column in columns])
            ndcg.append(ndcg_at(gains, list(task.relevance[query].values()), 10))
            recall.append((gains > 0).sum() / len(task.relevance[query]))
    values = {"ndcg_at_10": float(np.mean(ndcg)), "recall_at_100": float(np.mean(recall))}
    return Scores(metric="ndcg_at_10", values=values, texts=len(passages) + len(queries))


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
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
