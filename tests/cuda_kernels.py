"""Operators that ONNX Runtime has CUDA kernels for, and in which types of their main values (T, or V of norms).

From docs/OperatorKernels.md of https://github.com/microsoft/onnxruntime at commit
001d12d2623fd411ce0f83d05abb5e82304a3389: rows for opset 21, of the operators that our graphs may have.
Of their types we keep float16, bfloat16, float32, int32, int64 and bool.
"""

from __future__ import annotations

HALVES = frozenset({"bfloat16", "float16"})
FLOATS = HALVES | {"float32"}
NUMBERS = FLOATS | {"int32", "int64"}
ALL = NUMBERS | {"bool"}

KERNELS: dict[tuple[str, str], frozenset[str]] = {
    ("", "Add"): NUMBERS,
    ("", "Cast"): ALL,  # T1 and T2 alike
    ("", "Concat"): ALL,
    ("", "CumSum"): NUMBERS - {"bfloat16"},
    ("", "Div"): NUMBERS,
    ("", "Expand"): ALL,
    ("", "Gather"): ALL,
    ("", "Gelu"): FLOATS,
    ("", "GreaterOrEqual"): NUMBERS - {"bfloat16"},
    ("", "LayerNormalization"): FLOATS,
    ("", "MatMul"): FLOATS,
    ("", "Max"): NUMBERS,
    ("", "Mul"): NUMBERS,
    ("", "Neg"): NUMBERS,
    ("", "Pow"): NUMBERS,
    ("", "ReduceMax"): NUMBERS - {"bfloat16"},
    ("", "ReduceMean"): frozenset({"float16", "float32", "int32"}),
    ("", "ReduceSum"): NUMBERS,
    ("", "Relu"): FLOATS,
    ("", "Reshape"): ALL,
    ("", "ScatterElements"): ALL,
    ("", "ScatterND"): ALL,
    ("", "Sigmoid"): FLOATS,
    ("", "SimplifiedLayerNormalization"): FLOATS,
    ("", "Slice"): ALL,
    ("", "Split"): ALL,
    ("", "Sqrt"): FLOATS,
    ("", "Squeeze"): ALL,
    ("", "Sub"): NUMBERS,
    ("", "Tanh"): FLOATS,
    ("", "Transpose"): ALL,
    ("", "Unsqueeze"): ALL,
    ("", "Where"): NUMBERS,  # T; the condition is bool
    ("com.microsoft", "BiasGelu"): FLOATS,
    ("com.microsoft", "FastGelu"): FLOATS,
    ("com.microsoft", "FusedMatMul"): FLOATS,
    ("com.microsoft", "Gelu"): FLOATS,
    ("com.microsoft", "GroupQueryAttention"): HALVES,
    ("com.microsoft", "MultiHeadAttention"): FLOATS,
    ("com.microsoft", "PackedMultiHeadAttention"): FLOATS - {"bfloat16"},
    ("com.microsoft", "QuickGelu"): FLOATS,
    ("com.microsoft", "RotaryEmbedding"): FLOATS,
    ("com.microsoft", "SkipLayerNormalization"): FLOATS,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): FLOATS,
}


def types_of(domain: str, operator: str) -> frozenset[str]:
    """The types, empty for an operator without a CUDA kernel."""
    return KERNELS.get((domain, operator), frozenset())
