"""Which texts run together: pure functions over lengths, no text and no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle import Layout
from bge_onnx.errors import InputError

BUDGET_TOKENS = 512
"""Tokens of a batch: with one core a batch, as fast as 1024 and faster than a text at a time (BERT small and base)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Texts that run together.

    rows            (B,) int64, each text's place in the caller's order
    input_ids       (B, T) int64
    attention_mask  (B, T) int64, 1 for a token and 0 for padding; None where no row is padded by layout
    """

    rows: NDArray[np.int64]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64] | None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, (B,) int64."""
        if self.attention_mask is None:
            return np.full(len(self.rows), self.input_ids.shape[1])
        lengths: NDArray[np.int64] = self.attention_mask.sum(axis=1)
        return lengths


def plan_batches(
    token_ids: Sequence[NDArray[np.int64]], *, budget_tokens: int, layout: Layout, pad_id: int
) -> list[Batch]:
    """Cut texts into batches of at most `budget_tokens` (padding included), longest texts first.

    A text that is longer than the budget runs alone. With layout `equal` a batch holds texts of one length only, so
    nothing is padded and a vector cannot depend on its neighbours. Longest first keeps the last batches short, so that
    threads finish together.

    Raises InputError: a budget below 1.
    """
    if budget_tokens < 1:
        raise InputError(f"budget_tokens: expected at least 1, found {budget_tokens}")
    lengths = np.array([len(ids) for ids in token_ids], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    groups = _groups(lengths[order], budget_tokens, layout)
    return [_batch(token_ids, order[start:stop], layout, pad_id) for start, stop in groups]


def _groups(descending: NDArray[np.int64], budget_tokens: int, layout: Layout) -> Iterator[tuple[int, int]]:
    """Ranges of positions in `descending` (lengths, longest first) that form a batch each."""
    ends = len(descending) - np.searchsorted(descending[::-1], descending, side="left")  # where each length's run ends
    start = 0
    while start < len(descending):
        stop = min(start + max(1, budget_tokens // int(descending[start])), len(descending))
        if layout == "equal":
            stop = min(stop, int(ends[start]))
        yield start, stop
        start = stop


def _batch(token_ids: Sequence[NDArray[np.int64]], rows: NDArray[np.int64], layout: Layout, pad_id: int) -> Batch:
    texts = [token_ids[row] for row in rows]
    if layout == "equal":
        return Batch(rows=rows, input_ids=np.stack(texts), attention_mask=None)
    input_ids = np.full((len(texts), len(texts[0])), pad_id, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for line, ids in enumerate(texts):
        input_ids[line, : len(ids)] = ids
        attention_mask[line, : len(ids)] = 1
    return Batch(rows=rows, input_ids=input_ids, attention_mask=attention_mask)
