"""How the texts of a batch lie in an encoder's graph: padded on a text axis, or packed one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import onnx_ir as ir

from bge_export.graph.ops import Attributes, Graph
from bge_export.graph.pooling import pool
from bge_export.models.graph_outputs import GraphOutputs
from bge_onnx.bundle.graph_names import (
    CU_SEQLENS,
    POOLED_ROWS,
    POSITION_IDS,
    POSITIONS_PAST_PADDING,
    QUERY_TOKENS,
    STATE_ROWS,
    TEXT_STARTS,
    TOKEN_OFFSET,
    TOKEN_TYPES,
)

Axes = list[int | str]


class EncoderInputs(Protocol):
    """The inputs of a batch's texts, and what depends on how they lie."""

    ids: ir.Value
    types: ir.Value | None
    state_axes: Axes
    row_axes: Axes

    def embed(self, word: ir.Value, positions: ir.Value, pad_id: int | None) -> ir.Value:
        """Word embeddings plus those of positions; `pad_id` where positions count past the padding id."""

    def attention(self, module: str, inputs: Sequence[ir.Value], heads: int, head_width: int) -> ir.Value:
        """Every query's mix of its text's values; `inputs` are queries, keys and values."""

    def before_last(self, hidden: ir.Value) -> ir.Value:
        """The tokens whose queries the last layer is given."""

    def after_attention(self, hidden: ir.Value) -> ir.Value:
        """The rows that the last layer goes on with after its attention."""

    def pooled(self, states: ir.Value) -> ir.Value:
        """One vector (B, D) a text, from the last layer's states."""

    def before_rows(self, module: str, states: ir.Value) -> ir.Value:
        """The states from which each token's vector is computed; `module` names the nodes."""

    def masked_rows(self, module: str, rows: ir.Value) -> ir.Value:
        """A vector for each token, zeros for padding."""


class Padded:
    """Texts (B, T), padded on the right, with a mask.

    The last layer's queries, output projection and FFN are computed for the CLS token alone where `dense` needs no more
    (`wanted.prunes`). Where other outputs need all tokens, a graph input says how many tokens from the first on are
    computed: 1 for `dense`, T for the others. (ONNX Runtime 1.32 runs every node, whatever is asked for:
    `only_execute_path_to_fetches` does nothing in its inference builds.)
    """

    def __init__(self, graph: Graph, wanted: GraphOutputs) -> None:
        self.graph, self.wanted = graph, wanted
        self.state_axes: Axes = ["B", "Q" if wanted.prunes else "T"]
        self.row_axes: Axes = ["B", "rows"]
        self.ids = graph.input("input_ids", ["B", "T"])
        self.types = graph.input(TOKEN_TYPES, ["B", "T"]) if wanted.types else None
        self.mask = graph.input("attention_mask", ["B", "T"])
        self.bias = graph.call("attention_bias", "attention_bias", self.mask)

    def embed(self, word: ir.Value, positions: ir.Value, pad_id: int | None) -> ir.Value:
        inputs = (self.ids, word, positions)
        if pad_id is None:
            return self.graph.call("embeddings", "embeddings", *inputs)
        return self.graph.call("embeddings_past_padding", "embeddings", *inputs, attributes={"pad_token_id": pad_id})

    def attention(self, module: str, inputs: Sequence[ir.Value], heads: int, head_width: int) -> ir.Value:
        sizes = _sizes([0, 0, heads, head_width])
        return self.graph.call("attention", module, *inputs, self.bias, attributes=sizes)

    def before_last(self, hidden: ir.Value) -> ir.Value:
        if self.wanted.prunes and self.wanted.token_states:
            return self.graph.call("leading_tokens", "pooling", hidden, self.graph.input(QUERY_TOKENS, [1]))
        return self.graph.call("first_token", "pooling", hidden) if self.wanted.prunes else hidden

    def after_attention(self, hidden: ir.Value) -> ir.Value:
        return hidden

    def pooled(self, states: ir.Value) -> ir.Value:
        return pool(self.graph, states, self.mask, self.wanted.pooling)

    def before_rows(self, module: str, states: ir.Value) -> ir.Value:
        return self.graph.call("without_first", module, states)

    def masked_rows(self, module: str, rows: ir.Value) -> ir.Value:
        return self.graph.call("mask_rows", module, rows, self.mask)


class Packed:
    """Texts one after another (T,), as fused attention on GPUs takes them: no padding, positions from the host.

    The last layer goes on, after its attention, with the rows that an input names: each text's pooled token for `dense`
    alone, all for the others. Its attention is computed for all, as the fused operator has a query for each key.
    """

    def __init__(self, graph: Graph, wanted: GraphOutputs) -> None:
        self.graph, self.wanted = graph, wanted
        self.ids = graph.input("input_ids", ["T"])
        self.types = graph.input(TOKEN_TYPES, ["T"]) if wanted.types else None
        self.starts = graph.input(TEXT_STARTS, ["T"])
        self.ends = graph.input(CU_SEQLENS, ["B + 1"], ir.DataType.INT32)
        self.places = graph.input(TOKEN_OFFSET, ["B", "longest"], ir.DataType.INT32)
        self.rows = None if wanted.pooling == "mean" else graph.input(STATE_ROWS, ["S"])
        self.pooled_rows = None if wanted.pooling == "mean" else graph.input(POOLED_ROWS, ["B"])
        self.state_axes: Axes = ["T" if self.rows is None else "S"]
        self.row_axes = self.state_axes

    def embed(self, word: ir.Value, positions: ir.Value, pad_id: int | None) -> ir.Value:
        name = POSITION_IDS if pad_id is None else POSITIONS_PAST_PADDING
        return self.graph.call("embeddings_at", "embeddings", word, positions, self.graph.input(name, ["T"]))

    def attention(self, module: str, inputs: Sequence[ir.Value], heads: int, head_width: int) -> ir.Value:
        inputs = (*inputs, self.starts, self.places, self.ends)
        return self.graph.call("packed_attention", module, *inputs, attributes=_sizes([0, heads, head_width]))

    def before_last(self, hidden: ir.Value) -> ir.Value:
        return hidden

    def after_attention(self, hidden: ir.Value) -> ir.Value:
        return hidden if self.rows is None else self.graph.call("rows", "pooling", hidden, self.rows)

    def pooled(self, states: ir.Value) -> ir.Value:
        if self.pooled_rows is None:
            return self.graph.call("packed_mean", "pooling", states, self.starts, self.ends)
        return self.graph.call("rows", "pooling", states, self.pooled_rows)

    def before_rows(self, module: str, states: ir.Value) -> ir.Value:  # noqa: ARG002
        return states

    def masked_rows(self, module: str, rows: ir.Value) -> ir.Value:  # noqa: ARG002
        return rows


def _sizes(heads: list[int]) -> Attributes:
    return {"num_heads": heads[-2], "heads": heads, "scale": float(heads[-1] ** -0.5)}
