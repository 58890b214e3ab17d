#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace bge {

#if defined(__aarch64__) && defined(__linux__)
namespace {

// Bits of the kernel's HWCAP and HWCAP2: Documentation/arch/arm64/elf_hwcaps.rst
bool arm_has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool arm_has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }

}  // namespace
#elif defined(__aarch64__) && defined(__APPLE__)
namespace {

bool has_feature(const char* name) {
  int found = 0;
  size_t size = sizeof found;
  return !sysctlbyname(name, &found, &size, nullptr, 0) && found;
}
bool arm_has_dotprod() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool arm_has_i8mm() { return has_feature("hw.optional.arm.FEAT_I8MM"); }

}  // namespace
#endif

#define BGE_DECLARE(name)                        \
  namespace name {                               \
  RotateQuantizeRows rotate_quantize;            \
  DequantizeRows dequantize;                     \
  ResidualLayerNormRows residual_layer_norm;     \
  Int8LinearPanel int8_linear;                   \
  constexpr Functions FUNCTIONS = {#name, rotate_quantize, dequantize, residual_layer_norm, int8_linear}; \
  }

BGE_DECLARE(baseline)
#if defined(BGE_HAS_AVX2)
BGE_DECLARE(avx2)
#endif
#if defined(BGE_HAS_AVX_VNNI)
BGE_DECLARE(avx_vnni)
#endif
#if defined(BGE_HAS_AVX512_VNNI)
BGE_DECLARE(avx512_vnni)
#endif
#if defined(BGE_HAS_DOTPROD)
BGE_DECLARE(dotprod)
#endif
#if defined(BGE_HAS_I8MM)
BGE_DECLARE(i8mm)
#endif

std::vector<const Functions*> supported() {
  std::vector<const Functions*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
#if defined(BGE_HAS_AVX512_VNNI)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni"))
    found.push_back(&avx512_vnni::FUNCTIONS);
#endif
#if defined(BGE_HAS_AVX_VNNI)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("avxvnni")) found.push_back(&avx_vnni::FUNCTIONS);
#endif
#if defined(BGE_HAS_AVX2)
  if (__builtin_cpu_supports("avx2")) found.push_back(&avx2::FUNCTIONS);
#endif
#if defined(BGE_HAS_I8MM)
  if (arm_has_i8mm() && arm_has_dotprod()) found.push_back(&i8mm::FUNCTIONS);
#endif
#if defined(BGE_HAS_DOTPROD)
  if (arm_has_dotprod()) found.push_back(&dotprod::FUNCTIONS);
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
