// Vectors of the width that the instruction set has, in GCC's and Clang's extension: no intrinsics but where a product
// of bytes needs them. Sums run in sixteen lanes whatever the width, and nothing is contracted to fused
// multiply-adds (CMakeLists.txt), so that every instruction set gives the same bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace bge {

// One number per instruction set that a file is compiled for; see dispatch.h.
#if defined(__AVX512VNNI__)
#define BGE_ISA avx512_vnni
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
#define BGE_ISA avx2
constexpr int WIDTH = 8;
#else
#define BGE_ISA baseline
constexpr int WIDTH = 4;
#endif

namespace BGE_ISA {

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint8_t Bytes __attribute__((vector_size(WIDTH)));

inline Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline Floats size_of(Floats values) { return (Floats)((Ints)values & 0x7fffffff); }

inline float largest_of(Floats values) {
  float largest = values[0];
  for (int lane = 1; lane < WIDTH; ++lane) largest = values[lane] > largest ? values[lane] : largest;
  return largest;
}

// Sixteen running sums, added up in one order on every instruction set.
struct Sum {
  static constexpr int LANES = 16;
  Floats parts[LANES / WIDTH] = {};

  // Adds up to sixteen values from `from` on; those past `count` count as zero.
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
