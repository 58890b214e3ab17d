"""Encoders' `cpu-int8` with the operators of `bge_kernels`: the same weights, fewer passes over memory.

Linear layers without GELU are the same bits as those of `cpu_int8`'s standard operators, given the same rows; those are
rotated and summed in another order, and rounded with a reciprocal where standard operators divide.
"""

from __future__ import annotations

import platform
from functools import partial
from typing import Literal

import numpy as np
import onnx_ir as ir

from bge_export.gptq import Hessians
from bge_export.int8 import LEVELS, ZERO, Linear, Sizes
from bge_export.lowering import Lowering, cpu_int8
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
    on_bytes = partial(int8_linear if kernels == "linear" else product_and_pass, quantizer)
    swaps = {**cpu_int8.SWAPS, "linear": quantizer.swap(on_bytes), "gelu": gelu, "layer_norm": layer_norm}
    return Lowering(swaps, quantizer.rounded, quantizer.rounded_inputs)


def int8_linear(quantizer: cpu_int8.Quantizer, call: ir.Node, linear: Linear, x: ir.Value) -> ir.Node:
    """A linear layer on bytes, with the GELU that follows it; its weight as the operator reads it."""
    inputs, outputs = cpu_int8.sizes(call)
    kinds = (
        ("q8", ir.DataType.INT8, packed_shape(inputs, outputs)),
        ("offsets", ir.DataType.INT32, (outputs,)),
        ("scales", ir.DataType.FLOAT, (outputs,)),
    )
    weights = quantizer.weights(call, linear, kinds, lambda integers, scales: (*pack(integers, ZERO), scales))
    operands = [*_rows(call, x, rotated=linear.online), *weights, cpu_int8.bias_of(call, linear)]
    return ir.node("Int8Linear", operands, {"gelu": _before_gelu(call)}, domain=DOMAIN)


def product_and_pass(quantizer: cpu_int8.Quantizer, call: ir.Node, linear: Linear, x: ir.Value) -> ir.Node:
    """ONNX Runtime's product, then scales, bias and the GELU that follows in one pass."""
    bytes_, steps = _rows(call, x, rotated=linear.online)
    integers, scales = quantizer.operands(call, linear)
    one = cpu_int8.constant(call, "one", np.array(1, dtype=np.float32))
    zero = cpu_int8.constant(call, "zero", np.array(ZERO, dtype=np.uint8))
    product = ir.node("MatMulIntegerToFloat", [bytes_, integers, one, scales, zero], domain="com.microsoft")
    (sums,) = cpu_int8.insert(call, product)
    operands = [sums, steps, cpu_int8.bias_of(call, linear)]
    return ir.node("DequantizeBiasGelu", operands, {"gelu": _before_gelu(call)}, domain=DOMAIN)


def _before_gelu(call: ir.Node) -> int:
    return int(all(user.op_type == "gelu" for user, _ in call.outputs[0].uses()))


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
