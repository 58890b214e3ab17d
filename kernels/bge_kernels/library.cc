// The operators as ONNX Runtime sees them: domain "bge_kernels", shapes checked, rows shared among its own threads.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <algorithm>
#include <cstring>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "dispatch.h"

namespace {

using Shape = std::vector<int64_t>;

constexpr auto FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto UINT8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr auto INT8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
constexpr auto INT32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr int64_t ROWS_OF_A_TASK = 16;    // of a pass over rows; less is not worth another thread
constexpr int64_t ROWS_OF_A_PANEL = 192;  // of products: for more, the panel's weights are read again

std::string text_of(const Shape& shape) {
  std::ostringstream text;
  text << "(";
  for (size_t axis = 0; axis < shape.size(); ++axis) text << (axis ? ", " : "") << shape[axis];
  text << ")";
  return text.str();
}

[[noreturn]] void refuse(const char* op, const std::string& wanted, const std::string& found) {
  throw Ort::Exception(std::string(op) + ": expected " + wanted + ", found " + found, ORT_INVALID_ARGUMENT);
}

Shape shape_of(const Ort::ConstValue& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

// The shape (..., `axis`) of the first input.
Shape rows_shape(const Ort::KernelContext& context, const char* op, const char* named) {
  Shape shape = shape_of(context.GetInput(0));
  if (shape.empty()) refuse(op, named, text_of(shape));
  return shape;
}

// Throws where an input has another shape.
void require(const Ort::KernelContext& context, size_t place, const char* op, const char* name, const Shape& wanted) {
  const Shape found = shape_of(context.GetInput(place));
  if (found != wanted) refuse(op, std::string(name) + " " + text_of(wanted), text_of(found));
}

// (..., 1) of (..., N).
Shape one_a_row(Shape shape) {
  shape.back() = 1;
  return shape;
}

int64_t rows_of(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end() - 1, int64_t{1}, [](int64_t a, int64_t b) { return a * b; });
}

int64_t parts_of(int64_t rows, int64_t at_once) { return (rows + at_once - 1) / at_once; }

// Calls `task` with ranges of rows, on ONNX Runtime's threads. It must not throw: they are C.
template <typename Task>
void for_rows(const Ort::KernelContext& context, int64_t rows, int64_t at_once, const Task& task) {
  struct Shared {
    const Task& task;
    int64_t rows, at_once;
  } shared{task, rows, at_once};
  const auto part = [](void* data, size_t number) {
    const auto& [task, rows, at_once] = *static_cast<Shared*>(data);
    const int64_t first = static_cast<int64_t>(number) * at_once;
    task(first, std::min(at_once, rows - first));
  };
  const int64_t parts = parts_of(rows, at_once);
  if (parts == 1)
    part(&shared, 0);
  else if (parts)
    context.ParallelFor(part, parts, 0, &shared);
}

// What the operators' kernels share: errors as statuses, which name the operator.
template <typename Kernel>
struct WithStatus {
  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    try {
      static_cast<Kernel*>(this)->compute(Ort::KernelContext(raw));
      return nullptr;
    } catch (const Ort::Exception& error) {
      return Ort::Status(error.what(), error.GetOrtErrorCode()).release();
    } catch (const std::exception& error) {
      return Ort::Status(error.what(), ORT_RUNTIME_EXCEPTION).release();
    }
  }
};

template <typename Op, typename Kernel>
struct Operator : Ort::CustomOpBase<Op, Kernel, true> {
  Operator() { this->start_ver_ = this->end_ver_ = BGE_KERNELS_VERSION; }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    try {
      *kernel = new Kernel(Ort::ConstKernelInfo(info));
      return nullptr;
    } catch (const Ort::Exception& error) {
      return Ort::Status(error.what(), error.GetOrtErrorCode()).release();
    } catch (const std::exception& error) {
      return Ort::Status(error.what(), ORT_INVALID_GRAPH).release();
    }
  }
  const char* GetName() const { return Kernel::NAME; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return std::size(Op::INPUTS); }
  size_t GetOutputTypeCount() const { return std::size(Op::OUTPUTS); }
  ONNXTensorElementDataType GetInputType(size_t place) const { return Op::INPUTS[place]; }
  ONNXTensorElementDataType GetOutputType(size_t place) const { return Op::OUTPUTS[place]; }
};

struct RotateQuantizeKernel : WithStatus<RotateQuantizeKernel> {
  static constexpr const char* NAME = "RotateQuantize";
  static constexpr int64_t BLOCK = 64;
  bool rotated;
  float levels;
  int zero;

