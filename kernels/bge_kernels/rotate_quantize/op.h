// Rows rotated by a Hadamard matrix in blocks of 64 and rounded to bytes, in one pass.
//
// x       (R, K) float32; K a multiple of 64 where rows are rotated
// bytes   (R, K) uint8, round(y * (levels / m)) + zero, ties to even; y is the rotated row
// steps   (R) float32, m / levels, with m = max(|y|, 1e-30) over the row
//
// Reads 4 K bytes a row and writes K; a row stays in the first-level cache between its maximum and its rounding.
// Bound: additions of the transform, 6 K a row, and one pass over memory.
#pragma once

#include <cstdint>

namespace bge {

struct RotateQuantize {
  int64_t width;
  bool rotated;
  float levels;
  int zero;
};

// `scratch` has room for a rotated row; nothing where rows are not rotated.
using RotateQuantizeRows = void(const RotateQuantize& op, const float* x, int64_t rows, float* scratch, uint8_t* bytes,
                                float* steps);

}  // namespace bge
