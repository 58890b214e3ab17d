"""What graphs on a device are fed beside token ids: all that depends on lengths comes from the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.graph_names import (
    CU_SEQLENS,
    LAST_PLACES,
    POOLED_ROWS,
    POSITION_IDS,
    POSITIONS_PAST_PADDING,
    STATE_ROWS,
    TEXT_STARTS,
    TOKEN_OFFSET,
    TOKEN_TYPES,
    TOKENS,
)
from bge_onnx.run.batches import Batch

Ids = NDArray[np.int64]


def packed_inputs(
    batch: Batch, *, last: bool, dense_alone: bool, pad_id: int, longest: int | None = None
) -> dict[str, NDArray[Any]]:
    """What a packed graph takes, and some that it may not.

    last         dense vectors come from each text's last token; else from the first
    dense_alone  the last layer is computed for those tokens only
    longest      tokens of the longest text, or more; None counts them
    """
    starts, longest = batch.starts, longest or int(batch.lengths.max())
    text_starts = np.repeat(starts[:-1], batch.lengths)
    pooled = starts[1:] - 1 if last else starts[:-1]
    pooled = pooled.clip(0, len(batch.input_ids) - 1)  # texts without a token, which fill a batch up, have none
    # Places of a (B, longest) matrix: of the tokens first, in their order, then of what padding would be.
    is_token = np.arange(longest) < batch.lengths[:, None]
    places = np.concatenate([np.flatnonzero(is_token), np.flatnonzero(~is_token)])
    return {
        "input_ids": batch.input_ids,
        TOKEN_TYPES: batch.token_types,
        POSITION_IDS: np.arange(len(batch.input_ids)) - text_starts,
        POSITIONS_PAST_PADDING: _past_padding(batch.input_ids, text_starts, pad_id),
        TEXT_STARTS: text_starts,
        CU_SEQLENS: starts.astype(np.int32),
        TOKEN_OFFSET: places.astype(np.int32).reshape(is_token.shape),
        STATE_ROWS: pooled if dense_alone else np.arange(len(batch.input_ids)),
        POOLED_ROWS: np.arange(len(pooled)) if dense_alone else pooled,
    }


def whole_inputs(batch: Batch) -> dict[str, NDArray[Any]]:
    """What a graph of whole texts takes, (B, T) padded on the right."""
    texts, tokens = batch.input_ids.shape
    places = batch.lengths - 1
    return {
        "input_ids": batch.input_ids,
        LAST_PLACES: places.astype(np.int32),
        TOKENS: np.array(tokens, dtype=np.int32),
        POOLED_ROWS: np.arange(texts) * tokens + places,
    }


def _past_padding(token_ids: Ids, text_starts: Ids, pad_id: int) -> Ids:
    """Positions as XLM-R counts them, in transformers' create_position_ids_from_input_ids:
    https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/xlm_roberta/modeling_xlm_roberta.py
    """
    counts = token_ids != pad_id
    up_to = np.cumsum(counts)
    before_text = (up_to - counts)[text_starts]
    positions: Ids = (up_to - before_text) * counts + pad_id
    return positions
