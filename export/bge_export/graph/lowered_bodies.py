"""Bodies of the operations that lowering puts in the place of others, with ONNX Runtime's operators; see `bodies`."""

BODIES = """
nbits_project <K, N, bits, block_size, accuracy_level> (x, packed, scales) => (y) {
  rows = Flatten <axis = -1> (x)
  count = Shape <start = 0, end = 1> (rows)
  zero = Constant <value_ints = [0]> ()
  two = Constant <value_ints = [2]> ()
  odd = Mod(count, two)
  first = Slice(rows, zero, odd, zero)
  even_rows = Concat <axis = 0> (rows, first)
  products = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = @bits, block_size: int = @block_size,
    accuracy_level: int = @accuracy_level> (even_rows, packed, scales)
  own = Slice(products, zero, count, zero)
  batch = Shape <start = 0, end = -1> (x)
  rest = Constant <value_ints = [-1]> ()
  shape = Concat <axis = 0> (batch, rest)
  y = Reshape(own, shape)
}
rotate_blocks (x, matrix) => (y) {
  size = Shape <start = 0, end = 1> (matrix)
  rest = Constant <value_ints = [-1]> ()
  blocks_shape = Concat <axis = 0> (rest, size)
  blocks = Reshape(x, blocks_shape)
  rotated = MatMul(blocks, matrix)
  shape = Shape(x)
  y = Reshape(rotated, shape)
}
int8_rows <levels, zero> (x) => (bytes, scale) {
  last = Constant <value_ints = [-1]> ()
  highest = ReduceMax <keepdims = 1> (x, last)
  lowest = ReduceMin <keepdims = 1> (x, last)
  below = Neg(lowest)
  largest = Max(highest, below)
  whole = Constant <value_int: int = @levels> ()
  count = CastLike(whole, x)
  step = Div(largest, count)
  tiny = Constant <value_float = 1e-30> ()
  scale = Max(step, tiny)
  steps = Reshape(scale, last)
  middle = Constant <value_int: int = @zero> ()
  byte = Cast <to = 2> (middle)
  length = Shape(steps)
  zeros = Expand(byte, length)
  rows = Flatten <axis = -1> (x)
  flat = QuantizeLinear <axis = 0> (rows, steps, zeros)
  shape = Shape(x)
  bytes = Reshape(flat, shape)
}
int8_linear (bytes, scale, weight, weight_scales, zero, bias) => (y) {
  one = Constant <value_float = 1.0> ()
  product = com.microsoft.MatMulIntegerToFloat(bytes, weight, one, weight_scales, zero)
  scaled = Mul(product, scale)
  y = Add(scaled, bias)
}
lookup_in_float (input_ids, table) => (hidden) {
  rows = Gather(table, input_ids)
  hidden = Cast <to = 1> (rows)
}
project_vector_in_float (x, weight) => (y) {
  matrix = Cast <to = 1> (weight)
  y = MatMul(x, matrix)
}
project_vector_with_bias_in_float (x, weight, bias) => (y) {
  matrix = Cast <to = 1> (weight)
  addend = Cast <to = 1> (bias)
  product = MatMul(x, matrix)
  y = Add(product, addend)
}
project_in <to> (x, weight) => (y) {
  rows = Cast <to: int = @to> (x)
  y = com.microsoft.FusedMatMul <transB = 1> (rows, weight)
}
add_bias_in <to> (x, bias) => (y) {
  addend = Cast <to: int = @to> (bias)
  y = Add(x, addend)
}
join_heads_in <to> (heads) => (x) {
  rows = Cast <to: int = @to> (heads)
  joined = Constant <value_ints = [0, 0, -1]> ()
  x = Reshape(rows, joined)
}
rms_norm_in_float <epsilon> (x, scale) => (y) {
  rows = Cast <to = 1> (x)
  y = SimplifiedLayerNormalization <axis = -1, epsilon: float = @epsilon> (rows, scale)
}
residual_in_float (x, y) => (sum) {
  addend = Cast <to = 1> (y)
  sum = Add(x, addend)
}
gated_quick_gelu <to> (gate, up) => (y) {
  values = Cast <to = 1> (gate)
  activated = com.microsoft.QuickGelu <alpha = 1.0> (values)
  open = Cast <to: int = @to> (activated)
  y = Mul(open, up)
}
gated_fast_gelu <to> (gate, up) => (y) {
  values = Cast <to = 1> (gate)
  activated = com.microsoft.FastGelu(values)
  open = Cast <to: int = @to> (activated)
  y = Mul(open, up)
}
grouped_attention <num_heads, kv_num_heads, scale, local_window_size>
(query, key, value, last_places, tokens) => (context) {
  context, keys, values = com.microsoft.GroupQueryAttention <num_heads: int = @num_heads,
    kv_num_heads: int = @kv_num_heads, scale: float = @scale, local_window_size: int = @local_window_size>
    (query, key, value, "", "", last_places, tokens)
}
grouped_attention_softcap <num_heads, kv_num_heads, scale, local_window_size, softcap>
(query, key, value, last_places, tokens) => (context) {
  context, keys, values = com.microsoft.GroupQueryAttention <num_heads: int = @num_heads,
    kv_num_heads: int = @kv_num_heads, scale: float = @scale, local_window_size: int = @local_window_size,
    softcap: float = @softcap> (query, key, value, "", "", last_places, tokens)
}
normalize_by_sum (x) => (y) {
  square = Mul(x, x)
  last = Constant <value_ints = [-1]> ()
  sum = ReduceSum <keepdims = 1> (square, last)
  norm = Sqrt(sum)
  tiny = Constant <value_float = 1e-12> ()
  safe = Max(norm, tiny)
  y = Div(x, safe)
}
"""
