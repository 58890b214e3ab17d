"""Encoders' `cpu-int8` with the operators of `bge_kernels`: the same weights, fewer passes over memory.

Linear layers without GELU are the same bits as those of `cpu_int8`'s standard operators, given the same rows; those are
rotated and summed in another order, and rounded with a reciprocal where standard operators divide.
"""

from __future__ import annotations

import platform
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.gptq import Hessians
from bge_export.int8 import LEVELS, ZERO, Linear, Sizes
from bge_export.lowering import Lowering, Swap, cpu_int8
from bge_export.lowering.initializers import add_together
from bge_export.ops import MODULE
from bge_kernels import DOMAIN, library
from bge_kernels.int8_linear.reference import pack, packed_shape

X86 = ("x86_64", "AMD64")
"""Where `Int8Linear` has code for the CPU's products of bytes."""

Kernels = Literal["passes", "linear"]
"""Which operators: the passes around ONNX Runtime's products, or linear layers with products of their own."""


def best_kernels() -> Kernels | None:
    """What runs fastest on this machine; None where no operators were built."""
    if not library():
        return None
    return "linear" if platform.machine() in X86 else "passes"


def lowering(config: Sizes, hessians: Hessians | None, kernels: Kernels) -> Lowering:
    """The lowering of one model, with the roundings of `cpu_int8`'s."""
    quantizer = cpu_int8.Quantizer(config, hessians)
    swaps = {**cpu_int8.SWAPS, "linear": linear_swap(quantizer, kernels), "gelu": gelu, "layer_norm": layer_norm}
    return Lowering(swaps, quantizer.rounded, quantizer.rounded_inputs)


def linear_swap(quantizer: cpu_int8.Quantizer, kernels: Kernels) -> Swap:
    """Of linear layers on bytes, with the GELU that follows those named `intermediate.dense`."""

    def swap(call: ir.Node) -> ir.Node:
        module = call.metadata_props[MODULE]
        linear = Linear.of(module, quantizer.config)
        if linear is None:
            return call
        x = call.inputs[0]
        assert x
        bytes_, steps = _rows(call, x, rotated=linear.online)
        with_gelu = {"gelu": int(module.endswith(".intermediate.dense"))}
        if kernels == "linear":
            inputs = [bytes_, steps, *_packed(call, quantizer, linear), quantizer.bias(call, linear)]
            return ir.node("Int8Linear", inputs, with_gelu, domain=DOMAIN)
        weights, scales, bias = quantizer.operands(call, linear)
        one = cpu_int8.constant(call, "one", np.array(1, dtype=np.float32))
        zero = cpu_int8.constant(call, "zero", np.array(ZERO, dtype=np.uint8))
        product = ir.node("MatMulIntegerToFloat", [bytes_, weights, one, scales, zero], domain="com.microsoft")
        (sums,) = cpu_int8.insert(call, product)
        return ir.node("DequantizeBiasGelu", [sums, steps, bias], with_gelu, domain=DOMAIN)

    return swap


def _packed(call: ir.Node, quantizer: cpu_int8.Quantizer, linear: Linear) -> list[ir.Value]:
    """The weight of a linear call as `Int8Linear` reads it, its offsets and its scales."""
    matrix = call.inputs[1]
    assert matrix
    assert matrix.const_value
    assert matrix.shape
    source, module = matrix.const_value, call.metadata_props[MODULE]
    inputs, outputs = matrix.shape.numpy()

    def compute() -> tuple[NDArray[Any], ...]:
        integers, scales = quantizer.quantize(module, linear, source.numpy().T)
        return (*pack(integers, ZERO), scales)

    kinds = (
        ("q8", ir.DataType.INT8, packed_shape(inputs, outputs)),
        ("offsets", ir.DataType.INT32, (outputs,)),
        ("scales", ir.DataType.FLOAT, (outputs,)),
    )
    return add_together(call, [(f"{matrix.name}.{kind}", dtype, shape) for kind, dtype, shape in kinds], compute)


def gelu(call: ir.Node) -> ir.Node:
    """Nothing more where the linear layer in front has it."""
    x = call.inputs[0]
    linear = x.producer() if x else None
    fused = linear is not None and linear.domain == DOMAIN and linear.attributes["gelu"].as_int()
    return ir.node("Identity", call.inputs) if fused else call


def layer_norm(call: ir.Node) -> ir.Node:
    """With the residual sum in front of it, where there is one."""
    x, scale, bias = call.inputs
    assert x
    residual = x.producer()
    if residual is None or residual.op_type != "residual":
        return call
    attributes = [call.attributes["epsilon"]]
    return ir.Node(DOMAIN, "ResidualLayerNorm", [*residual.inputs, scale, bias], attributes=attributes)


def _rows(call: ir.Node, x: ir.Value, *, rotated: bool) -> tuple[ir.Value, ir.Value]:
    """Bytes and steps of `x`, made once for all layers that read it."""
    for user, _ in x.uses():
        if user.op_type == "RotateQuantize" and user.attributes["rotated"].as_int() == rotated:
            return user.outputs[0], user.outputs[1]
    attributes = {"rotated": int(rotated), "levels": float(LEVELS), "zero": ZERO}
    bytes_, steps = cpu_int8.insert(call, ir.node("RotateQuantize", [x], attributes, domain=DOMAIN, num_outputs=2))
    return bytes_, steps
