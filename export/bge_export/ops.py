"""The operations models are made of. Each call is one node whose body is an ONNX function of standard operators.

A model file calls these; lowering swaps a call for a fused operator of the target or inlines its body. The bodies are
the reference: any ONNX Runtime runs them as they are. Shapes: B texts, T tokens, D hidden width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx.parser
import onnx_ir as ir

DOMAIN = "bge"
OPSET = 21
MODULE = "bge.module"
"""Metadata key of every node: the checkpoint's module that it computes."""

Attributes = Mapping[str, float | Sequence[int]]

BODIES = """
embeddings (input_ids, words, positions) => (hidden) {
  word = Gather(words, input_ids)
  tokens = Shape <start = 1, end = 2> (input_ids)
  zero = Constant <value_ints = [0]> ()
  position = Slice(positions, zero, tokens, zero)
  hidden = Add(word, position)
}
embeddings_past_padding <pad_token_id> (input_ids, words, positions) => (hidden) {
  word = Gather(words, input_ids)
  pad = Constant <value_int: int = @pad_token_id> ()
  is_pad = Equal(input_ids, pad)
  is_token = Not(is_pad)
  token = CastLike(is_token, pad)
  axis = Constant <value_int = 1> ()
  count = CumSum(token, axis)
  counted = Mul(count, token)
  row = Add(counted, pad)
  position = Gather(positions, row)
  hidden = Add(word, position)
}
linear (x, weight, bias) => (y) {
  product = MatMul(x, weight)
  y = Add(product, bias)
}
gelu (x) => (y) {
  y = Gelu <approximate = "none"> (x)
}
residual (x, y) => (sum) {
  sum = Add(x, y)
}
layer_norm <epsilon> (x, scale, bias) => (y) {
  y = LayerNormalization <axis = -1, epsilon: float = @epsilon> (x, scale, bias)
}
attention_bias (attention_mask) => (bias) {
  axes = Constant <value_ints = [1, 2]> ()
  mask = Unsqueeze(attention_mask, axes)
  padding = Constant <value_int = 0> ()
  hidden = Equal(mask, padding)
  lowest = Constant <value_float = -3.4028234663852886e38> ()
  zero = Constant <value_float = 0.0> ()
  bias = Where(hidden, lowest, zero)
}
attention <num_heads, heads, scale> (query, key, value, bias) => (context) {
  split = Constant <value_ints: ints = @heads> ()
  query_heads = Reshape(query, split)
  key_heads = Reshape(key, split)
  value_heads = Reshape(value, split)
  q = Transpose <perm = [0, 2, 1, 3]> (query_heads)
  k = Transpose <perm = [0, 2, 3, 1]> (key_heads)
  v = Transpose <perm = [0, 2, 1, 3]> (value_heads)
  factor = Constant <value_float: float = @scale> ()
  scaled = Mul(q, factor)
  scores = MatMul(scaled, k)
  masked = Add(scores, bias)
  weights = Softmax <axis = -1> (masked)
  mixed = MatMul(weights, v)
  by_token = Transpose <perm = [0, 2, 1, 3]> (mixed)
  joined = Constant <value_ints = [0, 0, -1]> ()
  context = Reshape(by_token, joined)
}
leading_tokens (hidden, count) => (tokens) {
  start = Constant <value_ints = [0]> ()
  axis = Constant <value_ints = [1]> ()
  tokens = Slice(hidden, start, count, axis)
}
first_token (hidden) => (token) {
  start = Constant <value_ints = [0]> ()
  end = Constant <value_ints = [1]> ()
  axis = Constant <value_ints = [1]> ()
  token = Slice(hidden, start, end, axis)
}
last_token (hidden, attention_mask) => (token) {
  axis = Constant <value_ints = [1]> ()
  length = ReduceSum <keepdims = 1> (attention_mask, axis)
  index = Sub(length, axis)
  token = GatherND <batch_dims = 1> (hidden, index)
}
mean (hidden, attention_mask) => (average) {
  axis = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [-1]> ()
  weights = CastLike(attention_mask, hidden)
  column = Unsqueeze(weights, last)
  kept = Mul(hidden, column)
  total = ReduceSum <keepdims = 0> (kept, axis)
  count = ReduceSum <keepdims = 1> (weights, axis)
  average = Div(total, count)
}
mean_of_all (hidden) => (average) {
  axis = Constant <value_ints = [1]> ()
  tokens = Shape <start = 1, end = 2> (hidden)
  row = Concat <axis = 0> (axis, tokens)
  one = Constant <value_float = 1.0> ()
  ones = Expand(one, row)
  total = MatMul(ones, hidden)
  sum = Squeeze(total, axis)
  count = CastLike(tokens, one)
  average = Div(sum, count)
}
last_of_all (hidden) => (token) {
  last = Constant <value_int = -1> ()
  token = Gather <axis = 1> (hidden, last)
}
drop_token_axis (token) => (vector) {
  axis = Constant <value_ints = [1]> ()
  vector = Squeeze(token, axis)
}
sparse_weights (scores) => (weights) {
  kept = Relu(scores)
  last = Constant <value_ints = [-1]> ()
  weights = Squeeze(kept, last)
}
without_first (hidden) => (rows) {
  start = Constant <value_ints = [1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  axis = Constant <value_ints = [1]> ()
  rows = Slice(hidden, start, end, axis)
}
mask_rows (rows, attention_mask) => (kept) {
  start = Constant <value_ints = [1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  last = Constant <value_ints = [-1]> ()
  mask = Slice(attention_mask, start, end, start)
  column = Unsqueeze(mask, last)
  weights = CastLike(column, rows)
  kept = Mul(rows, weights)
}
l2_normalize (x) => (y) {
  axis = Constant <value_ints = [-1]> ()
  tiny = Constant <value_float = 1e-12> ()
  norm = ReduceL2 <keepdims = 1> (x, axis)
  safe = Max(norm, tiny)
  y = Div(x, safe)
}
"""


