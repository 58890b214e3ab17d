"""Weights in float16: stored so for CPUs, which compute in float32 all the same, or computed with on GPUs."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from bge_export.lowering.initializers import register
from bge_export.weights import Array
from bge_onnx.errors import CheckpointError

LARGEST = float(np.finfo(np.float16).max)


def rounded(name: str, weight: Array) -> Array:
    """What the graph computes with in the place of a checkpoint's `weight`: matrices are stored in float16."""
    return _half(name, weight).astype(np.float32) if weight.ndim > 1 else weight


def store(model: ir.Model) -> None:
    """Store every matrix in float16. ONNX Runtime turns products' weights into float32 when it loads the graph; of a
    word table only the rows that a text needs.
    """
    for value in list(model.graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT and value.shape is not None and value.shape.rank() > 1:
            _store(model.graph, value)


def compute(model: ir.Model) -> None:
    """Turn every weight into float16, and with them all that is computed up to where a `to_float` stands."""
    for value in list(model.graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT:
            half = _half_value(model.graph, value)
            for node, place in value.uses():
                node.replace_input_with(place, half)
            del model.graph.initializers[str(value.name)]


def _store(graph: ir.Graph, value: ir.Value) -> None:
    name, half, users = str(value.name), _half_value(graph, value), value.uses()
    if all(node.op_type == "Gather" and place == 0 for node, place in users):
        for node, place in users:
            node.replace_input_with(place, half)
            rows = node.outputs[0]
            readers = rows.uses()
            cast = _cast(rows, name)
            graph.insert_after(node, cast)
            for reader, at in readers:
                reader.replace_input_with(at, cast.outputs[0])
    else:
        cast = _cast(half, name)
        graph.insert_before(graph[0], cast)
        for node, place in users:
            node.replace_input_with(place, cast.outputs[0])
    del graph.initializers[name]


def _half_value(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The weight in float16, beside the one in float32."""
    source, name = value.const_value, str(value.name)
    assert source is not None
    assert value.shape is not None
    tensor = ir.LazyTensor(partial(_tensor, name, source), ir.DataType.FLOAT16, value.shape, name=f"{name}.half")
    return register(graph, tensor)


def _cast(value: ir.Value, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
    node.name = node.outputs[0].name = f"{name}.float"
    return node


def _tensor(name: str, source: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(_half(name, source.numpy()), name=f"{name}.half")


def _half(name: str, weight: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    if weight.size and np.abs(weight).max() > LARGEST:
        raise CheckpointError(
            f"{name}: expected weights up to {LARGEST:.0f} for float16, found {np.abs(weight).max():.3g}.\n"
            "    Export with --weights fp32, or for cuda-fp32."
        )
    return weight.astype(np.float16)