  explicit RotateQuantizeKernel(const Ort::ConstKernelInfo& info)
      : rotated(info.GetAttribute<int64_t>("rotated") != 0),
        levels(info.GetAttribute<float>("levels")),
        zero(static_cast<int>(info.GetAttribute<int64_t>("zero"))) {
    if (!(levels > 0 && zero - levels >= 0 && zero + levels <= 255))
      refuse(NAME, "levels above 0, zero - levels and zero + levels in 0 to 255",
             "zero " + std::to_string(zero) + ", levels " + std::to_string(levels));
  }

  void compute(const Ort::KernelContext& context) const {
    const Shape shape = rows_shape(context, NAME, "x (..., K)");
    if (rotated && shape.back() % BLOCK) refuse(NAME, "x (..., K) with K a multiple of 64", text_of(shape));
    const int64_t width = shape.back(), rows = rows_of(shape);
    const bge::RotateQuantize op{width, rotated, levels, zero};
    const float* x = context.GetInput(0).GetTensorData<float>();
    auto* bytes = context.GetOutput(0, shape).GetTensorMutableData<uint8_t>();
    auto* steps = context.GetOutput(1, one_a_row(shape)).GetTensorMutableData<float>();
    std::vector<float> scratch(rotated ? parts_of(rows, ROWS_OF_A_TASK) * width : 0);
    for_rows(context, rows, ROWS_OF_A_TASK, [&](int64_t first, int64_t count) {
      float* own = rotated ? scratch.data() + first / ROWS_OF_A_TASK * width : nullptr;
      bge::functions().rotate_quantize(op, x + first * width, count, own, bytes + first * width, steps + first);
    });
  }
};

struct RotateQuantize : Operator<RotateQuantize, RotateQuantizeKernel> {
  static constexpr ONNXTensorElementDataType INPUTS[] = {FLOAT}, OUTPUTS[] = {UINT8, FLOAT};
};

struct DequantizeBiasGeluKernel : WithStatus<DequantizeBiasGeluKernel> {
  static constexpr const char* NAME = "DequantizeBiasGelu";
  bool gelu;

  explicit DequantizeBiasGeluKernel(const Ort::ConstKernelInfo& info) : gelu(info.GetAttribute<int64_t>("gelu") != 0) {}

  void compute(const Ort::KernelContext& context) const {
    const Shape shape = rows_shape(context, NAME, "sums (..., N)");
    const int64_t width = shape.back();
    require(context, 1, NAME, "steps", one_a_row(shape));
    require(context, 2, NAME, "bias", {width});
    const float* sums = context.GetInput(0).GetTensorData<float>();
    const float* steps = context.GetInput(1).GetTensorData<float>();
    const float* bias = context.GetInput(2).GetTensorData<float>();
    float* y = context.GetOutput(0, shape).GetTensorMutableData<float>();
    for_rows(context, rows_of(shape), ROWS_OF_A_TASK, [&](int64_t first, int64_t count) {
      bge::functions().dequantize(sums + first * width, steps + first, bias, count, width, gelu, y + first * width);
    });
  }
};

struct DequantizeBiasGelu : Operator<DequantizeBiasGelu, DequantizeBiasGeluKernel> {
  static constexpr ONNXTensorElementDataType INPUTS[] = {FLOAT, FLOAT, FLOAT}, OUTPUTS[] = {FLOAT};
};

struct ResidualLayerNormKernel : WithStatus<ResidualLayerNormKernel> {
  static constexpr const char* NAME = "ResidualLayerNorm";
  float epsilon;

  explicit ResidualLayerNormKernel(const Ort::ConstKernelInfo& info) : epsilon(info.GetAttribute<float>("epsilon")) {}

  void compute(const Ort::KernelContext& context) const {
    const Shape shape = rows_shape(context, NAME, "x (..., D)");
    const bge::ResidualLayerNorm op{shape.back(), epsilon};
    require(context, 1, NAME, "residual", shape);
    require(context, 2, NAME, "scale", {op.width});
    require(context, 3, NAME, "bias", {op.width});
    const float* x = context.GetInput(0).GetTensorData<float>();
    const float* residual = context.GetInput(1).GetTensorData<float>();
    const float* scale = context.GetInput(2).GetTensorData<float>();
    const float* bias = context.GetInput(3).GetTensorData<float>();
    float* y = context.GetOutput(0, shape).GetTensorMutableData<float>();
    for_rows(context, rows_of(shape), ROWS_OF_A_TASK, [&](int64_t first, int64_t count) {
      const int64_t place = first * op.width;
      bge::functions().residual_layer_norm(op, x + place, residual + place, scale, bias, count, y + place);
    });
  }
};

struct ResidualLayerNorm : Operator<ResidualLayerNorm, ResidualLayerNormKernel> {
  static constexpr ONNXTensorElementDataType INPUTS[] = {FLOAT, FLOAT, FLOAT, FLOAT}, OUTPUTS[] = {FLOAT};
};

struct Int8LinearKernel : WithStatus<Int8LinearKernel> {
  static constexpr const char* NAME = "Int8Linear";
  bool gelu;
  int64_t added;

