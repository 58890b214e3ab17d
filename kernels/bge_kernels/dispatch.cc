#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace bge {

#define BGE_DECLARE(name)                        \
  namespace name {                               \
  RotateQuantizeRows rotate_quantize;            \
  DequantizeRows dequantize;                     \
  ResidualLayerNormRows residual_layer_norm;     \
  Int8LinearPanel int8_linear;                   \
  constexpr Functions FUNCTIONS = {#name, rotate_quantize, dequantize, residual_layer_norm, int8_linear}; \
  }

BGE_DECLARE(baseline)
#if defined(BGE_X86)
BGE_DECLARE(avx2)
BGE_DECLARE(avx512_vnni)
#endif
#if defined(BGE_AVX_VNNI)
BGE_DECLARE(avx_vnni)
#endif

std::vector<const Functions*> supported() {
  std::vector<const Functions*> found;
#if defined(BGE_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni"))
    found.push_back(&avx512_vnni::FUNCTIONS);
#if defined(BGE_AVX_VNNI)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("avxvnni")) found.push_back(&avx_vnni::FUNCTIONS);
#endif
  if (__builtin_cpu_supports("avx2")) found.push_back(&avx2::FUNCTIONS);
#endif
  found.push_back(&baseline::FUNCTIONS);
  return found;
}

namespace {

const Functions& choose() {
  const auto found = supported();
  const char* wanted = std::getenv("BGE_KERNELS_ISA");
  if (!wanted || !*wanted) return *found.front();
  std::string names;
  for (const Functions* one : found) {
    if (std::string(one->isa) == wanted) return *one;
    names += std::string(names.empty() ? "" : ", ") + one->isa;
  }
  throw std::runtime_error("BGE_KERNELS_ISA: expected one of " + names + ", found " + wanted);
}

}  // namespace

const Functions& functions() {
  static const Functions& chosen = choose();
  return chosen;
}

}  // namespace bge
