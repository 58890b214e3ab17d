"""What the operations compute: bodies of ONNX functions in standard operators. `decoder_bodies` has the decoders'.

Shapes: B texts, T tokens, D hidden width, H heads, K head width.
"""

BODIES = """
embeddings (input_ids, word, positions) => (hidden) {
  tokens = Shape <start = 1, end = 2> (input_ids)
  zero = Constant <value_ints = [0]> ()
  position = Slice(positions, zero, tokens, zero)
  hidden = Add(word, position)
}
embeddings_past_padding <pad_token_id> (input_ids, word, positions) => (hidden) {
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
embeddings_at (word, positions, rows) => (hidden) {
  position = Gather(positions, rows)
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
packed_attention <num_heads, heads, scale> (query, key, value, starts, token_offset, cu_seqlens) => (context) {
  split = Constant <value_ints: ints = @heads> ()
  query_heads = Reshape(query, split)
  key_heads = Reshape(key, split)
  value_heads = Reshape(value, split)
  q = Transpose <perm = [1, 0, 2]> (query_heads)
  k = Transpose <perm = [1, 2, 0]> (key_heads)
  v = Transpose <perm = [1, 0, 2]> (value_heads)
  factor = Constant <value_float: float = @scale> ()
  scaled = Mul(q, factor)
  scores = MatMul(scaled, k)
  first = Constant <value_ints = [0]> ()
  second = Constant <value_ints = [1]> ()
  row = Unsqueeze(starts, second)
  column = Unsqueeze(starts, first)
  same = Equal(row, column)
  lowest = Constant <value_float = -3.4028234663852886e38> ()
  zero = Constant <value_float = 0.0> ()
  bias = Where(same, zero, lowest)
  masked = Add(scores, bias)
  weights = Softmax <axis = -1> (masked)
  mixed = MatMul(weights, v)
  by_token = Transpose <perm = [1, 0, 2]> (mixed)
  joined = Constant <value_ints = [0, -1]> ()
  context = Reshape(by_token, joined)
}
rows (hidden, places) => (chosen) {
  chosen = Gather <axis = 0> (hidden, places)
}
packed_mean (hidden, starts, cu_seqlens) => (average) {
  start = Constant <value_ints = [0]> ()
  end = Constant <value_ints = [-1]> ()
  one = Constant <value_ints = [1]> ()
  text_starts = Slice(cu_seqlens, start, end, start)
  first = Cast <to = 7> (text_starts)
  column = Unsqueeze(first, one)
  row = Unsqueeze(starts, start)
  inside = Equal(column, row)
  weights = Cast <to = 1> (inside)
  total = MatMul(weights, hidden)
  count = ReduceSum <keepdims = 1> (weights, one)
  average = Div(total, count)
}
to_float (x) => (y) {
  y = Cast <to = 1> (x)
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
max (hidden, attention_mask) => (highest) {
  last = Constant <value_ints = [-1]> ()
  column = Unsqueeze(attention_mask, last)
  zero = Constant <value_int = 0> ()
  padding = Equal(column, zero)
  lowest = Constant <value_float = -3.4028234663852886e38> ()
  kept = Where(padding, lowest, hidden)
  axis = Constant <value_ints = [1]> ()
  highest = ReduceMax <keepdims = 0> (kept, axis)
}
max_of_all (hidden) => (highest) {
  axis = Constant <value_ints = [1]> ()
  highest = ReduceMax <keepdims = 0> (hidden, axis)
}
mean_sqrt_len (hidden, attention_mask) => (average) {
  axis = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [-1]> ()
  weights = CastLike(attention_mask, hidden)
  column = Unsqueeze(weights, last)
  kept = Mul(hidden, column)
  total = ReduceSum <keepdims = 0> (kept, axis)
  count = ReduceSum <keepdims = 1> (weights, axis)
  root = Sqrt(count)
  average = Div(total, root)
}
mean_sqrt_len_of_all (hidden) => (average) {
  axis = Constant <value_ints = [1]> ()
  tokens = Shape <start = 1, end = 2> (hidden)
  row = Concat <axis = 0> (axis, tokens)
  one = Constant <value_float = 1.0> ()
  ones = Expand(one, row)
  total = MatMul(ones, hidden)
  sum = Squeeze(total, axis)
  count = CastLike(tokens, one)
  root = Sqrt(count)
  average = Div(sum, root)
}
weighted_mean (hidden, attention_mask) => (average) {
  axis = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [-1]> ()
  weights = CastLike(attention_mask, hidden)
  second = Constant <value_int = 1> ()
  places = CumSum(weights, second)
  weighted = Mul(places, weights)
  column = Unsqueeze(weighted, last)
  kept = Mul(hidden, column)
  total = ReduceSum <keepdims = 0> (kept, axis)
  sum = ReduceSum <keepdims = 1> (weighted, axis)
  average = Div(total, sum)
}
weighted_mean_of_all (hidden) => (average) {
  axis = Constant <value_ints = [1]> ()
  tokens = Shape <start = 1, end = 2> (hidden)
  row = Concat <axis = 0> (axis, tokens)
  one = Constant <value_float = 1.0> ()
  ones = Expand(one, row)
  second = Constant <value_int = 1> ()
  places = CumSum(ones, second)
  total = MatMul(places, hidden)
  sum = Squeeze(total, axis)
  weight = ReduceSum <keepdims = 0> (places, axis)
  average = Div(sum, weight)
}
project_vector (x, weight) => (y) {
  y = MatMul(x, weight)
}
project_vector_with_bias (x, weight, bias) => (y) {
  product = MatMul(x, weight)
  y = Add(product, bias)
}
activate_tanh (x) => (y) {
  y = Tanh(x)
}
activate_relu (x) => (y) {
  y = Relu(x)
}
activate_gelu (x) => (y) {
  y = Gelu <approximate = "none"> (x)
}
activate_sigmoid (x) => (y) {
  y = Sigmoid(x)
}
activate_silu (x) => (y) {
  open = Sigmoid(x)
  y = Mul(x, open)
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
