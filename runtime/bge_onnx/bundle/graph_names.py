"""The names of a graph's inputs and outputs, and how texts share its batches: what export and runtime agree on."""

from __future__ import annotations

from typing import Literal

QUERY_TOKENS = "query_tokens"
"""A graph's input (1,) int64, where it has one: for how many tokens, from the first on, the last layer is computed."""

TOKEN_TYPES = "token_type_ids"  # noqa: S105 - no password
"""A graph's input of `input_ids`' shape, where a model tells a pair's texts apart: 0 for the first one, else 1."""

SECOND = 1 << 40
"""A token id of a pair's second text has this added, until a batch is made: its type is 1 then."""

TEXT_STARTS, CU_SEQLENS, TOKEN_OFFSET = "text_starts", "cu_seqlens", "token_offset"
"""A packed graph's inputs beside input_ids (T,): for each token where its text begins, (T,) int64; the same by text and
the end of the last, (B + 1,) int32; and (B, longest) int32, which ONNX Runtime's packed attention describes."""

POSITION_IDS, POSITIONS_PAST_PADDING = "position_ids", "positions_past_padding"
"""One of these is too, (T,) int64: a token's index in its text, or the number of tokens up to it that are not padding,
counted from the padding id on; the padding id itself, where a text has it, has that position."""

STATE_ROWS, POOLED_ROWS = "state_rows", "pooled_rows"
"""A packed graph's inputs (S,) and (B,) int64: the tokens that the last layer is computed for, and which of those the
texts' dense vectors are made of."""

LAST_PLACES, TOKENS = "last_places", "tokens"
"""Inputs of a graph of whole texts, as ONNX Runtime's grouped-query attention wants them: the place of each text's last
token, (B,) int32, and the tokens of the longest, int32 without an axis. `POOLED_ROWS` is one too, of B × T rows."""

PAST_KEYS, PAST_VALUES, KEPT_TOKENS, KEYS, VALUES = "past_keys", "past_values", "kept_tokens", "keys", "values"
"""Inputs and outputs of a decoder's graph: keys and values of a prefix, and how many tokens' are wanted back."""

Layout = Literal["equal", "padded", "packed", "whole"]
"""How texts share a batch: `equal`, all of one length and no mask; `padded`, with an attention mask; `packed`, one
after another without a text axis; `whole`, of causal models on a device, padded on the right, where no token looks."""

ON_DEVICE: frozenset[Layout] = frozenset({"packed", "whole"})
"""Of bundles that run on devices: what depends on lengths comes from the host."""
