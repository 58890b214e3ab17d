"""Linear layers of encoders in eight bits: products of rotated rows, float32 between, in ONNX's standard operators.

A linear layer's input rows are rotated by a block Hadamard matrix, which spreads outliers, and rounded to bytes with a
scale for each row, so that a text's vector depends on no other text. The weight is rotated the same way offline and
rounded with a scale for each output. Inside attention the rotation is folded into the weights before and after it:
https://arxiv.org/abs/2404.00456 (QuaRot). Word embeddings are rounded in blocks, as the decoders' are.

`rounding.Grid` keeps every sum of products within 16 bits where AVX2 has no more: the same bytes give the same integers
on all CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.checkpoint.weights import Array
from bge_export.graph.ops import MODULE
from bge_export.lowering import cpu_fp32, cpu_nbits
from bge_export.lowering.initializers import add, add_together
from bge_export.lowering.int8.gptq import Hessians, round_with
from bge_export.lowering.int8.rounding import (
    EIGHT_BITS,
    TINY,
    WORD_TABLE,
    Grid,
    Integers,
    Linear,
    Sizes,
    check_sizes,
    hadamard,
    quantize,
    rotate,
)
from bge_export.lowering.limits import Limits
from bge_export.lowering.lower import import_domain

LIMITED_LAYERS, LIMIT = 6, 0.002
"""The limit on 1 - cosine for up to so many layers. With more layers it grows in proportion.

Trained all-MiniLM-L6-v2 (6 layers) errs by 0.0013, seeded random weights by 0.0004 in bge-base (12) and 0.0015 in
bge-m3 (24). With fewer levels the steps between them are larger, and the limit grows by the same factor."""


Kind = tuple[str, ir.DataType, tuple[int, ...]]
"""The suffix that is added to a matrix's name; a dtype; a shape."""

Arrange = Callable[[Integers, Array], Sequence[NDArray[Any]]]

SWAPS = {**cpu_fp32.SWAPS, "lookup": cpu_nbits.lookup}
"""Of all but linear layers."""


