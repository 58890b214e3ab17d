"""Bodies of the operations that decoders are made of; see `bodies`."""

from __future__ import annotations

BODIES = """
lookup (input_ids, table) => (hidden) {
  hidden = Gather(table, input_ids)
}
project (x, weight) => (y) {
  transposed = Transpose <perm = [1, 0]> (weight)
  y = MatMul(x, transposed)
}
add_bias (x, bias) => (y) {
  y = Add(x, bias)
}
split_heads <by_head> (x) => (heads) {
  split = Constant <value_ints: ints = @by_head> ()
  heads = Reshape(x, split)
}
join_heads (heads) => (x) {
  joined = Constant <value_ints = [0, 0, -1]> ()
  x = Reshape(heads, joined)
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
flat_rows <flat> (hidden, rows) => (row) {
  shape = Constant <value_ints: ints = @flat> ()
  all_rows = Reshape(hidden, shape)
  own_rows = Gather(all_rows, rows)
  axis = Constant <value_ints = [1]> ()
  row = Unsqueeze(own_rows, axis)
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


def attention_bodies() -> str:
    """Of all queries or of the last, with a soft cap on scores or without."""
    return "".join(
        ATTENTION.format(name=f"{kind}_attention{suffix}", attribute=attribute, softcap=softcap)
        for kind in ("causal", "last")
        for suffix, attribute, softcap in (("", "", "capped = Identity(scores)"), ("_softcap", ", softcap", SOFTCAP))
    )
