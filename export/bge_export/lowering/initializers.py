"""Weights that lowering adds to a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

Compute = Callable[[], Sequence[NDArray[Any]]]


def add(call: ir.Node, tensor: ir.TensorProtocol) -> ir.Value:
    """A weight of the graph that `call` is in, under its tensor's name."""
    assert isinstance(call.graph, ir.Graph)
    return register(call.graph, tensor)


def register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """A weight of `graph`, under its tensor's name."""
    shape, dtype = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=tensor.name, type=dtype, shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def add_together(
    call: ir.Node, parts: Sequence[tuple[str, ir.DataType, tuple[int, ...]]], compute: Compute
) -> list[ir.Value]:
    """Weights of one computation, by name, dtype and shape: done when the first is written, let go with the last."""
    together = _Together(compute)
    return [
        add(call, ir.LazyTensor(partial(together.take, part), dtype, ir.Shape(shape), name=name))
        for part, (name, dtype, shape) in enumerate(parts)
    ]


class _Together:
    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.arrays: dict[int, NDArray[Any]] = {}

    def take(self, part: int) -> ir.TensorProtocol:
        if part not in self.arrays:
            self.arrays = dict(enumerate(self.compute()))
        return ir.tensor(self.arrays.pop(part))
