"""Which texts run together: pure functions over lengths, no text and no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.graph_names import SECOND, Layout
from bge_onnx.errors import InputError

BUDGET_TOKENS: dict[Layout, int] = {"equal": 256, "padded": 512, "packed": 16384, "whole": 16384}
"""Most tokens in a batch. With one core per batch, 256 take as long as 512 or some percent longer (bge-small, 1500
mixed texts: float32 31 to 33 s against 29 to 32 s, eight bits 15 to 18 s against 15 s). With 256, memory stays flat
over ten thousand texts; with 512 not always. Packed and whole batches run on a GPU; other budgets are not measured."""

PACKED_PLACES = 2
"""A packed batch whose texts were all as long as its longest would have at most so many times the budget of tokens."""

PACKED_SQUARES = 8192**2
"""Most texts x (tokens of the longest)**2 in a packed batch: attention without a fused kernel holds so many scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Texts that run together.

    rows       (B,) int64, each text's place in the caller's order
    input_ids  (B, T) int64, padded on the right where texts differ in length; packed, (T,) one text after another
    lengths    (B,) int64, tokens of each text
    types      of input_ids' shape, 1 for tokens of a pair's second text; None where all are 0
    """

    rows: NDArray[np.int64]
    input_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    types: NDArray[np.int64] | None = None

    @property
    def token_types(self) -> NDArray[np.int64]:
        """Of input_ids' shape, 0 or 1: which text of a pair each token belongs to."""
        return np.zeros_like(self.input_ids) if self.types is None else self.types

    @property
    def packed(self) -> bool:
        """Whether the texts stand one after another, without a text axis."""
        return self.input_ids.ndim == 1

    @property
    def attention_mask(self) -> NDArray[np.int64]:
        """(B, T) int64, 1 for a token and 0 for padding; of texts that are not packed."""
        return (np.arange(self.input_ids.shape[1]) < self.lengths[:, None]).astype(np.int64)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each text's tokens begin when packed, and where the last text's end, (B + 1,) int64."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def text_of_token(self) -> NDArray[np.int64]:
        """The text that each of `input_ids`, flattened, belongs to."""
        return np.repeat(np.arange(len(self.rows)), self.lengths if self.packed else self.input_ids.shape[1])

    def states(self, tokens: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Each text's rows (its tokens, D), cut out of the batch's, (B, T, D) or packed (T, D)."""
        if self.packed:
            return np.split(tokens, self.starts[1:-1])
        return [text[:length] for text, length in zip(tokens, self.lengths, strict=True)]


def plan_batches(
    token_ids: Sequence[NDArray[np.int64]], *, budget_tokens: int | None = None, layout: Layout, pad_id: int
) -> list[Batch]:
    """Cut texts into batches of at most `budget_tokens` (padding included), longest texts first; None for the default.

    A text that is longer than the budget runs alone. With layout `equal` a batch holds texts of one length only, so
    nothing is padded and a vector cannot depend on its neighbours; with `packed`, of any lengths, one after another.
    Longest first keeps the last batches short, so that threads finish together.

    Raises InputError: a budget below 1.
    """
    if budget_tokens is None:
        budget_tokens = BUDGET_TOKENS[layout]
    if type(budget_tokens) is not int or budget_tokens < 1:
        raise InputError(f"budget_tokens: expected a whole number, at least 1, found {budget_tokens!r:.60}")
    lengths = np.array([len(ids) for ids in token_ids], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    groups = _groups(lengths[order], budget_tokens, layout)
    return [_batch(token_ids, order[start:stop], layout, pad_id) for start, stop in groups]


def _groups(descending: NDArray[np.int64], budget_tokens: int, layout: Layout) -> Iterator[tuple[int, int]]:
    """Ranges of positions in `descending` (lengths, longest first) that form a batch each."""
    if layout == "packed":
        yield from _packed_groups(descending, budget_tokens)
        return
    ends = len(descending) - np.searchsorted(descending[::-1], descending, side="left")  # where each length's run ends
    start = 0
    while start < len(descending):
        stop = min(start + max(1, budget_tokens // int(descending[start])), len(descending))
        if layout == "equal":
            stop = min(stop, int(ends[start]))
        yield start, stop
        start = stop


def _packed_groups(descending: NDArray[np.int64], budget_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges within the budget of tokens, and within PACKED_PLACES and PACKED_SQUARES: attention's buffers are as
    large as if all texts were as long as the longest.
    """
    ends = np.concatenate([[0], np.cumsum(descending)])
    start = 0
    while start < len(descending):
        fit = int(np.searchsorted(ends, ends[start] + budget_tokens, side="right")) - 1
        longest = int(descending[start])
        places = PACKED_PLACES * budget_tokens // longest
        stop = max(start + 1, min(fit, start + PACKED_SQUARES // longest**2, start + places))
        yield start, stop
        start = stop


def _batch(token_ids: Sequence[NDArray[np.int64]], rows: NDArray[np.int64], layout: Layout, pad_id: int) -> Batch:
    texts = [token_ids[row] for row in rows]
    lengths = np.array([len(ids) for ids in texts], dtype=np.int64)
    if layout == "packed":
        return _typed(rows, np.concatenate(texts), lengths)
    input_ids = np.full((len(texts), len(texts[0])), pad_id, dtype=np.int64)
    for line, ids in enumerate(texts):
        input_ids[line, : len(ids)] = ids
    return _typed(rows, input_ids, lengths)


def _typed(rows: NDArray[np.int64], input_ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Batch:
    """A batch whose tokens may have types."""
    if input_ids.max(initial=0) < SECOND:
        return Batch(rows=rows, input_ids=input_ids, lengths=lengths)
    types, token_ids = np.divmod(input_ids, SECOND)
    return Batch(rows=rows, input_ids=token_ids, lengths=lengths, types=types)
