// Every operator on seeded random shapes, in buffers that end where their arrays end: for AddressSanitizer and
// UndefinedBehaviorSanitizer, which a library inside Python would hide. Prints what it ran; see build.py.
#include <cstdio>
#include <memory>
#include <random>

#include "bge_kernels/dispatch.h"

namespace {

std::mt19937 generator(0);

int64_t number(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(generator); }

template <typename T>
std::unique_ptr<T[]> array(int64_t size, int64_t least, int64_t most) {
  std::unique_ptr<T[]> values(new T[size]);
  for (int64_t place = 0; place < size; ++place) values[place] = static_cast<T>(number(least, most));
  return values;
}

void run_rows(const bge::Functions& functions) {
  const int64_t rows = number(0, 20), width = number(1, 300), blocks = number(1, 12) * 64;
  const auto x = array<float>(rows * width, -1000, 1000), in_blocks = array<float>(rows * blocks, -1000, 1000);
  const auto steps = array<float>(rows, 0, 3), scratch = array<float>(blocks, 0, 0);
  const auto bytes = array<uint8_t>(rows * width, 0, 0), bytes_in_blocks = array<uint8_t>(rows * blocks, 0, 0);
  functions.rotate_quantize({width, false, 109.0f, 110}, x.get(), rows, nullptr, bytes.get(), steps.get());
  functions.rotate_quantize({blocks, true, 109.0f, 110}, in_blocks.get(), rows, scratch.get(),
                            bytes_in_blocks.get(), steps.get());
  const auto vector = array<float>(width, -3, 3), y = array<float>(rows * width, 0, 0);
  for (const bool gelu : {false, true})
    functions.dequantize(x.get(), steps.get(), vector.get(), rows, width, gelu, y.get());
  functions.residual_layer_norm({width, 1e-12f}, x.get(), y.get(), vector.get(), vector.get(), rows, y.get());
}

void run_linear(const bge::Functions& functions) {
  const int64_t rows = number(0, 20), quads = number(1, 80), outputs = number(1, 200);
  const int64_t panels = (outputs + bge::PANEL - 1) / bge::PANEL;
  const auto weight = array<int8_t>(panels * quads * bge::PANEL * bge::QUAD, -64, 64);
  const auto offsets = array<int32_t>(outputs, -100000, 100000);
  const auto scales = array<float>(outputs, 0, 3), bias = array<float>(outputs, -3, 3);
  const auto steps = array<float>(rows, 0, 3);
  const auto y = array<float>(rows * outputs, 0, 0);
  for (const int64_t added : {1, 2}) {
    const auto bytes = array<uint8_t>(rows * quads * bge::QUAD, 1, added == 1 ? 219 : 127);
    for (const bool gelu : {false, true}) {
      const bge::Int8Linear op{weight.get(), offsets.get(), scales.get(), bias.get(), quads, outputs, gelu, added};
      for (int64_t panel = 0; panel < panels; ++panel)
        functions.int8_linear(op, bytes.get(), steps.get(), rows, panel, y.get());
    }
  }
}

}  // namespace

int main() {
  constexpr int SHAPES = 300;
  for (const bge::Functions* functions : bge::supported()) {
    for (int shape = 0; shape < SHAPES; ++shape) {
      run_rows(*functions);
      run_linear(*functions);
    }
    std::printf("%s: %d shapes\n", functions->isa, SHAPES);
  }
}
