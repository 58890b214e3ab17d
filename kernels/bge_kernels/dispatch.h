// The functions of one instruction set, and the best that this CPU has.
#pragma once

#include <vector>

#include "dequantize_bias_gelu/op.h"
#include "int8_linear/op.h"
#include "residual_layer_norm/op.h"
#include "rotate_quantize/op.h"

namespace bge {

struct Functions {
  const char* isa;
  RotateQuantizeRows* rotate_quantize;
  DequantizeRows* dequantize;
  ResidualLayerNormRows* residual_layer_norm;
  Int8LinearPanel* int8_linear;
};

// Those that this CPU has, the best first.
std::vector<const Functions*> supported();

// The environment's BGE_KERNELS_ISA names another than the best, for tests. Throws std::runtime_error: this CPU, or
// this build, has no such one.
const Functions& functions();

}  // namespace bge
