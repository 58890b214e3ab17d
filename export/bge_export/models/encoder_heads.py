"""What stands on an encoder's states, whatever its layers are: pooling, modules behind it, heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import onnx_ir as ir

from bge_export.checkpoint.heads import LINEARS
from bge_export.checkpoint.heads import width_of as width_of_head
from bge_export.checkpoint.modules import Dense, Normalize, Step, width_of
from bge_export.checkpoint.weights import Array, Weights
from bge_export.graph.ops import MODEL_BODIES, Graph
from bge_export.models.encoder_inputs import EncoderInputs, Packed, Padded
from bge_export.models.graph_outputs import GraphOutputs
from bge_onnx.bundle.heads import HEADS


class EncoderSizes(Protocol):
    """What is asked here of an encoder's configuration."""

    @property
    def hidden_size(self) -> int: ...


S = TypeVar("S", bound=EncoderSizes)

Outputs = dict[str, tuple[ir.Value, list[int | str]]]
"""Outputs by name, with their axes."""


@dataclass(frozen=True, slots=True)
class HeadedEncoder(Generic[S]):
    """A graph with the inputs of an encoder and the heads on its states; a family adds the layers between."""

    graph: Graph
    config: S
    weights: Weights
    wanted: GraphOutputs
    inputs: EncoderInputs

    @classmethod
    def of(cls, name: str, config: S, weights: Weights, wanted: GraphOutputs, bodies: str = MODEL_BODIES) -> Self:
        """An empty graph with the inputs of its texts: (B, T) int64 and a mask, or packed (`wanted.packed`)."""
        graph = Graph(name, bodies)
        return cls(graph, config, weights, wanted, (Packed if wanted.packed else Padded)(graph, wanted))

    def finish(self, states: ir.Value) -> ir.Model:
        """The model, from the last layer's states. Outputs are float32."""
        inputs, wanted, width = self.inputs, self.wanted, self.config.hidden_size
        outputs: Outputs = {}
        in_float = self.to_float("pooling", states)
        pooled = inputs.pooled(in_float)
        for step in wanted.steps:
            pooled = self.step(step, pooled)
        self._add(outputs, wanted.of_pooled, pooled, ["B", width_of(width, wanted.pooling, wanted.steps)])
        if wanted.token_states:
            outputs["token_states"] = (in_float, [*inputs.state_axes, width])
            self._add_heads(outputs, states)
        return self.graph.finish(outputs)

    def step(self, step: Step, x: ir.Value) -> ir.Value:
        """A module of sentence-transformers on the pooled vector `x` (B, in), to (B, out)."""
        if isinstance(step, Normalize):
            return self.graph.call("l2_normalize", "pooling.normalize", x)
        assert isinstance(step, Dense)
        name = step.linear

        def transposed() -> Array:
            return np.ascontiguousarray(self.weights.read(f"{name}.weight").T)

        matrix = self.graph.weight(self.weights.lazy(f"{name}.weight", transposed, (step.inputs, step.outputs)))
        if step.bias:
            y = self.graph.call("project_vector_with_bias", name, x, matrix, self.weight(f"{name}.bias"))
        else:
            y = self.graph.call("project_vector", name, x, matrix)
        return y if step.activation == "identity" else self.graph.call(f"activate_{step.activation}", step.path, y)

    def _add_heads(self, outputs: Outputs, states: ir.Value) -> None:
        """Sparse weights (B, T) and ColBERT rows (B, T - 1, C) of token states, as FlagEmbedding's BGE-M3 has them; of
        packed texts (T,) and (T, C), the first tokens' rows too:
        https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/finetune/embedder/encoder_only/m3/modeling.py#L116-L171
        """
        for head in self.wanted.heads:
            if head in LINEARS:
                HEAD_PARTS[HEADS[head].gives](self, outputs, head, states)

    def weights_head(self, outputs: Outputs, head: str, states: ir.Value) -> None:
        """A weight of each token, not below 0."""
        module = LINEARS[head].module
        scores = self.to_float(module, self.linear(module, states))
        outputs[head] = (self.graph.call("sparse_weights", module, scores), self.inputs.state_axes)

    def rows_head(self, outputs: Outputs, head: str, states: ir.Value) -> None:
        """A vector of each token."""
        module = LINEARS[head].module
        rows = self.linear(module, self.inputs.before_rows(module, states))
        rows = self.inputs.masked_rows(module, self.to_float(module, rows))
        self._add(outputs, head, rows, [*self.inputs.row_axes, width_of_head(head, self.weights)])

    def _add(self, outputs: Outputs, head: str, vectors: ir.Value, shape: list[int | str]) -> None:
        """Add a head's vectors, normalised if `wanted` says so; if it wants both, the raw vectors too."""
        if self.wanted.normalize:
            outputs[head] = (self.graph.call("l2_normalize", f"{head}.normalize", vectors), shape)
            if self.wanted.raw:
                outputs[f"{head}_raw"] = (vectors, shape)
        else:
            outputs[head] = (vectors, shape)

    def to_float(self, module: str, x: ir.Value) -> ir.Value:
        """`x` in float32, where packed layers may have less."""
        return self.graph.call("to_float", module, x) if self.wanted.packed else x

    def linear(self, module: str, x: ir.Value) -> ir.Value:
        """`x` (…, in) times the weight, stored here as (in, out), plus the bias."""
        name = f"{module}.weight"

        def transposed() -> Array:
            return np.ascontiguousarray(self.weights.read(name).T)

        matrix = self.graph.weight(self.weights.lazy(name, transposed, self.weights.shapes[name][::-1]))
        return self.graph.call("linear", module, x, matrix, self.weight(f"{module}.bias"))

    def weight(self, name: str) -> ir.Value:
        """A weight as the checkpoint has it."""
        return self.graph.weight(self.weights.lazy(name, lambda: self.weights.read(name), self.weights.shapes[name]))


HEAD_PARTS: dict[str, Callable[[HeadedEncoder[Any], Outputs, str, ir.Value], None]] = {
    "weights": HeadedEncoder.weights_head,
    "rows": HeadedEncoder.rows_head,
}
"""Of the heads on token states, by what they give."""
