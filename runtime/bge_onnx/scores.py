"""Scores between vectors, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bge_onnx.embeddings import Embeddings, Vectors
from bge_onnx.errors import InputError


def similarity(queries: Embeddings | Vectors, passages: Embeddings | Vectors) -> Vectors:
    """Inner products (Q, P) float32 of queries (Q, D) and passages (P, D): cosines, as BGE vectors have length 1.

    Raises InputError: arrays that are not two-dimensional, or of different widths.
    """
    left, right = _dense(queries), _dense(passages)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise InputError(
            f"similarity: expected arrays (Q, D) and (P, D) of one width D, found {left.shape} and {right.shape}"
        )
    return left @ right.T


def top_k(scores: Vectors, k: int) -> NDArray[np.int64]:
    """Columns (Q, min(k, P)) of the largest scores of each row, best first; equal scores in column order."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _dense(vectors: Embeddings | Vectors) -> Vectors:
    return vectors.dense if isinstance(vectors, Embeddings) else np.asarray(vectors, dtype=np.float32)
