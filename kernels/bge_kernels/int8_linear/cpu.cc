#include "op.h"

#include <algorithm>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../dequantize_bias_gelu/op.h"
#include "../vectors.h"

namespace bge::BGE_ISA {

namespace {

// Sums of ROWS rows for COLUMNS of a panel's outputs at once. AVX2's 6 x 16 ran faster than 3 x 16, 4 x 16 and 2 x 32;
// 10 x 16 gained some percent more where two quads are added, for twice the code. Loops over registers are folds over
// constants: GCC 12 keeps arrays with a loop's index in memory. Up to MOST_ADDED quads are added up in 16 bits.
#if defined(__AVX2__)
#if defined(__AVX512VNNI__)
constexpr int ROWS = 6, COLUMNS = 64, MOST_ADDED = 1;
using Register = __m512i;

inline Register load_bytes(const int8_t* from) { return _mm512_loadu_si512(from); }
inline Register repeat(int32_t four) { return _mm512_set1_epi32(four); }
inline void store_sums(int32_t* to, Register sum) { _mm512_storeu_si512(to, sum); }
inline Register add_products(Register sum, Register bytes, Register weights) {
  return _mm512_dpbusd_epi32(sum, bytes, weights);
}
#else
using Register = __m256i;

inline Register load_bytes(const int8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Register repeat(int32_t four) { return _mm256_set1_epi32(four); }
inline void store_sums(int32_t* to, Register sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sum); }
constexpr int ROWS = 6, COLUMNS = 16;

#if defined(__AVXVNNI__)
constexpr int MOST_ADDED = 1;

inline Register add_products(Register sum, Register bytes, Register weights) {
  return _mm256_dpbusd_avx_epi32(sum, bytes, weights);
}
#else
constexpr int MOST_ADDED = 2;

inline Register widened(Register sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
inline Register add_products(Register sum, Register bytes, Register weights) {
  return _mm256_add_epi32(sum, widened(_mm256_maddubs_epi16(bytes, weights)));
}
inline Register add_products(Register sum, Register bytes, Register weights, Register more_bytes,
                             Register more_weights) {
  const Register sums = _mm256_maddubs_epi16(bytes, weights), more = _mm256_maddubs_epi16(more_bytes, more_weights);
  return _mm256_add_epi32(sum, widened(_mm256_add_epi16(sums, more)));
}
#endif
#endif

constexpr int LANES = sizeof(Register) / sizeof(int32_t), PARTS = COLUMNS / LANES;

inline Register repeat(const uint8_t* four) {
  int32_t bits;
  std::memcpy(&bits, four, sizeof bits);
  return repeat(bits);
}

// ADDED quads of one row.
template <int ADDED, size_t... Part>
inline void add_row(Register* sums, const int8_t* weight, const uint8_t* bytes, std::index_sequence<Part...>) {
  const auto columns = [weight](size_t part, int quad) {
    return load_bytes(weight + quad * PANEL * QUAD + part * sizeof(Register));
  };
  const Register same = repeat(bytes);
  if constexpr (ADDED == 1) {
    ((sums[Part] = add_products(sums[Part], same, columns(Part, 0))), ...);
  } else {
    const Register more = repeat(bytes + QUAD);
    ((sums[Part] = add_products(sums[Part], same, columns(Part, 0), more, columns(Part, 1))), ...);
  }
}

template <int ADDED, size_t... Row, size_t... Part>
inline void tile_of_rows(const uint8_t* bytes, int64_t stride, const int8_t* weight, int64_t quads, int32_t* sums,
                         std::index_sequence<Row...>, std::index_sequence<Part...> parts) {
  Register total[sizeof...(Row)][PARTS] = {};
  int64_t quad = 0;
  for (; quad + ADDED <= quads; quad += ADDED)
    (add_row<ADDED>(total[Row], weight + quad * PANEL * QUAD, bytes + Row * stride + quad * QUAD, parts), ...);
  if (ADDED > 1 && quad < quads)
    (add_row<1>(total[Row], weight + quad * PANEL * QUAD, bytes + Row * stride + quad * QUAD, parts), ...);
  const auto store_row = [&](size_t row) { (store_sums(sums + row * COLUMNS + Part * LANES, total[row][Part]), ...); };
  (store_row(Row), ...);
}

template <int COUNT, int ADDED>
void tile(const uint8_t* bytes, int64_t stride, const int8_t* weight, int64_t quads, int32_t* sums) {
  tile_of_rows<ADDED>(bytes, stride, weight, quads, sums, std::make_index_sequence<COUNT>(),
                      std::make_index_sequence<PARTS>());
}
#else
constexpr int ROWS = 2, COLUMNS = 16, MOST_ADDED = 1;

template <int COUNT, int>
void tile(const uint8_t* bytes, int64_t stride, const int8_t* weight, int64_t quads, int32_t* sums) {
  std::fill(sums, sums + COUNT * COLUMNS, 0);
  for (int64_t quad = 0; quad < quads; ++quad, weight += PANEL * QUAD)
    for (int row = 0; row < COUNT; ++row) {
      const uint8_t* four = bytes + row * stride + quad * QUAD;
      for (int column = 0; column < COLUMNS; ++column)
        for (int place = 0; place < QUAD; ++place)
          sums[row * COLUMNS + column] += four[place] * weight[column * QUAD + place];
    }
}
#endif

using Tile = void(const uint8_t*, int64_t, const int8_t*, int64_t, int32_t*);

template <int ADDED, int COUNT = ROWS>
Tile* tile_of(int64_t rows) {
  if constexpr (COUNT == 1)
    return tile<1, ADDED>;
  else
    return rows >= COUNT ? tile<COUNT, ADDED> : tile_of<ADDED, COUNT - 1>(rows);
}

// Offsets, scales, bias and GELU for a row's sums of COLUMNS outputs from `output` on.
inline void finish(const Int8Linear& op, const int32_t* sums, int64_t output, float step, float* y) {
  for (int place = 0; place < COLUMNS; place += WIDTH) {
    Ints sum, offset;
    std::memcpy(&sum, sums + place, sizeof sum);
    std::memcpy(&offset, op.offsets + output + place, sizeof offset);
    const Floats product = __builtin_convertvector(sum - offset, Floats) * load(op.scales + output + place);
    const Floats value = product * step + load(op.bias + output + place);
    store(y + place, op.gelu ? gelu(value) : value);
  }
}

// The same where only `count` of them are outputs.
void finish_last(const Int8Linear& op, const int32_t* sums, int64_t output, float step, int64_t count, float* y) {
  int32_t offsets[COLUMNS] = {};
  float scales[COLUMNS] = {}, bias[COLUMNS] = {}, values[COLUMNS];
  std::memcpy(offsets, op.offsets + output, count * sizeof(int32_t));
  std::memcpy(scales, op.scales + output, count * sizeof(float));
  std::memcpy(bias, op.bias + output, count * sizeof(float));
  finish({nullptr, offsets, scales, bias, 0, 0, op.gelu, 1}, sums, 0, step, values);
  std::memcpy(y, values, count * sizeof(float));
}

}  // namespace

void int8_linear(const Int8Linear& op, const uint8_t* bytes, const float* steps, int64_t rows, int64_t panel,
                 float* y) {
  const int64_t stride = op.quads * QUAD;
  const int8_t* columns = op.weight + panel * op.quads * PANEL * QUAD;
  int32_t sums[ROWS * COLUMNS];
  for (int64_t column = 0; column < PANEL; column += COLUMNS) {
    const int64_t output = panel * PANEL + column, count = std::min<int64_t>(COLUMNS, op.outputs - output);
    if (count <= 0) break;
    for (int64_t row = 0; row < rows; row += ROWS) {
      const int64_t left = std::min<int64_t>(ROWS, rows - row);
      const auto tile = op.added == MOST_ADDED ? tile_of<MOST_ADDED>(left) : tile_of<1>(left);
      tile(bytes + row * stride, stride, columns + column * QUAD, op.quads, sums);
      for (int64_t place = 0; place < left; ++place) {
        float* to = y + (row + place) * op.outputs + output;
        if (count == COLUMNS)
          finish(op, sums + place * COLUMNS, output, steps[row + place], to);
        else
          finish_last(op, sums + place * COLUMNS, output, steps[row + place], count, to);
      }
    }
  }
}

}  // namespace bge::BGE_ISA
