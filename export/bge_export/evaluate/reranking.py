"""What a reranker makes of an embedder's best passages, and how close two rerankers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from bge_export.evaluate.scoring import Places, Vectors, descending_ids, ranking_scores
from bge_export.evaluate.tasks import Retrieval
from bge_onnx import Reranker
from bge_onnx.errors import InputError

BEST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Reranked:
    """Scores (Q, K) of each query's K candidates, the passages of the new ranking (Q, K), and its nDCG@10."""

    scores: Vectors
    best: Places
    ndcg_at_10: float


def rerank(task: Retrieval, candidates: Places, reranker: Reranker, *, progress: bool | None = None) -> Reranked:
    """Rank each query's candidates (Q, K), columns of the task's passages, by a reranker.

    Equal scores are ranked by falling passage id, as trec_eval does.
    """
    texts = list(task.corpus.values())
    asked = zip(task.queries.values(), candidates, strict=True)
    pairs = [(query, texts[place]) for query, row in asked for place in row.tolist()]
    scores = reranker.score(pairs, progress=progress).reshape(candidates.shape)
    rank_of_id = np.argsort(descending_ids(task))
    order = np.lexsort((rank_of_id[candidates], -scores), axis=1)
    best = np.take_along_axis(candidates, order, axis=1)
    return Reranked(scores=scores, best=best, ndcg_at_10=ranking_scores(task, best)["ndcg_at_10"])


def closeness(found: Reranked, wanted: Reranked) -> dict[str, float]:
    """How close a reranker is to another on the same candidates.

    spearman        of all pairs' scores
    top_10_overlap  share of the other's ten best that are among its own
    same_best       share of queries whose first passage is the same
    """
    ranks = spearmanr(found.scores.ravel(), wanted.scores.ravel()).statistic
    rows = zip(found.best[:, :BEST], wanted.best[:, :BEST], strict=True)
    return {
        "spearman": float(ranks),
        "top_10_overlap": float(np.mean([_shared(ours, theirs) for ours, theirs in rows])),
        "same_best": float(np.mean(found.best[:, 0] == wanted.best[:, 0])),
    }


def _shared(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> float:
    return len(set(ours.tolist()) & set(theirs.tolist())) / len(theirs)


def require_retrieval(task: object, rerankers: Sequence[object]) -> None:
    """Raise InputError: rerankers are given for a task without passages."""
    if rerankers and not isinstance(task, Retrieval):
        raise InputError("--rerank: expected a task with queries and passages, found sentence pairs.")
