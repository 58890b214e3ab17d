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
constexpr int64_t ROWS_OF_A_TASK = 16;     // of a pass over rows; less is not worth another thread
constexpr int64_t ROWS_OF_A_PANEL = 192;   // of products: the panel's weights are read again for more

std::string text_of(const Shape& shape) {
  std::ostringstream text;
  text << "(";
  for (size_t axis = 0; axis < shape.size(); ++axis) text << (axis ? ", " : "") << shape[axis];
  text << ")";
  return text.str();
}

void expect(bool right, const char* op, const std::string& wanted, const std::string& found) {
  if (!right)
    throw Ort::Exception(std::string(op) + ": expected " + wanted + ", found " + found, ORT_INVALID_ARGUMENT);
}

Shape shape_of(const Ort::ConstValue& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

int64_t rows_of(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end() - 1, int64_t{1}, [](int64_t a, int64_t b) { return a * b; });
}

// Calls `task` with ranges of rows, on ONNX Runtime's threads.
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
  const size_t parts = (rows + at_once - 1) / at_once;
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
  const char* GetName() const { return Op::NAME; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return std::size(Op::INPUTS); }
  size_t GetOutputTypeCount() const { return std::size(Op::OUTPUTS); }
  ONNXTensorElementDataType GetInputType(size_t place) const { return Op::INPUTS[place]; }
  ONNXTensorElementDataType GetOutputType(size_t place) const { return Op::OUTPUTS[place]; }
};

struct RotateQuantizeKernel : WithStatus<RotateQuantizeKernel> {
  static constexpr const char* NAME = "RotateQuantize";
  bool rotated;
  float levels;
  int zero;

  explicit RotateQuantizeKernel(const Ort::ConstKernelInfo& info)
      : rotated(info.GetAttribute<int64_t>("rotated") != 0),
        levels(info.GetAttribute<float>("levels")),
        zero(static_cast<int>(info.GetAttribute<int64_t>("zero"))) {
    expect(levels > 0 && zero - levels >= 0 && zero + levels <= 255, NAME, "zero - levels and zero + levels in 0 to 255",
           std::to_string(zero) + " and " + std::to_string(levels));
  }

  void compute(const Ort::KernelContext& context) const {
    const auto x = context.GetInput(0);
    Shape shape = shape_of(x);
    expect(!shape.empty() && (!rotated || shape.back() % 64 == 0), NAME, "x (..., K) with K a multiple of 64",
           text_of(shape));
    const int64_t width = shape.back(), rows = rows_of(shape);
    auto bytes = context.GetOutput(0, shape);
    shape.back() = 1;
    auto steps = context.GetOutput(1, shape);
    const bge::RotateQuantize op{width, rotated, levels, zero};
    const float* from = x.GetTensorData<float>();
    auto* to = bytes.GetTensorMutableData<uint8_t>();
    auto* scale = steps.GetTensorMutableData<float>();
    for_rows(context, rows, ROWS_OF_A_TASK, [&](int64_t first, int64_t count) {
      bge::functions().rotate_quantize(op, from + first * width, count, to + first * width, scale + first);
    });
  }
};

struct RotateQuantize : Operator<RotateQuantize, RotateQuantizeKernel> {
  static constexpr const char* NAME = RotateQuantizeKernel::NAME;
  static constexpr ONNXTensorElementDataType INPUTS[] = {FLOAT}, OUTPUTS[] = {UINT8, FLOAT};
};

struct DequantizeBiasGeluKernel : WithStatus<DequantizeBiasGeluKernel> {
  static constexpr const char* NAME = "DequantizeBiasGelu";
  bool gelu;

  explicit DequantizeBiasGeluKernel(const Ort::ConstKernelInfo& info) : gelu(info.GetAttribute<int64_t>("gelu") != 0) {}

