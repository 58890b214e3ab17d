// Sums of integer products to float32, plus a bias, through GELU where asked: one pass over a row.
//
// sums    (R, N) float32, products with the weights' scales already applied
// steps   (R) float32, of the rows' bytes
// bias    (N) float32
// y       (R, N) float32: v = sums * step + bias; gelu(v) = v / 2 * (1 + erf(v / sqrt 2))
//
// Reads and writes 4 N bytes a row, where ONNX's Mul, Add and Gelu pass over it three times.
// Bound: GELU's rational function; without it, memory.
//
// erf(z) = z P(z^2) / Q(z^2) with |z| up to 4, beyond which it is 1 within float32: fitted for this file by weighted
// least squares to 4001 Chebyshev points, 2.2e-8 in exact arithmetic and 4e-7 in float32.
#pragma once

#include <cstdint>

#include "../vectors.h"

namespace bge {

using DequantizeRows = void(const float* sums, const float* steps, const float* bias, int64_t rows, int64_t width,
                            bool gelu, float* y);

namespace BGE_ISA {

inline Floats erf(Floats z) {
  constexpr float P[] = {1.128378987e+00f, 1.962495148e-01f, 5.346754566e-02f,
                         4.003668670e-03f, 2.880418906e-04f, 1.974825182e-06f};
  constexpr float Q[] = {1.000000000e+00f, 5.072527528e-01f, 1.164766476e-01f,
                         1.544446684e-02f, 1.216365374e-03f, 3.748083691e-05f};
  constexpr float END = 4.0f;
  const Floats square = z * z;
  Floats p = P[5] + Floats{}, q = Q[5] + Floats{};
  for (int power = 4; power >= 0; --power) {
    p = p * square + P[power];
    q = q * square + Q[power];
  }
  const Floats found = z * p / q;
  const Floats one = 1.0f + Floats{};
  return z > END ? one : z < -END ? -one : found;
}

inline Floats gelu(Floats values) { return values * 0.5f * (1.0f + erf(values * 0.70710678118654752f)); }

}  // namespace BGE_ISA
}  // namespace bge
