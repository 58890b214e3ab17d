// Vectors of the width that the instruction set has, in GCC's and Clang's extension: no intrinsics but where a product
// of bytes needs them. Sums run in sixteen lanes whatever the width, and nothing is contracted to fused
// multiply-adds (build.py), so that every instruction set gives the same bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace bge {

// A file is compiled once for each instruction set, into a namespace of its own: build.py names it.
namespace BGE_ISA {

#if defined(__AVX512VNNI__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint8_t Bytes __attribute__((vector_size(WIDTH)));

inline Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

// NaN where either is: a row with one must not give a vector.
inline Floats larger(Floats a, Floats b) { return ((a > b) | (a != a)) ? a : b; }
inline float larger(float a, float b) { return a > b || a != a ? a : b; }

inline Floats size_of(Floats values) { return (Floats)((Ints)values & 0x7fffffff); }

inline float largest_of(Floats values) {
  float largest = values[0];
  for (int lane = 1; lane < WIDTH; ++lane) largest = larger(values[lane], largest);
  return largest;
}

// Sixteen running sums, added up in one order on every instruction set.
struct Sum {
  static constexpr int LANES = 16;
  Floats parts[LANES / WIDTH] = {};

  void add(const float* lanes) {
    for (int part = 0; part < LANES / WIDTH; ++part) parts[part] += load(lanes + part * WIDTH);
  }

  float total() const {
    float lanes[LANES];
    std::memcpy(lanes, parts, sizeof lanes);
    for (int half = LANES / 2; half; half /= 2)
      for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
  }
};

}  // namespace BGE_ISA
}  // namespace bge