  void compute(const Ort::KernelContext& context) const {
    const auto sums = context.GetInput(0), steps = context.GetInput(1), bias = context.GetInput(2);
    const Shape shape = shape_of(sums);
    expect(!shape.empty(), NAME, "sums (..., N)", text_of(shape));
    const int64_t width = shape.back(), rows = rows_of(shape);
    Shape step_shape = shape;
    step_shape.back() = 1;
    expect(shape_of(steps) == step_shape, NAME, "steps " + text_of(step_shape), text_of(shape_of(steps)));
    expect(shape_of(bias) == Shape{width}, NAME, "bias " + text_of({width}), text_of(shape_of(bias)));
    const float *from = sums.GetTensorData<float>(), *step = steps.GetTensorData<float>();
    const float* shift = bias.GetTensorData<float>();
    float* y = context.GetOutput(0, shape).GetTensorMutableData<float>();
    for_rows(context, rows, ROWS_OF_A_TASK, [&](int64_t first, int64_t count) {
      bge::functions().dequantize(from + first * width, step + first, shift, count, width, gelu, y + first * width);
    });
  }
};

struct DequantizeBiasGelu : Operator<DequantizeBiasGelu, DequantizeBiasGeluKernel> {
  static constexpr const char* NAME = DequantizeBiasGeluKernel::NAME;
  static constexpr ONNXTensorElementDataType INPUTS[] = {FLOAT, FLOAT, FLOAT}, OUTPUTS[] = {FLOAT};
};

struct ResidualLayerNormKernel : WithStatus<ResidualLayerNormKernel> {
  static constexpr const char* NAME = "ResidualLayerNorm";
  float epsilon;

  explicit ResidualLayerNormKernel(const Ort::ConstKernelInfo& info) : epsilon(info.GetAttribute<float>("epsilon")) {}

  void compute(const Ort::KernelContext& context) const {
    const auto x = context.GetInput(0), residual = context.GetInput(1);
    const Shape shape = shape_of(x);
    expect(!shape.empty(), NAME, "x (..., D)", text_of(shape));
    expect(shape_of(residual) == shape, NAME, "residual " + text_of(shape), text_of(shape_of(residual)));
    const int64_t width = shape.back();
    for (size_t place : {2, 3}) {
      const Shape found = shape_of(context.GetInput(place));
      expect(found == Shape{width}, NAME, std::string(place == 2 ? "scale " : "bias ") + text_of({width}), text_of(found));
    }
    const float *from = x.GetTensorData<float>(), *other = residual.GetTensorData<float>();
    const float* scale = context.GetInput(2).GetTensorData<float>();
    const float* bias = context.GetInput(3).GetTensorData<float>();
    float* y = context.GetOutput(0, shape).GetTensorMutableData<float>();
    const bge::ResidualLayerNorm op{width, epsilon};
    for_rows(context, rows_of(shape), ROWS_OF_A_TASK, [&](int64_t first, int64_t count) {
      const int64_t place = first * width;
      bge::functions().residual_layer_norm(op, from + place, other + place, scale, bias, count, y + place);
    });
  }
};

struct ResidualLayerNorm : Operator<ResidualLayerNorm, ResidualLayerNormKernel> {
  static constexpr const char* NAME = ResidualLayerNormKernel::NAME;
  static constexpr ONNXTensorElementDataType INPUTS[] = {FLOAT, FLOAT, FLOAT, FLOAT}, OUTPUTS[] = {FLOAT};
};

struct Int8LinearKernel : WithStatus<Int8LinearKernel> {
  static constexpr const char* NAME = "Int8Linear";
  bool gelu;

  explicit Int8LinearKernel(const Ort::ConstKernelInfo& info) : gelu(info.GetAttribute<int64_t>("gelu") != 0) {}

