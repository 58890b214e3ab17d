"""Sparse vectors: a weight per token id, as BGE-M3's lexical head gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from bge_onnx.errors import InputError

if TYPE_CHECKING:
    import scipy.sparse

Ids = NDArray[np.int64]
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class SparseVectors(Sequence[dict[int, float]]):
    """Sparse vectors of N texts, one after another; as a sequence, N dicts of token id to weight.

    starts   (N + 1,) int64: text i has the entries from starts[i] to starts[i + 1]
    ids      (M,) int64 token ids, each once a text, in the order in which the text has them
    weights  (M,) float32, all above 0
    width    the vocabulary's size, which is the vectors' dimension
    """

    starts: Ids
    ids: Ids
    weights: Weights
    width: int

    def __len__(self) -> int:
        """N, the number of texts."""
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> dict[int, float]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[int, float]]: ...
    def __getitem__(self, index: int | slice) -> dict[int, float] | list[dict[int, float]]:
        """The weights of one text by token id, or a list of such dicts."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        ids, weights = self.indices_values(index)
        return dict(zip(ids.tolist(), weights.tolist(), strict=True))

    def indices_values(self, index: int) -> tuple[Ids, Weights]:
        """Token ids and weights of one text: what Qdrant's `SparseVector` and Milvus take as indices and values.

        Raises IndexError: no such text.
        """
        row = range(len(self))[index]
        entries = slice(self.starts[row], self.starts[row + 1])
        return self.ids[entries], self.weights[entries]

    def to_csr(self) -> scipy.sparse.csr_array:
        """The vectors as a SciPy matrix (N, width) float32 in compressed rows, column indices sorted; a copy.

        Raises InputError: SciPy is not installed.
        """
        try:
            from scipy.sparse import csr_array  # noqa: PLC0415 - the runtime does without
        except ImportError:
            raise InputError("to_csr: expected SciPy, found none.\n    Install it: pip install scipy") from None
        matrix = csr_array((self.weights, self.ids, self.starts), shape=(len(self), self.width), copy=True)
        matrix.sort_indices()
        return matrix


@dataclass(frozen=True, slots=True)
class Folded:
    """The sparse vectors of one batch: text `rows[i]` of the caller has the next `counts[i]` of `ids` and `weights`."""

    rows: Ids
    counts: Ids
    ids: Ids
    weights: Weights


def fold(rows: Ids, text_of_token: Ids, token_ids: Ids, weights: Weights, *, unused: Sequence[int]) -> Folded:
    """One weight per text and token id: the largest, without `unused` ids and weights that are not above 0.

    rows           (B,) int64, the texts' places
    text_of_token  (N,) int64, which of the B texts a token belongs to, in rising order
    token_ids      (N,) int64
    weights        (N,) float32, one per token

    As FlagEmbedding's `_process_token_weights`, which walks token by token:
    https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/inference/embedder/encoder_only/m3.py#L354-L369
    """
    kept = (weights > 0) & ~np.isin(token_ids, np.asarray(unused))
    span = int(token_ids.max(initial=0)) + 1
    keys = (text_of_token * span + token_ids)[kept]
    unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    best = np.zeros(len(unique), dtype=np.float32)
    np.maximum.at(best, inverse, weights[kept])
    order = np.argsort(first)  # back to the texts' own order
    lines, ids = np.divmod(unique[order], span)
    return Folded(rows, np.bincount(lines, minlength=len(rows)), ids, best[order])


def join(parts: Iterable[Folded], *, count: int, width: int) -> SparseVectors:
    """The vectors of all batches in the caller's order; `count` is N."""
    parts = list(parts)
    counts = np.zeros(count, dtype=np.int64)
    for part in parts:
        counts[part.rows] = part.counts
    texts = np.concatenate([np.repeat(part.rows, part.counts) for part in parts] or [np.empty(0, dtype=np.int64)])
    order = np.argsort(texts, kind="stable")
    ids = np.concatenate([part.ids for part in parts] or [np.empty(0, dtype=np.int64)])
    weights = np.concatenate([part.weights for part in parts] or [np.empty(0, dtype=np.float32)])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return SparseVectors(starts, ids[order], weights[order], width)
