// A linear layer on bytes: products, scales, bias, and GELU where asked, without a pass over memory between them.
//
// bytes    (R, K) uint8, and the step of each row, (R) float32: rotate_quantize's
// weight   (N / 64, K / 4, 64, 4) int8: panels of 64 outputs, of each four inputs a quad, zero past N and K
// offsets  (N) int32, what the zero of the bytes adds to each output: zero * sum_k weight
// scales   (N) float32 of the outputs
// bias     (N) float32
// y        (R, N) float32: v = (sum_k bytes * weight - offset) * scale * step + bias, and gelu(v) where asked
//
// The weight is stored as the products read it, so that it stays in the file's mapped pages, which all sessions and
// processes share. A task computes a panel for some rows: the panel, 64 K bytes, stays in the second-level cache while
// tiles of rows pass it, each tile's sums stay in registers. Reads K N bytes of weights once for 192 rows.
// Bound: for many rows the byte products (vpdpbusd of AVX512-VNNI and AVX-VNNI; vpmaddubsw and vpmaddwd of AVX2); for few, reading
// the weights.
//
// vpmaddubsw adds two products in 16 bits. 219 * 149 = 32631 < 2^15: bge_export.lowering.int8 keeps bytes below 220, and two
// neighbouring weights of one sign below 150 together, so no sum saturates and every path gives the same integers.
// Where `added` is 2, bytes are below 128 and the weights of one sign in such sums of two quads below 259 together,
// 127 * 258 = 32766: AVX2 adds the sums of two quads in 16 bits, and widens half as often.
#pragma once

#include <cstdint>

namespace bge {

constexpr int PANEL = 64;  // outputs
constexpr int QUAD = 4;    // inputs that one instruction adds up

struct Int8Linear {
  const int8_t* weight;
  const int32_t* offsets;
  const float* scales;
  const float* bias;
  int64_t quads, outputs;
  bool gelu;
  int64_t added;  // 1 or 2
};

// Panel `panel` of the outputs of `rows` rows; bytes has a stride of K rounded up to QUAD, y one of N.
using Int8LinearPanel = void(const Int8Linear& op, const uint8_t* bytes, const float* steps, int64_t rows,
                             int64_t panel, float* y);

}  // namespace bge
