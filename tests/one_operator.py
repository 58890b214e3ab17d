"""One custom operator in a session of its own, and operands for it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bge_kernels
from bge_kernels.int8_linear.reference import int8_linear, pack
from bge_onnx.run.onnx_runtime import ort

built = pytest.mark.skipif(not bge_kernels.library(), reason="needs an installation with operators")

ROWS = [1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 63, 65, 127, 129, 193]
LEVELS, ZERO = 109, 110
BUDGETS = {1: (219, 149), 2: (127, 258)}
"""By the quads that are added up in 16 bits: the largest byte, and what the weights of one sign have together."""

TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}


def run(op, inputs, constants=None, *, outputs=1, threads=2, **attributes):
    """Outputs of one operator."""
    constants = constants or {}
    names = [f"x{place}" if isinstance(value, np.ndarray) else value for place, value in enumerate(inputs)]
    given_ = {name: value for name, value in zip(names, inputs, strict=True) if isinstance(value, np.ndarray)}
    node = helper.make_node(op, names, [f"y{n}" for n in range(outputs)], domain=bge_kernels.DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(name, TYPES[value.dtype], None) for name, value in given_.items()],
        [
            helper.make_tensor_value_info(
                f"y{n}", TensorProto.UINT8 if op == "RotateQuantize" and n == 0 else TensorProto.FLOAT, None
            )
            for n in range(outputs)
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(bge_kernels.DOMAIN, bge_kernels.VERSION)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(bge_kernels.library()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given_)


def floats(shape, seed=0, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def bytes_of(rows, width, added=1, seed=0):
    largest, _ = BUDGETS[added]
    return np.random.default_rng(seed).integers(1, largest + 1, (rows, width)).astype(np.uint8)


def weights(inputs, outputs, added=1, seed=0):
    """Integers (N, K) that stay within the budget, whatever their neighbours."""
    _, most = BUDGETS[added]
    share = most // (2 * added)
    return np.random.default_rng(seed).integers(-share, share + 1, (outputs, inputs)).astype(np.int8)


def linear(rows, inputs, outputs, gelu=0, threads=2, weight=None, bytes_=None, added=1):
    weight = weights(inputs, outputs, added) if weight is None else weight
    bytes_ = bytes_of(rows, inputs, added) if bytes_ is None else bytes_
    steps, scales, bias = np.abs(floats((rows, 1), 1, 0.01)), np.abs(floats(outputs, 2, 0.01)), floats(outputs, 3)
    zero = BUDGETS[added][0] // 2 + 1
    packed, offsets = pack(weight, zero)
    constants = {"w": packed, "o": offsets, "s": scales}
    how = {"threads": threads, "gelu": gelu, "added": added}
    found = run("Int8Linear", [bytes_, steps, *constants, bias], constants, **how)[0]
    return found, int8_linear(bytes_, steps, weight, scales, bias, zero=zero, gelu=bool(gelu))


EXTREMES = {1: [(127, 22), (-127, -22), (75, 74), (127, -127)], 2: [(127, 2), (-2, -127), (65, 64), (127, -127)]}
"""Pairs of weights, by the quads that are added up: so many of them as there are stay just within the budget."""