  explicit Int8LinearKernel(const Ort::ConstKernelInfo& info)
      : gelu(info.GetAttribute<int64_t>("gelu") != 0), added(info.GetAttribute<int64_t>("added")) {
    if (added != 1 && added != 2) refuse(NAME, "added 1 or 2", std::to_string(added));
  }

  void compute(const Ort::KernelContext& context) const {
    Shape shape = rows_shape(context, NAME, "bytes (..., K)");
    const int64_t inputs = shape.back(), rows = rows_of(shape), quads = parts_of(inputs, bge::QUAD);
    require(context, 1, NAME, "steps", one_a_row(shape));
    const Shape by_output = shape_of(context.GetInput(5));
    if (by_output.size() != 1) refuse(NAME, "bias (N)", text_of(by_output));
    const int64_t outputs = by_output[0], panels = parts_of(outputs, bge::PANEL);
    require(context, 2, NAME, "weight", {panels, quads, bge::PANEL, bge::QUAD});
    require(context, 3, NAME, "offsets", by_output);
    require(context, 4, NAME, "scales", by_output);
    const bge::Int8Linear op{context.GetInput(2).GetTensorData<int8_t>(),
                             context.GetInput(3).GetTensorData<int32_t>(),
                             context.GetInput(4).GetTensorData<float>(),
                             context.GetInput(5).GetTensorData<float>(),
                             quads, outputs, gelu, added};
    std::vector<uint8_t> copied;
    const uint8_t* bytes = context.GetInput(0).GetTensorData<uint8_t>();
    if (quads * bge::QUAD != inputs) {  // rows of whole quads
      copied.resize(rows * quads * bge::QUAD);
      for (int64_t row = 0; row < rows; ++row)
        std::memcpy(&copied[row * quads * bge::QUAD], bytes + row * inputs, inputs);
      bytes = copied.data();
    }
    shape.back() = outputs;
    run(context, op, bytes, rows, context.GetOutput(0, shape).GetTensorMutableData<float>());
  }

 private:
  static void run(const Ort::KernelContext& context, const bge::Int8Linear& op, const uint8_t* bytes, int64_t rows,
                  float* y) {
    const float* steps = context.GetInput(1).GetTensorData<float>();
    const int64_t chunks = parts_of(rows, ROWS_OF_A_PANEL), panels = parts_of(op.outputs, bge::PANEL);
    for_rows(context, chunks * panels, 1, [&](int64_t task, int64_t) {
      const int64_t panel = task / chunks, first = task % chunks * ROWS_OF_A_PANEL;
      bge::functions().int8_linear(op, bytes + first * op.quads * bge::QUAD, steps + first,
                                   std::min(ROWS_OF_A_PANEL, rows - first), panel, y + first * op.outputs);
    });
  }
};

struct Int8Linear : Operator<Int8Linear, Int8LinearKernel> {
  static constexpr ONNXTensorElementDataType INPUTS[] = {UINT8, FLOAT, INT8, INT32, FLOAT, FLOAT}, OUTPUTS[] = {FLOAT};
};

// Made once, as sessions keep pointers to it, and never freed: ONNX Runtime may unload this library before the process
// ends, and what is to be run at the end must not lie in it then.
const Ort::CustomOpDomain& domain() {
  static const RotateQuantize rotate_quantize;
  static const DequantizeBiasGelu dequantize_bias_gelu;
  static const ResidualLayerNorm residual_layer_norm;
  static const Int8Linear int8_linear;
  static const Ort::CustomOpDomain* const domain = [] {
    auto* made = new Ort::CustomOpDomain("bge_kernels");
    made->Add(&rotate_quantize);
    made->Add(&dequantize_bias_gelu);
    made->Add(&residual_layer_norm);
    made->Add(&int8_linear);
    return made;
  }();
  return *domain;
}

}  // namespace

#if defined(_WIN32)
#define BGE_EXPORT __declspec(dllexport)
#else
#define BGE_EXPORT __attribute__((visibility("default")))
#endif

// The name of the instruction set that was chosen, for people.
extern "C" BGE_EXPORT const char* BgeKernelsInstructionSet() {
  try {
    return bge::functions().isa;
  } catch (const std::exception&) {
    return "no instruction set: BGE_KERNELS_ISA names another than this CPU has";
  }
}

extern "C" BGE_EXPORT OrtStatus* ORT_API_CALL
RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (!api) {
    const std::string text = "bge_kernels: expected ONNX Runtime 1." + std::to_string(ORT_API_VERSION) +
                             " or newer, whose headers it was built with, found " + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, text.c_str());
  }
  Ort::InitApi(api);
  try {
    bge::functions();
    Ort::UnownedSessionOptions(options).Add(domain());
    return nullptr;
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}