class Quantizer:
    """Rounds the weights of one model, for its graph and for the PyTorch that the graph is compared with.

    hessians  of the inputs of its linear modules, by name; None rounds each weight by itself. Each is let go when used.
    """

    def __init__(self, config: Sizes, hessians: Hessians | None, grid: Grid) -> None:
        check_sizes(config)
        self.config, self.hessians, self.grid = config, dict(hessians or {}), grid
        self._done: dict[str, tuple[Integers, Array]] = {}  # for the graph, what the check has rounded before

    def quantize(self, module: str, linear: Linear, weight: Array) -> tuple[Integers, Array]:
        """Integers (N, K) and scales (N,) of a module's weight (N, K), rotated."""
        if module in self._done:
            return self._done[module]
        rotated = linear.rotate(weight)
        integers, scales = quantize(rotated, self.grid)
        if module in self.hessians:
            half = rotate(self.hessians.pop(module), linear.inputs)
            hessian = rotate(half.T, linear.inputs)
            integers = round_with(rotated, hessian, scales, self.grid)
        self._done[module] = integers, scales
        return integers, scales

    def rounded(self, name: str, weight: Array) -> Array:
        """What the graph computes with in the place of a checkpoint's weight."""
        if name == WORD_TABLE:
            return cpu_nbits.rounded(name, weight, 8)
        module = name.removesuffix(".weight")
        linear = Linear.of(module, self.config) if weight.ndim == 2 else None
        if linear is None:
            return weight
        integers, scales = self.quantize(module, linear, weight)
        return linear.rotate(integers * scales[:, None])

    def rounded_inputs(self, name: str, rows: Array) -> Array:
        """What the graph computes with in the place of a module's input rows (N, K)."""
        linear = Linear.of(name, self.config)
        if linear is None:
            return rows
        rotated = rotate(rows, linear.inputs)
        steps = np.maximum(np.abs(rotated).max(axis=1, keepdims=True) / np.float32(self.grid.levels), TINY)
        return rotate(np.rint(rotated / steps) * steps, linear.inputs)

    def swap(self, call: ir.Node) -> ir.Node:
        """A linear layer that is rounded, on bytes; the others as they are."""
        linear, x = Linear.of(call.metadata_props[MODULE], self.config), call.inputs[0]
        assert x
        return self.on_bytes(call, linear, x) if linear else call

    def on_bytes(self, call: ir.Node, linear: Linear, x: ir.Value) -> ir.Node:
        """The node that takes the place of a linear call on `x`, in ONNX's and ONNX Runtime's own operators."""
        operands = [*self.rows(call, linear, x), *self.operands(call, linear), self.zero(call), bias_of(call, linear)]
        return ir.node("int8_linear", operands, domain=call.domain)

    def rows(self, call: ir.Node, linear: Linear, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Bytes and scales of a linear call's input, made once for all layers that read it."""
        return _rows(call, x, linear.inputs if linear.online else 0, self.grid)

    def zero(self, call: ir.Node) -> ir.Value:
        """The byte that stands for zero."""
        return constant(call, "zero", np.array(self.grid.zero, dtype=np.uint8))

    def weights(self, call: ir.Node, linear: Linear, kinds: Sequence[Kind], arrange: Arrange) -> list[ir.Value]:
        """Weights of the graph that `arrange` makes of a linear call's integers (N, K) and scales (N,)."""
        matrix, module = call.inputs[1], call.metadata_props[MODULE]
        assert matrix
        assert matrix.const_value
        source = matrix.const_value
        parts = [(f"{matrix.name}.{name}", dtype, shape) for name, dtype, shape in kinds]
        return add_together(call, parts, lambda: arrange(*self.quantize(module, linear, source.numpy().T)))

    def operands(self, call: ir.Node, linear: Linear) -> tuple[ir.Value, ir.Value]:
        """Integers (K, N) and their scales (N,) of a linear call."""
        inputs, outputs = sizes(call)
        kinds = (("q8", ir.DataType.INT8, (inputs, outputs)), ("scales", ir.DataType.FLOAT, (outputs,)))
        integers, scales = self.weights(
            call, linear, kinds, lambda rows, scales: (np.ascontiguousarray(rows.T), scales)
        )
        return integers, scales


def limits(config: Sizes, grid: Grid) -> Limits:
    """The limits on errors against PyTorch, which rounds in the same way. If an input lies midway between two integers,
    the last bits of float32 decide which one it becomes. These differences add up layer by layer.
    """
    vectors = LIMIT * max(1, config.num_hidden_layers / LIMITED_LAYERS) * EIGHT_BITS.levels / grid.levels
    # sparse weights: twice the distance between two unit vectors with that cosine
    return Limits(measure="1 - cosine", vectors=vectors, sparse=2 * float(np.sqrt(2 * vectors)))


def _rows(call: ir.Node, x: ir.Value, rotated: int, grid: Grid) -> tuple[ir.Value, ir.Value]:
    if rotated:
        matrix = constant(call, f"hadamard.{rotated}", hadamard(rotated))
        done = [user for user, _ in x.uses() if user.op_type == "rotate_blocks" and user.inputs[1] is matrix]
        if done:
            return _rows(call, done[0].outputs[0], 0, grid)
        return _rows(call, insert(call, ir.node("rotate_blocks", [x, matrix], domain=call.domain))[0], 0, grid)
    for user, _ in x.uses():
        if user.op_type == "int8_rows":
            return user.outputs[0], user.outputs[1]
    attributes = {"levels": grid.levels, "zero": grid.zero}
    bytes_, scale = insert(call, ir.node("int8_rows", [x], attributes, domain=call.domain, num_outputs=2))
    return bytes_, scale


def insert(call: ir.Node, node: ir.Node) -> Sequence[ir.Value]:
    """Put a node in front of `call`, for the same module; its outputs."""
    assert isinstance(call.graph, ir.Graph)
    node.metadata_props.update(call.metadata_props)
    call.graph.insert_before(call, node)
    import_domain(call.graph, node.domain)
    return node.outputs


def sizes(call: ir.Node) -> tuple[int, int]:
    """Inputs K and outputs N of a linear call."""
    matrix = call.inputs[1]
    assert matrix
    assert matrix.shape
    inputs, outputs = matrix.shape.numpy()
    return inputs, outputs


def bias_of(call: ir.Node, linear: Linear) -> ir.Value:
    """The bias (N,) of a linear call, rotated where its outputs are."""
    bias = call.inputs[2]
    assert bias
    assert bias.const_value
    if not linear.outputs:
        return bias
    source, name = bias.const_value, f"{bias.name}.rotated"

    def rotated() -> ir.TensorProtocol:
        return ir.tensor(rotate(source.numpy()[None], linear.outputs)[0], name=name)

    return add(call, ir.LazyTensor(rotated, source.dtype, ir.Shape(source.shape.numpy()), name=name))


def constant(call: ir.Node, name: str, array: NDArray[Any]) -> ir.Value:
    """A small weight of the graph, under its name; the same value each time."""
    assert call.graph is not None
    found = call.graph.initializers.get(name)
    return found or add(call, ir.tensor(array, name=name))
