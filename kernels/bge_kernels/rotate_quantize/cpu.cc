#include "op.h"

#include "../vectors.h"

namespace bge::BGE_ISA {

namespace {

constexpr int BLOCK = 64;
constexpr float TINY = 1e-30f;
constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even, in the low bits
constexpr int32_t ROUND_BITS = 0x4b400000;

// One step of the transform inside a vector: lane i and lane i ^ HALF become their sum and their difference.
template <int HALF>
inline Floats butterfly(Floats values) {
  Ints other;
  Floats sign;
  for (int lane = 0; lane < WIDTH; ++lane) {
    other[lane] = lane ^ HALF;
    sign[lane] = lane & HALF ? -1.0f : 1.0f;
  }
#if defined(__clang__)
  Floats swapped;
  for (int lane = 0; lane < WIDTH; ++lane) swapped[lane] = values[other[lane]];
#else
  const Floats swapped = __builtin_shuffle(values, other);
#endif
  return swapped + values * sign;
}

inline Floats within(Floats values) {
  values = butterfly<1>(values);
  values = butterfly<2>(values);
  if constexpr (WIDTH > 4) values = butterfly<4>(values);
  if constexpr (WIDTH > 8) values = butterfly<8>(values);
  return values;
}

// Sylvester's matrix over its root, which is its own inverse, times 64 values.
inline void rotate_block(const float* x, float* y) {
  constexpr int COUNT = BLOCK / WIDTH;
  Floats parts[COUNT];
  for (int part = 0; part < COUNT; ++part) parts[part] = within(load(x + part * WIDTH));
  for (int half = 1; half < COUNT; half *= 2)
    for (int part = 0; part < COUNT; ++part)
      if (!(part & half)) {
        const Floats sum = parts[part] + parts[part + half];
        parts[part + half] = parts[part] - parts[part + half];
        parts[part] = sum;
      }
  for (int part = 0; part < COUNT; ++part) store(y + part * WIDTH, parts[part] * 0.125f);
}

float largest_size(const float* row, int64_t width) {
  Floats largest = {};
  int64_t place = 0;
  for (; place + WIDTH <= width; place += WIDTH) largest = larger(largest, size_of(load(row + place)));
  float found = largest_of(largest);
  for (; place < width; ++place) {
    found = larger(row[place] < 0 ? -row[place] : row[place], found);
  }
  return larger(found, TINY);
}

void round_row(const float* row, int64_t width, float per_step, int zero, uint8_t* bytes) {
  int64_t place = 0;
  for (; place + WIDTH <= width; place += WIDTH) {
    const Ints rounded = (Ints)(load(row + place) * per_step + ROUND) - ROUND_BITS + zero;
    const Bytes narrow = __builtin_convertvector(rounded, Bytes);
    std::memcpy(bytes + place, &narrow, WIDTH);
  }
  for (; place < width; ++place) {
    const float shifted = row[place] * per_step + ROUND;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bytes[place] = static_cast<uint8_t>(bits - ROUND_BITS + zero);
  }
}

}  // namespace

void rotate_quantize(const RotateQuantize& op, const float* x, int64_t rows, float* scratch, uint8_t* bytes,
                     float* steps) {
  for (int64_t row = 0; row < rows; ++row, x += op.width, bytes += op.width) {
    const float* values = x;
    if (op.rotated) {
      for (int64_t block = 0; block < op.width; block += BLOCK) rotate_block(x + block, scratch + block);
      values = scratch;
    }
    const float largest = largest_size(values, op.width);
    steps[row] = largest / op.levels;
    round_row(values, op.width, op.levels / largest, op.zero, bytes);
  }
}

}  // namespace bge::BGE_ISA