  void compute(const Ort::KernelContext& context) const {
    const auto bytes = context.GetInput(0), steps = context.GetInput(1), weight = context.GetInput(2);
    Shape shape = shape_of(bytes);
    expect(!shape.empty(), NAME, "bytes (..., K)", text_of(shape));
    const int64_t inputs = shape.back(), rows = rows_of(shape), quads = (inputs + bge::QUAD - 1) / bge::QUAD;
    Shape step_shape = shape;
    step_shape.back() = 1;
    expect(shape_of(steps) == step_shape, NAME, "steps " + text_of(step_shape), text_of(shape_of(steps)));
    const Shape bias_shape = shape_of(context.GetInput(5));
    expect(bias_shape.size() == 1, NAME, "bias (N)", text_of(bias_shape));
    const int64_t outputs = bias_shape[0], panels = (outputs + bge::PANEL - 1) / bge::PANEL;
    const Shape packed{panels, quads, bge::PANEL, bge::QUAD};
    expect(shape_of(weight) == packed, NAME, "weight " + text_of(packed), text_of(shape_of(weight)));
    for (size_t place : {3, 4}) {
      const Shape found = shape_of(context.GetInput(place));
      expect(found == bias_shape, NAME, (place == 3 ? "offsets " : "scales ") + text_of(bias_shape), text_of(found));
    }
    const bge::Int8Linear op{weight.GetTensorData<int8_t>(),
                             context.GetInput(3).GetTensorData<int32_t>(),
                             context.GetInput(4).GetTensorData<float>(),
                             context.GetInput(5).GetTensorData<float>(),
                             quads, outputs, gelu};
    shape.back() = outputs;
    run(context, op, in_quads(bytes.GetTensorData<uint8_t>(), rows, inputs, quads * bge::QUAD), rows, panels,
        steps.GetTensorData<float>(), context.GetOutput(0, shape).GetTensorMutableData<float>());
  }

 private:
  // The rows with a stride of whole quads: as they are, or copied.
  struct Rows {
    const uint8_t* values;
    std::vector<uint8_t> copied;
  };

  static Rows in_quads(const uint8_t* bytes, int64_t rows, int64_t inputs, int64_t stride) {
    if (stride == inputs) return {bytes, {}};
    Rows found{nullptr, std::vector<uint8_t>(rows * stride)};
    for (int64_t row = 0; row < rows; ++row) std::memcpy(&found.copied[row * stride], bytes + row * inputs, inputs);
    found.values = found.copied.data();
    return found;
  }

  static void run(const Ort::KernelContext& context, const bge::Int8Linear& op, const Rows& bytes, int64_t rows,
                  int64_t panels, const float* steps, float* y) {
    const int64_t chunks = (rows + ROWS_OF_A_PANEL - 1) / ROWS_OF_A_PANEL;
    for_rows(context, chunks * panels, 1, [&](int64_t task, int64_t) {
      const int64_t panel = task / chunks, first = task % chunks * ROWS_OF_A_PANEL;
      bge::functions().int8_linear(op, bytes.values + first * op.quads * bge::QUAD, steps + first,
                                   std::min(ROWS_OF_A_PANEL, rows - first), panel, y + first * op.outputs);
    });
  }
};

struct Int8Linear : Operator<Int8Linear, Int8LinearKernel> {
  static constexpr const char* NAME = Int8LinearKernel::NAME;
  static constexpr ONNXTensorElementDataType INPUTS[] = {UINT8, FLOAT, INT8, INT32, FLOAT, FLOAT}, OUTPUTS[] = {FLOAT};
};

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (!api) return base->GetApi(1)->CreateStatus(ORT_FAIL, "bge_kernels: this ONNX Runtime is older than its headers");
  Ort::InitApi(api);
  static const RotateQuantize rotate_quantize;
  static const DequantizeBiasGelu dequantize_bias_gelu;
  static const ResidualLayerNorm residual_layer_norm;
  static const Int8Linear int8_linear;
  static Ort::CustomOpDomain domain("bge_kernels");
  static const bool filled = [] {
    for (const OrtCustomOp* op : std::initializer_list<const OrtCustomOp*>{&rotate_quantize, &dequantize_bias_gelu,
                                                                            &residual_layer_norm, &int8_linear})
      domain.Add(op);
    return true;
  }();
  (void)filled;
  try {
    bge::functions();
    Ort::UnownedSessionOptions(options).Add(domain);
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
  return nullptr;
}
