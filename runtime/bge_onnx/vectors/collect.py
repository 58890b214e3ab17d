"""Batches' outputs to vectors in the caller's order: a collector for each kind of head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.heads import HEADS
from bge_onnx.errors import BundleError
from bge_onnx.run.batches import Batch
from bge_onnx.text.mcls import mean_of_cls
from bge_onnx.vectors.embeddings import Embeddings, VectorOptions, Vectors
from bge_onnx.vectors.sparse import Folded, SparseVectors, fold, join

UNUSED_TOKENS = ("cls", "eos", "pad", "unk")
"""Special tokens that get no sparse weight, in FlagEmbedding and so here."""


class Collector(Protocol):
    """What one head gives of N texts, put together batch after batch."""

    def __init__(self, head: str, count: int, bundle: Bundle, wanted: VectorOptions) -> None: ...

    def add(self, batch: Batch, array: NDArray[Any]) -> None:
        """Take the graph's output of one batch."""

    def result(self) -> Any:
        """Of all texts, when every row was in a batch."""


class VectorCollector:
    """A vector a text: (N, D)."""

    def __init__(self, _: str, count: int, bundle: Bundle, wanted: VectorOptions) -> None:
        self.bundle, self.wanted = bundle, wanted
        self.vectors = np.empty((count, wanted.width(bundle)), dtype=np.float32)

    def add(self, batch: Batch, array: NDArray[Any]) -> None:
        vectors = mean_of_cls(batch.states(array)) if self.wanted.mcls else array
        self.vectors[batch.rows] = _finish(vectors, self.bundle, self.wanted)

    def result(self) -> Vectors:
        return self.vectors


class ScoreCollector:
    """A number a pair of texts: (N,)."""

    def __init__(self, _: str, count: int, __: Bundle, ___: VectorOptions) -> None:
        self.scores = np.empty(count, dtype=np.float32)

    def add(self, batch: Batch, array: NDArray[Any]) -> None:
        self.scores[batch.rows] = array[:, 0]

    def result(self) -> Vectors:
        return self.scores


class WeightsCollector:
    """A weight a token, the largest of each token id: sparse vectors."""

    def __init__(self, head: str, count: int, bundle: Bundle, _: VectorOptions) -> None:
        self.count, self.width = count, bundle.dims[head]
        self.unused = [bundle.special_ids[token] for token in UNUSED_TOKENS if token in bundle.special_ids]
        self.folded: list[Folded] = []

    def add(self, batch: Batch, array: NDArray[Any]) -> None:
        tokens = batch.input_ids.ravel(), array.ravel()
        self.folded.append(fold(batch.rows, batch.text_of_token, *tokens, unused=self.unused))

    def result(self) -> SparseVectors:
        return join(self.folded, count=self.count, width=self.width)


class RowsCollector:
    """A vector a token but the first: N arrays (T - 1, C)."""

    def __init__(self, _: str, count: int, bundle: Bundle, wanted: VectorOptions) -> None:
        self.bundle, self.wanted = bundle, wanted
        self.rows: list[Vectors] = [np.empty((0, 0), dtype=np.float32)] * count  # each is replaced

    def add(self, batch: Batch, array: NDArray[Any]) -> None:
        texts = batch.states(_finish(array, self.bundle, self.wanted))
        for row, text, length in zip(batch.rows, texts, batch.lengths, strict=True):
            self.rows[row] = text[1:] if batch.packed else text[: length - 1]  # a packed graph keeps the first token

    def result(self) -> list[Vectors]:
        return self.rows


COLLECTORS: dict[str, type[Collector]] = {
    "vector": VectorCollector,
    "weights": WeightsCollector,
    "rows": RowsCollector,
    "score": ScoreCollector,
}
"""By what a head gives."""


def collect(
    outputs: Iterable[tuple[Batch, Mapping[str, NDArray[Any]]]], *, count: int, bundle: Bundle, wanted: VectorOptions
) -> Embeddings:
    """Put each batch's rows back where the caller had them.

    outputs  pairs of a batch and its graph outputs by name
    count    N, the number of texts; every row must occur in one batch

    Raises BundleError: NaN or infinity.
    """
    collectors = {head: COLLECTORS[HEADS[head].gives](head, count, bundle, wanted) for head in wanted.heads}
    for batch, by_name in outputs:
        arrays = {head: by_name[wanted.output(head, bundle)] for head in wanted.heads}
        for head, array in arrays.items():
            require_finite(head, array, bundle)
        for head, collector in collectors.items():
            collector.add(batch, arrays[head])
    found = {head: collector.result() for head, collector in collectors.items()}
    return Embeddings(count=count, by_head={head: found.get(head) for head in HEADS})


def require_finite(head: str, vectors: NDArray[Any], bundle: Bundle) -> None:
    """Raise BundleError: a graph gave NaN or infinity, which no text of a sound bundle has."""
    if not np.isfinite(vectors).all():
        raise BundleError(
            f"{bundle.folder}: expected finite {head} vectors, found NaN or infinity.\n"
            "    The files are damaged or were changed: compare them with `bge info --verify`, or export again."
        )


def _finish(vectors: Vectors, bundle: Bundle, wanted: VectorOptions) -> Vectors:
    """Cut and normalise vectors (…, D) where the graph has not: a row of zeros stays one, as in torch's normalize."""
    cut = vectors[..., : wanted.dim(bundle)]
    if wanted.normalize is False or (wanted.normalize is None and not bundle.normalized):
        return cut
    if bundle.normalized and cut.shape == vectors.shape and not wanted.mcls:
        return vectors
    norms = np.linalg.norm(cut, axis=-1, keepdims=True)
    unit: Vectors = cut / np.maximum(norms, np.float32(1e-12))
    return unit
