// The sum of two rows, normalised over its width: the end of an encoder's block, in one pass.
//
// x, residual   (R, D) float32
// scale, bias   (D) float32
// y             (R, D) float32: s = x + residual; (s - mean(s)) / sqrt(variance(s) + epsilon) * scale + bias
//
// Reads 8 D bytes a row and writes 4 D; the sum stays in the first-level cache for its mean and its variance.
// Bound: memory, where ONNX's Add and LayerNormalization pass over the sum twice.
#pragma once

#include <cstdint>

namespace bge {

struct ResidualLayerNorm {
  int64_t width;
  float epsilon;
};

using ResidualLayerNormRows = void(const ResidualLayerNorm& op, const float* x, const float* residual,
                                   const float* scale, const float* bias, int64_t rows, float* y);

}  // namespace bge
