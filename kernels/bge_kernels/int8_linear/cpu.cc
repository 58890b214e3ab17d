#include "op.h"

#include <algorithm>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
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
#elif defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int ROWS = 8, COLUMNS = 8, MOST_ADDED = 1;

// usmmla multiplies two rows by two outputs, eight inputs of each.
using Outputs = int8x16_t[COLUMNS / 2];

// Two quads of COLUMNS outputs, two outputs a register; the second may be missing.
template <bool BOTH>
inline void load_outputs(const int8_t* weight, Outputs& outputs) {
  for (int part = 0; part < COLUMNS / 4; ++part) {
    const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(weight + part * 16));
    const int32x4_t second = BOTH ? vreinterpretq_s32_s8(vld1q_s8(weight + PANEL * QUAD + part * 16)) : vdupq_n_s32(0);
    outputs[2 * part] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
    outputs[2 * part + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
  }
}

inline void add_products(int32x4_t* sums, uint8x16_t rows, const Outputs& outputs) {
  for (int part = 0; part < COLUMNS / 2; ++part) sums[part] = vusmmlaq_s32(sums[part], rows, outputs[part]);
}

inline uint64x2_t sixteen(const uint8_t* from) { return vreinterpretq_u64_u8(vld1q_u8(from)); }

// Four bytes of a row, and zeros.
inline uint8x8_t four(const uint8_t* from) {
  uint32_t bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return vcreate_u8(bytes);
}

template <int COUNT, size_t... Pair>
inline void tile_of_pairs(const uint8_t* bytes, int64_t stride, const int8_t* weight, int64_t quads, int32_t* sums,
                          std::index_sequence<Pair...>) {
  int32x4_t total[sizeof...(Pair)][COLUMNS / 2] = {};
  Outputs outputs;
  const uint8_t* rows[] = {bytes + 2 * Pair * stride...};
  const int64_t lower[] = {2 * Pair + 1 < COUNT ? stride : 0 ...};  // an odd last row is its own neighbour
  int64_t quad = 0;
  for (; quad + 4 <= quads; quad += 4) {
    const uint64x2_t upper[] = {sixteen(rows[Pair] + quad * QUAD)...};
    const uint64x2_t under[] = {sixteen(rows[Pair] + lower[Pair] + quad * QUAD)...};
    const int8_t* from = weight + quad * PANEL * QUAD;
    load_outputs<true>(from, outputs);
    (add_products(total[Pair], vreinterpretq_u8_u64(vtrn1q_u64(upper[Pair], under[Pair])), outputs), ...);
    load_outputs<true>(from + 2 * PANEL * QUAD, outputs);
    (add_products(total[Pair], vreinterpretq_u8_u64(vtrn2q_u64(upper[Pair], under[Pair])), outputs), ...);
  }
  for (; quad < quads; ++quad) {
    load_outputs<false>(weight + quad * PANEL * QUAD, outputs);
    const auto both = [&](size_t pair) {
      return vcombine_u8(four(rows[pair] + quad * QUAD), four(rows[pair] + lower[pair] + quad * QUAD));
    };
    (add_products(total[Pair], both(Pair), outputs), ...);
  }
  const auto store_pair = [&](size_t pair) {
    for (int part = 0; part < COLUMNS / 2; ++part) {
      int32_t* to = sums + 2 * pair * COLUMNS + 2 * part;
      vst1_s32(to, vget_low_s32(total[pair][part]));
      if (2 * pair + 1 < COUNT) vst1_s32(to + COLUMNS, vget_high_s32(total[pair][part]));
    }
  };
  (store_pair(Pair), ...);
}

template <int COUNT, int>
void tile(const uint8_t* bytes, int64_t stride, const int8_t* weight, int64_t quads, int32_t* sums) {
  tile_of_pairs<COUNT>(bytes, stride, weight, quads, sums, std::make_index_sequence<(COUNT + 1) / 2>());
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int ROWS = 4, COLUMNS = 16, MOST_ADDED = 1, PARTS = COLUMNS / 4;

// sdot multiplies signed bytes alone, so a row's are taken as byte - 128, and `shifted_offsets` makes up for it.
#define BGE_SIGNED_BYTES

inline int8x16_t made_signed(uint8x16_t bytes) { return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x80))); }
inline int8x16_t four_quads(const uint8_t* from) { return made_signed(vld1q_u8(from)); }
inline int8x16_t repeated(const uint8_t* from) {
  uint32_t quad;
  std::memcpy(&quad, from, sizeof quad);
  return made_signed(vreinterpretq_u8_u32(vdupq_n_u32(quad)));
}
template <int LANE>
inline int32x4_t add_products(int32x4_t sum, int8x16_t outputs, int8x16_t quads) {
  return vdotq_laneq_s32(sum, outputs, quads, LANE);
}

