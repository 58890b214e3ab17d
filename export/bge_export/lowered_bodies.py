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
"""
