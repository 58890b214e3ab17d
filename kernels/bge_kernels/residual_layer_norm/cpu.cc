#include "op.h"

#include <cmath>

#include "../vectors.h"

namespace bge::BGE_ISA {

namespace {

constexpr int LANES = Sum::LANES;

// The sum over a row of `of(value)`, of the last values in as many lanes as there are.
template <typename Of>
float sum_over(const float* row, int64_t width, Of of) {
  Sum sum;
  float lanes[LANES];
  int64_t place = 0;
  for (; place + LANES <= width; place += LANES) {
    for (int lane = 0; lane < LANES; lane += WIDTH) store(lanes + lane, of(load(row + place + lane)));
    sum.add(lanes);
  }
  if (place < width) {
    float padded[LANES] = {};
    std::memcpy(padded, row + place, (width - place) * sizeof(float));
    for (int lane = 0; lane < LANES; lane += WIDTH) store(lanes + lane, of(load(padded + lane)));
    for (int64_t lane = width - place; lane < LANES; ++lane) lanes[lane] = 0;
    sum.add(lanes);
  }
  return sum.total();
}

}  // namespace

void residual_layer_norm(const ResidualLayerNorm& op, const float* x, const float* residual, const float* scale,
                         const float* bias, int64_t rows, float* y) {
  const int64_t width = op.width;
  const float count = static_cast<float>(width);
  for (int64_t row = 0; row < rows; ++row, x += width, residual += width, y += width) {
    for (int64_t place = 0; place < width; ++place) y[place] = x[place] + residual[place];
    const float mean = sum_over(y, width, [](Floats value) { return value; }) / count;
    const auto squared = [mean](Floats value) { return (value - mean) * (value - mean); };
    const float inverse = 1.0f / std::sqrt(sum_over(y, width, squared) / count + op.epsilon);
    for (int64_t place = 0; place < width; ++place)
      y[place] = (y[place] - mean) * inverse * scale[place] + bias[place];
  }
}

}  // namespace bge::BGE_ISA
