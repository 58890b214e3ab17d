"""How a decoder's graph sees the tokens of its texts: behind a prefix, or whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from bge_export.graph.ops import Attributes, Graph
from bge_export.models.decoder_config import Sizes
from bge_onnx.bundle.graph_names import (
    KEPT_TOKENS,
    KEYS,
    LAST_PLACES,
    PAST_KEYS,
    PAST_VALUES,
    POOLED_ROWS,
    TOKENS,
    VALUES,
)

Axes = list[int | str]
Outputs = dict[str, tuple[ir.Value, Axes]]


class Parts(Protocol):
    """What the inputs need of their decoder."""

    @property
    def graph(self) -> Graph: ...
    @property
    def config(self) -> Sizes: ...

    def rotate(self, module: str, x: ir.Value, heads: int, position: ir.Value) -> ir.Value:
        """As `Decoder.rotate`."""

    def attend(self, kind: str, number: int, inputs: Sequence[ir.Value | None]) -> ir.Value:
        """As `Decoder.attend`."""


class DecoderInputs(Protocol):
    """How a graph sees the tokens of its texts: behind a prefix, or whole."""

    last_query_alone: bool  # the last layer has a query of the last token, else of all

    def rotate(self, module: str, x: ir.Value, heads: int, *, last: bool = False) -> ir.Value:
        """`x` (B, T, heads × K) rotated by its positions; `last`: the last layer's queries."""

    def attend(self, number: int, query: ir.Value, key: ir.Value, value: ir.Value, *, last: bool) -> ir.Value:
        """Causal attention (B, Q, heads × K) of layer `number`."""

    def last_rows(self, states: ir.Value, width: int) -> ir.Value:
        """Each text's last token (B, 1, width), out of states (B, T, width)."""

    def outputs(self) -> Outputs:
        """What the graph gives beside vectors, when all layers are built."""


class Prefixed:
    """Texts behind the keys and values of a prefix of P tokens, P from 0 on. The graph's inputs beside input_ids:

    past_keys, past_values  (layers, key-value heads, P, head width) float32
    kept_tokens             (1,) int64: how many tokens' keys and values are wanted back, 0 or T (B is 1 then)
    """

    last_query_alone = True

    def __init__(self, decoder: Parts, input_ids: ir.Value) -> None:
        self.decoder, self.graph, config = decoder, decoder.graph, decoder.config
        cache: Axes = [config.num_hidden_layers, config.num_key_value_heads, "P", config.head_width]
        self.past_keys = self.graph.input(PAST_KEYS, cache, ir.DataType.FLOAT)
        self.past_values = self.graph.input(PAST_VALUES, cache, ir.DataType.FLOAT)
        self.kept = self.graph.input(KEPT_TOKENS, [1])
        self.first = self.graph.call("past_length", "positions", self.past_keys)
        self.last = self.graph.call("last_position", "positions", self.past_keys, input_ids)
        self.no_past = self.graph.call("no_past", "positions", self.past_keys)
        self.last_places = self.graph.call("last_indices", "positions", input_ids)
        self.tokens = self.graph.call("token_count", "positions", input_ids)
        self.caches: list[tuple[ir.Value, ir.Value]] = []

    def rotate(self, module: str, x: ir.Value, heads: int, *, last: bool = False) -> ir.Value:
        return self.decoder.rotate(module, x, heads, self.last if last else self.first)

    def attend(self, number: int, query: ir.Value, key: ir.Value, value: ir.Value, *, last: bool) -> ir.Value:
        self.caches.append((self._kept(number, key), self._kept(number, value)))
        past = [self._past(number, cache) for cache in (self.past_keys, self.past_values)]
        facts = (self.no_past, self.last_places, self.tokens)
        return self.decoder.attend("last" if last else "causal", number, (query, key, value, *past, *facts))

    def last_rows(self, states: ir.Value, width: int) -> ir.Value:  # noqa: ARG002
        return self.graph.call("last_row", "pooling", states)

    def outputs(self) -> Outputs:
        config = self.decoder.config
        wide: Axes = ["L", config.num_key_value_heads, "K", config.head_width]
        keys, values = zip(*self.caches, strict=True)
        return {KEYS: (self.graph.join("keys", keys), wide), VALUES: (self.graph.join("values", values), wide)}

    def _kept(self, number: int, rows: ir.Value) -> ir.Value:
        """Those of the first `kept_tokens` tokens, (B, key-value heads, kept, K)."""
        config = self.decoder.config
        split: Attributes = {"key_split": [0, 0, config.num_key_value_heads, config.head_width]}
        return self.graph.call("cache_rows", f"layers.{number}.kept", rows, self.kept, attributes=split)

    def _past(self, number: int, cache: ir.Value) -> ir.Value:
        return self.graph.call("layer_cache", f"layers.{number}.past", cache, attributes={"layer": number})


class Whole:
    """Texts from their first token on, padded on the right, with nothing to be found out from shapes: for GPUs.

    The graph's inputs beside input_ids are `LAST_PLACES`, `TOKENS` and `POOLED_ROWS`, from the host. ONNX
    Runtime's fused attention wants a query for each key. So the last layer computes attention for all tokens, and goes
    on with the last tokens alone after it. Padding needs no mask: tokens look back only.
    """

    last_query_alone = False

    def __init__(self, decoder: Parts, _: ir.Value) -> None:
        self.decoder, self.graph, config = decoder, decoder.graph, decoder.config
        graph = self.graph
        none = np.zeros((config.num_key_value_heads, 0, config.head_width), dtype=np.float32)
        self.no_past = graph.weight(ir.tensor(none, name="positions.no_past"))
        self.first = graph.weight(ir.tensor(np.zeros(1, dtype=np.int64), name="positions.first"))
        self.last_places = graph.input(LAST_PLACES, ["B"], ir.DataType.INT32)
        self.tokens = graph.input(TOKENS, [], ir.DataType.INT32)
        self.rows = graph.input(POOLED_ROWS, ["B"])

    def rotate(self, module: str, x: ir.Value, heads: int, *, last: bool = False) -> ir.Value:  # noqa: ARG002
        return self.decoder.rotate(module, x, heads, self.first)

    def attend(self, number: int, query: ir.Value, key: ir.Value, value: ir.Value, *, last: bool) -> ir.Value:  # noqa: ARG002
        inputs = (query, key, value, self.no_past, self.no_past, None, self.last_places, self.tokens)
        return self.decoder.attend("causal", number, inputs)

    def last_rows(self, states: ir.Value, width: int) -> ir.Value:
        return self.graph.call("flat_rows", "pooling", states, self.rows, attributes={"flat": [-1, width]})

    def outputs(self) -> Outputs:
        return {}
