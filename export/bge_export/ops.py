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
lookup (input_ids, table) => (hidden) {
  hidden = Gather(table, input_ids)
}
project (x, weight) => (y) {
  transposed = Transpose <perm = [1, 0]> (weight)
  y = MatMul(x, transposed)
}
rms_norm <epsilon> (x, scale) => (y) {
  square = Mul(x, x)
  last = Constant <value_ints = [-1]> ()
  mean = ReduceMean <keepdims = 1> (square, last)
  tiny = Constant <value_float: float = @epsilon> ()
  safe = Add(mean, tiny)
  root = Sqrt(safe)
  inverse = Reciprocal(root)
  normed = Mul(x, inverse)
  y = Mul(normed, scale)
}
gated_silu (gate, up) => (y) {
  share = Sigmoid(gate)
  open = Mul(gate, share)
  y = Mul(open, up)
}
gated_gelu (gate, up) => (y) {
  open = Gelu <approximate = "tanh"> (gate)
  y = Mul(open, up)
}
last_row (hidden) => (row) {
  start = Constant <value_ints = [-1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  axis = Constant <value_ints = [1]> ()
  row = Slice(hidden, start, end, axis)
}
past_length (past_keys) => (count) {
  count = Shape <start = 2, end = 3> (past_keys)
}
last_position (past_keys, input_ids) => (position) {
  past = Shape <start = 2, end = 3> (past_keys)
  tokens = Shape <start = 1, end = 2> (input_ids)
  total = Add(past, tokens)
  one = Constant <value_ints = [1]> ()
  position = Sub(total, one)
}
no_past (past_keys) => (none) {
  count = Shape <start = 2, end = 3> (past_keys)
  scalar = Squeeze(count)
  zero = Constant <value_int = 0> ()
  none = Equal(scalar, zero)
}
last_indices (input_ids) => (indices) {
  tokens = Shape <start = 1, end = 2> (input_ids)
  one = Constant <value_ints = [1]> ()
  last = Sub(tokens, one)
  texts = Shape <start = 0, end = 1> (input_ids)
  repeated = Expand(last, texts)
  indices = Cast <to = 6> (repeated)
}
token_count (input_ids) => (count) {
  tokens = Shape <start = 1, end = 2> (input_ids)
  scalar = Squeeze(tokens)
  count = Cast <to = 6> (scalar)
}
rotary <num_heads, split> (x, position, cosines, sines) => (y) {
  by_head = Constant <value_ints: ints = @split> ()
  heads = Reshape(x, by_head)
  tokens = Shape <start = 1, end = 2> (x)
  end = Add(position, tokens)
  zero = Constant <value_ints = [0]> ()
  cosine_rows = Slice(cosines, position, end, zero)
  sine_rows = Slice(sines, position, end, zero)
  axis = Constant <value_ints = [1]> ()
  c = Unsqueeze(cosine_rows, axis)
  s = Unsqueeze(sine_rows, axis)
  first, second = Split <axis = -1, num_outputs = 2> (heads)
  first_c = Mul(first, c)
  second_s = Mul(second, s)
  second_c = Mul(second, c)
  first_s = Mul(first, s)
  left = Sub(first_c, second_s)
  right = Add(second_c, first_s)
  rotated = Concat <axis = -1> (left, right)
  joined = Constant <value_ints = [0, 0, -1]> ()
  y = Reshape(rotated, joined)
}
layer_cache <layer> (caches) => (cache) {
  index = Constant <value_int: int = @layer> ()
  cache = Gather <axis = 0> (caches, index)
}
cache_rows <key_split> (rows, kept) => (cache) {
  by_head = Constant <value_ints: ints = @key_split> ()
  heads = Reshape(rows, by_head)
  zero = Constant <value_ints = [0]> ()
  axis = Constant <value_ints = [1]> ()
  few = Slice(heads, zero, kept, axis)
  cache = Transpose <perm = [0, 2, 1, 3]> (few)
}
l2_normalize (x) => (y) {
  axis = Constant <value_ints = [-1]> ()
  tiny = Constant <value_float = 1e-12> ()
  norm = ReduceL2 <keepdims = 1> (x, axis)
  safe = Max(norm, tiny)
  y = Div(x, safe)
}
"""


# Causal attention of Q queries, a text's last, over P keys of a prefix and T of the text; heads share keys in groups.
# query (B, Q, heads × K), key and value (B, T, shared × K), past_key and past_value (shared, P, K). A query sees the
# last `window` tokens up to its own. The facts about lengths are for fused operators.
ATTENTION = """
{name} <num_heads, kv_num_heads, window, scale, query_split, key_split, merged, grouped, by_head{attribute}>
(query, key, value, past_key, past_value, no_past, last_indices, token_count) => (context) {{
  query_heads = Constant <value_ints: ints = @query_split> ()
  key_heads = Constant <value_ints: ints = @key_split> ()
  merge = Constant <value_ints: ints = @merged> ()
  group = Constant <value_ints: ints = @grouped> ()
  head = Constant <value_ints: ints = @by_head> ()
  rest = Constant <value_ints = [-1]> ()
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  axis = Constant <value_ints = [1]> ()
  factor = Constant <value_float: float = @scale> ()
  width = Constant <value_int: int = @window> ()
  queries = Shape <start = 1, end = 2> (query)
  tokens = Shape <start = 1, end = 2> (key)
  past = Shape <start = 1, end = 2> (past_key)
  total = Add(past, tokens)
  first = Sub(total, queries)
  split_query = Reshape(query, query_heads)
  q_grouped = Transpose <perm = [0, 2, 3, 1, 4]> (split_query)
  q_merged = Reshape(q_grouped, merge)
  q = Mul(q_merged, factor)
  split_key = Reshape(key, key_heads)
  k = Transpose <perm = [0, 2, 3, 1]> (split_key)
  split_value = Reshape(value, key_heads)
  v = Transpose <perm = [0, 2, 1, 3]> (split_value)
  past_k = Transpose <perm = [0, 2, 1]> (past_key)
  past_scores = MatMul(q, past_k)
  own_scores = MatMul(q, k)
  scores = Concat <axis = -1> (past_scores, own_scores)
  {softcap}
  by_query = Concat <axis = 0> (group, queries, rest)
  grouped_scores = Reshape(capped, by_query)
  total_count = Squeeze(total)
  first_place = Squeeze(first)
  key_places = Range(zero, total_count, one)
  query_places = Range(first_place, total_count, one)
  column = Unsqueeze(query_places, axis)
  edge = Sub(column, width)
  behind = LessOrEqual(key_places, column)
  near = Greater(key_places, edge)
  visible = And(behind, near)
  lowest = Constant <value_float = -3.4028234663852886e38> ()
  masked = Where(visible, grouped_scores, lowest)
  shares = Softmax <axis = -1> (masked)
  row_shape = Concat <axis = 0> (head, rest, total)
  rows = Reshape(shares, row_shape)
  sizes = Concat <axis = 0> (past, tokens)
  past_shares, own_shares = Split <axis = -1> (rows, sizes)
  from_past = MatMul(past_shares, past_value)
  from_own = MatMul(own_shares, v)
  mixed = Add(from_past, from_own)
  mixed_heads = Reshape(mixed, by_query)
  by_token = Transpose <perm = [0, 3, 1, 2, 4]> (mixed_heads)
  joined = Constant <value_ints = [0, 0, -1]> ()
  context = Reshape(by_token, joined)
}}
"""
SOFTCAP = """cap = Constant <value_float: float = @softcap> ()
  small = Div(scores, cap)
  bent = Tanh(small)
  capped = Mul(bent, cap)"""


def _attention_bodies() -> str:
    return "".join(
        ATTENTION.format(name=f"{kind}_attention{suffix}", attribute=attribute, softcap=softcap)
        for kind in ("causal", "last")
        for suffix, attribute, softcap in (("", "", "capped = Identity(scores)"), ("_softcap", ", softcap", SOFTCAP))
    )


def functions() -> list[ir.Function]:
    """All operations as ONNX functions of domain `bge`."""
    header = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>\n'
    texts = [body + "}" for body in (BODIES + _attention_bodies()).split("\n}")[:-1]]
    return [ir.serde.deserialize_function(onnx.parser.parse_function(header + text)) for text in texts]


class Graph:
    """A graph under construction: inputs, weights and calls, in the order they are added."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[ir.Value] = []
        self.weights: dict[str, ir.Value] = {}
        self.tape = ir.tape.Tape()

    def input(self, name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """An input of the model."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
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

    def join(self, module: str, parts: Sequence[ir.Value]) -> ir.Value:
        """The parts along their first axis."""
        return self.tape.op("Concat", parts, {"axis": 0}, name=module, metadata_props={MODULE: module})

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