// The quad LANE of four, of every row.
template <int LANE, size_t... Row>
inline void add_lane(int32x4_t (*total)[PARTS], const int8x16_t* rows, const int8_t* weight,
                     std::index_sequence<Row...>) {
  const auto add_part = [&](int part) {
    const int8x16_t outputs = vld1q_s8(weight + part * 16);
    ((total[Row][part] = add_products<LANE>(total[Row][part], outputs, rows[Row])), ...);
  };
  for (int part = 0; part < PARTS; ++part) add_part(part);
}

template <size_t... Row>
inline void tile_of_rows(const uint8_t* bytes, int64_t stride, const int8_t* weight, int64_t quads, int32_t* sums,
                         std::index_sequence<Row...> rows) {
  int32x4_t total[sizeof...(Row)][PARTS] = {};
  int64_t quad = 0;
  for (; quad + 4 <= quads; quad += 4) {
    const int8x16_t four[] = {four_quads(bytes + Row * stride + quad * QUAD)...};
    const int8_t* from = weight + quad * PANEL * QUAD;
    add_lane<0>(total, four, from, rows);
    add_lane<1>(total, four, from + PANEL * QUAD, rows);
    add_lane<2>(total, four, from + 2 * PANEL * QUAD, rows);
    add_lane<3>(total, four, from + 3 * PANEL * QUAD, rows);
  }
  for (; quad < quads; ++quad) {
    const int8x16_t same[] = {repeated(bytes + Row * stride + quad * QUAD)...};
    add_lane<0>(total, same, weight + quad * PANEL * QUAD, rows);
  }
  const auto store_row = [&](size_t row) {
    for (int part = 0; part < PARTS; ++part) vst1q_s32(sums + row * COLUMNS + part * 4, total[row][part]);
  };
  (store_row(Row), ...);
}

template <int COUNT, int>
void tile(const uint8_t* bytes, int64_t stride, const int8_t* weight, int64_t quads, int32_t* sums) {
  tile_of_rows(bytes, stride, weight, quads, sums, std::make_index_sequence<COUNT>());
}

// `offsets` of COLUMNS outputs less 128 times the sum of their weights: of signed bytes, which are smaller by 128.
inline void shifted_offsets(const int8_t* weight, int64_t quads, const int32_t* offsets, int64_t count,
                            int32_t* shifted) {
  int32x4_t total[PARTS] = {};
  for (int64_t quad = 0; quad < quads; ++quad)
    for (int part = 0; part < PARTS; ++part)
      total[part] = vdotq_s32(total[part], vld1q_s8(weight + quad * PANEL * QUAD + part * 16), vdupq_n_s8(1));
  int32_t sums[COLUMNS];
  for (int part = 0; part < PARTS; ++part) vst1q_s32(sums + part * 4, total[part]);
  for (int64_t place = 0; place < count; ++place) shifted[place] = offsets[place] - 128 * sums[place];
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

// Offsets, scales, bias and GELU for a row's sums of COLUMNS outputs from `output` on; `offsets` are theirs.
inline void finish(const Int8Linear& op, const int32_t* sums, const int32_t* offsets, int64_t output, float step,
                   float* y) {
  for (int place = 0; place < COLUMNS; place += WIDTH) {
    Ints sum, offset;
    std::memcpy(&sum, sums + place, sizeof sum);
    std::memcpy(&offset, offsets + place, sizeof offset);
    const Floats product = __builtin_convertvector(sum - offset, Floats) * load(op.scales + output + place);
    const Floats value = product * step + load(op.bias + output + place);
    store(y + place, op.gelu ? gelu(value) : value);
  }
}

// The same where only `count` of them are outputs.
void finish_last(const Int8Linear& op, const int32_t* sums, const int32_t* offsets, int64_t output, float step,
                 int64_t count, float* y) {
  int32_t own[COLUMNS] = {};
  float scales[COLUMNS] = {}, bias[COLUMNS] = {}, values[COLUMNS];
  std::memcpy(own, offsets, count * sizeof(int32_t));
  std::memcpy(scales, op.scales + output, count * sizeof(float));
  std::memcpy(bias, op.bias + output, count * sizeof(float));
  finish({nullptr, own, scales, bias, 0, 0, op.gelu, 1}, sums, own, 0, step, values);
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
    const int32_t* offsets = op.offsets + output;
#if defined(BGE_SIGNED_BYTES)
    int32_t shifted[COLUMNS];
    shifted_offsets(columns + column * QUAD, op.quads, offsets, count, shifted);
    offsets = shifted;
#endif
    for (int64_t row = 0; row < rows; row += ROWS) {
      const int64_t left = std::min<int64_t>(ROWS, rows - row);
      const auto tile = op.added == MOST_ADDED ? tile_of<MOST_ADDED>(left) : tile_of<1>(left);
      tile(bytes + row * stride, stride, columns + column * QUAD, op.quads, sums);
      for (int64_t place = 0; place < left; ++place) {
        float* to = y + (row + place) * op.outputs + output;
        if (count == COLUMNS)
          finish(op, sums + place * COLUMNS, offsets, output, steps[row + place], to);
        else
          finish_last(op, sums + place * COLUMNS, offsets, output, steps[row + place], count, to);
      }
    }
  }
}

}  // namespace bge::BGE_ISA