def functions() -> list[ir.Function]:
    """All operations as ONNX functions of domain `bge`."""
    header = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>\n'
    texts = [body + "}" for body in BODIES.split("\n}")[:-1]]
    return [ir.serde.deserialize_function(onnx.parser.parse_function(header + text)) for text in texts]


class Graph:
    """A graph under construction: inputs, weights and calls, in the order they are added."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[ir.Value] = []
        self.weights: dict[str, ir.Value] = {}
        self.tape = ir.tape.Tape()

    def input(self, name: str, shape: Sequence[int | str]) -> ir.Value:
        """An int64 input of the model."""
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def weight(self, tensor: ir.TensorProtocol) -> ir.Value:
        """A weight, under its tensor's name; the same value each time."""
        assert tensor.name
        if tensor.name not in self.weights:
            self.weights[tensor.name] = self.tape.initializer(tensor)
        return self.weights[tensor.name]

    def call(self, op: str, module: str, *inputs: ir.Value, attributes: Attributes | None = None) -> ir.Value:
        """The result of operation `op`, computed for the checkpoint's `module`."""
        named = {MODULE: module}
        return self.tape.op(op, inputs, attributes, domain=DOMAIN, name=module, metadata_props=named)

    def finish(self, outputs: Mapping[str, tuple[ir.Value, Sequence[int | str]]]) -> ir.Model:
        """The model; `outputs` gives each float32 output's name its value and shape."""
        for name, (value, shape) in outputs.items():
            value.name = name
            value.type = ir.TensorType(ir.DataType.FLOAT)
            value.shape = ir.Shape(shape)
        graph = ir.Graph(
            self.inputs,
            [value for value, _ in outputs.values()],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": OPSET, DOMAIN: 1},
            name=self.name,
        )
        return ir.Model(graph, ir_version=10, functions=functions(), producer_name="bge-onnx")
