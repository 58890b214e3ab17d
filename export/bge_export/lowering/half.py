"""Weights in half precision: as storage for CPUs, which compute in float32, or computed with on GPUs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.checkpoint.weights import Array, LazyRows
from bge_export.lowering.initializers import register
from bge_export.lowering.lower import Precision
from bge_onnx.errors import CheckpointError

FLOAT16 = ir.DataType.FLOAT16

LARGEST = float(np.finfo(np.float16).max)

NAMES: dict[Precision, str] = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}
"""Of ONNX's types."""

CHUNK_ROWS = 4096
"""Rows that are rounded at a time: a word table is larger than memory in float32."""


def rounded(name: str, weight: Array, *, dtype: ir.DataType = FLOAT16) -> Array:
    """What the graph computes with in the place of a checkpoint's `weight`: matrices are stored in `dtype`."""
    return _half(name, weight, dtype).astype(np.float32) if weight.ndim > 1 else weight


def store(model: ir.Model, *, dtype: ir.DataType = FLOAT16) -> None:
    """Store every matrix in `dtype`. ONNX Runtime turns products' weights into float32 when it loads the graph; of a
    word table only the rows that a text needs.
    """
    for value in list(model.graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT and value.shape is not None and value.shape.rank() > 1:
            _store(model.graph, value, dtype)


def compute(model: ir.Model, *, dtype: ir.DataType = FLOAT16, matrices_alone: bool = False) -> None:
    """Turn every weight, or every matrix, into `dtype`, and with them all that is computed up to a cast to float32."""
    for value in list(model.graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT and not (matrices_alone and len(value.shape or ()) < 2):
            half = _half_value(model.graph, value, dtype)
            for node, place in value.uses():
                node.replace_input_with(place, half)
            del model.graph.initializers[str(value.name)]


def _store(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    name, half, users = str(value.name), _half_value(graph, value, dtype), value.uses()
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


def _half_value(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The weight in `dtype`, beside the one in float32."""
    source, name = value.const_value, str(value.name)
    assert source is not None
    assert value.shape is not None
    tensor = ir.LazyTensor(partial(_tensor, name, source, dtype), dtype, value.shape, name=f"{name}.half")
    return register(graph, tensor)


def _cast(value: ir.Value, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
    node.name = node.outputs[0].name = f"{name}.float"
    return node


def _tensor(name: str, source: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    if isinstance(source, LazyRows):
        count = source.shape.numpy()[0]
        array = np.empty(source.shape.numpy(), dtype=dtype.numpy())
        for start in range(0, count, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, count)
            array[start:stop] = _half(name, source.rows(start, stop), dtype)
    else:
        array = _half(name, source.numpy(), dtype)
    return ir.tensor(array, dtype=dtype, name=f"{name}.half")


def _half(name: str, weight: Array, dtype: ir.DataType) -> NDArray[Any]:
    if dtype == FLOAT16 and weight.size and np.abs(weight).max() > LARGEST:
        raise CheckpointError(
            f"{name}: expected weights up to {LARGEST:.0f} for float16, found {np.abs(weight).max():.3g}.\n"
            "    Leave out --weights fp16, or export for a target that computes in float32."
        )
    return weight.astype(dtype.numpy())
