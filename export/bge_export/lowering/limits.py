"""The largest errors that a target may have against PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from bge_onnx.bundle.heads import HEADS
from bge_onnx.bundle.records import Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest errors allowed: `vectors` for dense and ColBERT vectors, by `measure`; `sparse` for sparse weights.

    The error of sparse weights is their difference. If the measure is the cosine, which ignores scale, it is the length
    of the difference divided by the length of the weights. Scores have the limit `sparse` too; their error is the
    difference divided by the largest score's size.
    """

    measure: Measure = "difference"
    vectors: float = 2e-5
    sparse: float = 2e-5

    def of(self, head: str) -> tuple[Measure, float]:
        """The measure of a head's errors, and the largest allowed."""
        if HEADS[head].is_vectors:
            return self.measure, self.vectors
        plain = self.measure == "difference" and HEADS[head].gives == "weights"
        return "difference" if plain else "relative", self.sparse
