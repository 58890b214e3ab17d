#include "op.h"

namespace bge::BGE_ISA {

namespace {

template <bool GELU>
void rows_of(const float* sums, const float* steps, const float* bias, int64_t rows, int64_t width, float* y) {
  for (int64_t row = 0; row < rows; ++row, sums += width, y += width) {
    const auto one = [&](Floats sum, Floats shift) {
      const Floats value = sum * steps[row] + shift;
      return GELU ? gelu(value) : value;
    };
    int64_t place = 0;
    for (; place + WIDTH <= width; place += WIDTH) store(y + place, one(load(sums + place), load(bias + place)));
    if (place == width) continue;
    float tail[2][WIDTH] = {};
    std::memcpy(tail[0], sums + place, (width - place) * sizeof(float));
    std::memcpy(tail[1], bias + place, (width - place) * sizeof(float));
    store(tail[0], one(load(tail[0]), load(tail[1])));
    std::memcpy(y + place, tail[0], (width - place) * sizeof(float));
  }
}

}  // namespace

void dequantize(const float* sums, const float* steps, const float* bias, int64_t rows, int64_t width, bool gelu,
                float* y) {
  (gelu ? rows_of<true> : rows_of<false>)(sums, steps, bias, rows, width, y);
}

}  // namespace bge::BGE_ISA
