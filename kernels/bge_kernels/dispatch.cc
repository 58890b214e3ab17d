#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace bge {

#if defined(__x86_64__)
namespace {

// What the CPU has and the system saves, by Intel's manual, volume 2, CPUID. (GCC's __builtin_cpu_supports needs a part
// of the compiler's library that cannot be linked into every platform's.)
struct X86 {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false;

  X86() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return;  // OSXSAVE
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool saves_avx = (low & 0x6) == 0x6, saves_avx512 = (low & 0xe6) == 0xe6;
    if (!saves_avx || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = b >> 5 & 1;
    const bool avx512 = (b >> 16 & 1) && (b >> 30 & 1) && (b >> 31 & 1);  // F, BW, VL
    avx512_vnni = avx2 && saves_avx512 && avx512 && (c >> 11 & 1);
    const unsigned leaves = a;
    if (leaves && __get_cpuid_count(7, 1, &a, &b, &c, &d)) avx_vnni = avx2 && (a >> 4 & 1);
  }
};

}  // namespace
#elif defined(__aarch64__) && defined(__linux__)
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
  const X86 cpu;
#endif
#if defined(BGE_HAS_AVX512_VNNI)
  if (cpu.avx512_vnni) found.push_back(&avx512_vnni::FUNCTIONS);
#endif
#if defined(BGE_HAS_AVX_VNNI)
  if (cpu.avx_vnni) found.push_back(&avx_vnni::FUNCTIONS);
#endif
#if defined(BGE_HAS_AVX2)
  if (cpu.avx2) found.push_back(&avx2::FUNCTIONS);
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
