"""The names of a graph's inputs and outputs, and how texts share its batches: what export and runtime agree on."""

from __future__ import annotations

from typing import Literal

QUERY_TOKENS = "query_tokens"
"""An input (1,) int64 that some graphs have: how many tokens, from the first on, the last layer is computed for."""

TOKEN_TYPES = "token_type_ids"  # noqa: S105 - no password
"""A graph's input of `input_ids`' shape, where a model tells a pair's texts apart: 0 for the first one, else 1."""

SECOND = 1 << 40
"""A token id of a pair's second text has this added, until a batch is made: its type is 1 then."""

TEXT_STARTS, CU_SEQLENS, TOKEN_OFFSET = "text_starts", "cu_seqlens", "token_offset"
"""A packed graph's inputs beside input_ids (T,). The first, (T,) int64: for each token, where its text begins. The
second, (B + 1,) int32: where each text begins, and where the last one ends. The third, (B, longest) int32, is described
in the documentation of ONNX Runtime's packed attention."""

POSITION_IDS, POSITIONS_PAST_PADDING = "position_ids", "positions_past_padding"
"""A packed graph also has one of these inputs, (T,) int64. The first is a token's index in its text. The second is the
padding id plus the number of tokens, up to this one, that are not padding; for a padding token, just the padding id."""

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
