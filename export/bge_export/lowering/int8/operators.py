"""Target `cpu-int8` of encoders, with the operators of `bge_kernels` where they are wanted: fewer passes over memory.

Given the same rows, linear layers without GELU give the same bits as `cpu_int8`'s standard operators. But the rows
differ: they are rotated and summed in another order, and rounded with a reciprocal where standard operators divide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bge_export.lowering.int8 import cpu_int8
from bge_export.lowering.int8.gptq import Hessians
from bge_export.lowering.int8.rounding import EIGHT_BITS, Grid, Linear, Sizes
from bge_export.lowering.lower import Lowering
from bge_kernels import DOMAIN, library
from bge_kernels.int8_linear.reference import pack, packed_shape

Operators = frozenset[str]
"""Names of operators of `bge_kernels`."""

PASSES: Operators = frozenset({"RotateQuantize", "DequantizeBiasGelu", "ResidualLayerNorm"})
"""What stands around ONNX Runtime's products; for comparison."""

LINEAR: Operators = frozenset({"RotateQuantize", "Int8Linear", "ResidualLayerNorm"})
"""The products too."""


def best_operators() -> Operators | None:
    """What runs fastest, wherever the bundle will run; None where this installation has no operators."""
    return LINEAR if library() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8:
    """How the linear layers of an encoder are computed on bytes.

    hessians   of the inputs of its linear modules, by name; None rounds each weight by itself
    operators  in the place of standard ones
    """

    hessians: Hessians | None = None
    operators: Operators = frozenset()
    grid: Grid = EIGHT_BITS


class Fused(cpu_int8.Quantizer):
    """Rounds as the quantizer of standard operators does, and puts ours into the graph where they are wanted."""

    def __init__(self, config: Sizes, how: Int8) -> None:
        super().__init__(config, how.hessians, how.grid)
        self.names = how.operators

    def rows(self, call: ir.Node, linear: Linear, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        if "RotateQuantize" not in self.names:
            return super().rows(call, linear, x)
        for user, _ in x.uses():
            if user.op_type == "RotateQuantize" and user.attributes["rotated"].as_int() == linear.online:
                return user.outputs[0], user.outputs[1]
        how = {"rotated": int(linear.online), "levels": float(self.grid.levels), "zero": self.grid.zero}
        bytes_, steps = cpu_int8.insert(call, ir.node("RotateQuantize", [x], how, domain=DOMAIN, num_outputs=2))
        return bytes_, steps

    def on_bytes(self, call: ir.Node, linear: Linear, x: ir.Value) -> ir.Node:
        if "Int8Linear" in self.names:
            return self._int8_linear(call, linear, x)
        if "DequantizeBiasGelu" in self.names:
            return self._product_and_pass(call, linear, x)
        return super().on_bytes(call, linear, x)

    def _int8_linear(self, call: ir.Node, linear: Linear, x: ir.Value) -> ir.Node:
        """A linear layer on bytes, with the GELU that follows it; its weight as the operator reads it."""
        inputs, outputs = cpu_int8.sizes(call)
        kinds = (
            ("q8", ir.DataType.INT8, packed_shape(inputs, outputs)),
            ("offsets", ir.DataType.INT32, (outputs,)),
            ("scales", ir.DataType.FLOAT, (outputs,)),
        )
        zero = self.grid.zero
        weights = self.weights(call, linear, kinds, lambda integers, scales: (*pack(integers, zero), scales))
        operands = [*self.rows(call, linear, x), *weights, cpu_int8.bias_of(call, linear)]
        attributes = {"gelu": _before_gelu(call), "added": self.grid.added}
        return ir.node("Int8Linear", operands, attributes, domain=DOMAIN)

    def _product_and_pass(self, call: ir.Node, linear: Linear, x: ir.Value) -> ir.Node:
        """ONNX Runtime's product, then scales, bias and the GELU that follows in one pass."""
        bytes_, steps = self.rows(call, linear, x)
        integers, scales = self.operands(call, linear)
        one = cpu_int8.constant(call, "one", np.array(1, dtype=np.float32))
        factors = [bytes_, integers, one, scales, self.zero(call)]
        (sums,) = cpu_int8.insert(call, ir.node("MatMulIntegerToFloat", factors, domain="com.microsoft"))
        operands = [sums, steps, cpu_int8.bias_of(call, linear)]
        return ir.node("DequantizeBiasGelu", operands, {"gelu": _before_gelu(call)}, domain=DOMAIN)


def lowering(config: Sizes, how: Int8 | None) -> Lowering:
    """The target's lowering of one model."""
    how = how or Int8()
    quantizer = Fused(config, how)
    swaps = {**cpu_int8.SWAPS, "linear": quantizer.swap}
    if how.operators & {"DequantizeBiasGelu", "Int8Linear"}:
        swaps["gelu"] = gelu
    if "ResidualLayerNorm" in how.operators:
        swaps["layer_norm"] = layer_norm
    return Lowering(swaps, quantizer.rounded, quantizer.rounded_inputs)


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
