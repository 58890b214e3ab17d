"""What comes back: the vectors of all heads, in the caller's order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_onnx.batches import Batch

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Vectors of N texts, row i for text i.

    dense  (N, D) float32, of length 1 where the bundle says `normalized`
    """

    dense: Vectors

    def __len__(self) -> int:
        """N, the number of texts."""
        return len(self.dense)


def collect(outputs: Iterable[tuple[Batch, Mapping[str, NDArray[Any]]]], *, count: int, dims: int) -> Embeddings:
    """Put each batch's rows back where the caller had them.

    outputs  pairs of a batch and its graph outputs, `dense` (B, D) among them
    count    N, the number of texts; every row must occur in one batch
    """
    dense = np.empty((count, dims), dtype=np.float32)
    for batch, heads in outputs:
        dense[batch.rows] = heads["dense"]
    return Embeddings(dense=dense)
