"""Single operators of bge_kernels beside the nodes they replace, at the shapes of bge-base; see `kernels.py`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

import bge_kernels
from bge_export.graph.ops import MODULE, OPSET, functions
from bge_export.lowering.int8.rounding import EIGHT_BITS, hadamard
from bge_export.lowering.lower import lower
from bge_kernels.dequantize_bias_gelu.reference import dequantize_bias_gelu
from bge_kernels.int8_linear.reference import int8_linear, pack
from bge_kernels.residual_layer_norm.reference import residual_layer_norm
from bge_kernels.rotate_quantize.reference import rotate_quantize
from bge_onnx.run.onnx_runtime import ort

WIDTH, INNER = 768, 3072
REST = 0.005  # seconds after which the other session's threads have stopped spinning
RUNS = 40
OURS = bge_kernels.DOMAIN
Arrays = dict[str, np.ndarray]
Node = tuple[str, str, list[str], dict[str, Any]]
"""Domain, operator, inputs and attributes. "y" among the inputs is the first output of the node before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One of our operators, the nodes it replaces, and what NumPy gives."""

    op: str
    inputs: Arrays
    constants: Arrays
    attributes: dict[str, Any]
    others: list[Node]
    reference: Callable[[], Any]

    @property
    def ours(self) -> list[Node]:
        names = [name for name in (*self.inputs, *self.constants) if name not in {"matrix", "one", "zero"}]
        return [(OURS, self.op, names, self.attributes)]


def cases(rows: int) -> list[Case]:
    """Of a text of so many tokens."""
    rng = np.random.default_rng(0)
    return [rotation(rng, rows), epilogue(rng, rows), norm(rng, rows), linear(rng, rows)]


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def rotation(rng: np.random.Generator, rows: int) -> Case:
    x = floats(rng, 1, rows, INNER)
    return Case(
        op="RotateQuantize",
        inputs={"x": x},
        constants={"matrix": hadamard(64)},
        attributes={"levels": float(EIGHT_BITS.levels), "zero": EIGHT_BITS.zero, "rotated": 1},
        others=[
            ("bge", "rotate_blocks", ["x", "matrix"], {}),
            ("bge", "int8_rows", ["y"], {"levels": EIGHT_BITS.levels, "zero": EIGHT_BITS.zero}),
        ],
        reference=lambda: rotate_quantize(x, rotated=True, levels=EIGHT_BITS.levels, zero=EIGHT_BITS.zero)[0],
    )


def gelu_of(product: list[Node]) -> list[Node]:
    """The nodes that scale rows, add the bias and apply GELU."""
    rows = "y" if product else "x"
    return [
        *product,
        ("", "Mul", [rows, "steps"], {}),
        ("", "Add", ["y", "bias"], {}),
        ("", "Gelu", ["y"], {"approximate": "none"}),
    ]


def epilogue(rng: np.random.Generator, rows: int) -> Case:
    sums, steps, bias = floats(rng, 1, rows, INNER), np.abs(floats(rng, 1, rows, 1)), floats(rng, INNER)
    return Case(
        op="DequantizeBiasGelu",
        inputs={"x": sums, "steps": steps},
        constants={"bias": bias},
        attributes={"gelu": 1},
        others=gelu_of([]),
        reference=lambda: dequantize_bias_gelu(sums, steps, bias, gelu=True),
    )


def norm(rng: np.random.Generator, rows: int) -> Case:
    x, residual, scale, bias = (floats(rng, *shape) for shape in [(1, rows, WIDTH)] * 2 + [(WIDTH,)] * 2)
    return Case(
        op="ResidualLayerNorm",
        inputs={"x": x, "residual": residual},
        constants={"scale": scale, "bias": bias},
        attributes={"epsilon": 1e-12},
        others=[
            ("", "Add", ["x", "residual"], {}),
            ("", "LayerNormalization", ["y", "scale", "bias"], {"axis": -1, "epsilon": 1e-12}),
        ],
        reference=lambda: residual_layer_norm(x, residual, scale, bias, epsilon=1e-12),
    )


def linear(rng: np.random.Generator, rows: int) -> Case:
    bytes_ = rng.integers(1, 220, (1, rows, WIDTH)).astype(np.uint8)
    weight = rng.integers(-74, 75, (INNER, WIDTH)).astype(np.int8)
    steps, scales, bias = np.abs(floats(rng, 1, rows, 1)), np.abs(floats(rng, INNER)) / 1000, floats(rng, INNER)
    packed, offsets = pack(weight, EIGHT_BITS.zero)
    others = {
        "one": np.array(1, dtype=np.float32),
        "zero": np.array(EIGHT_BITS.zero, dtype=np.uint8),
        "matrix": weight.T.copy(),
    }
    return Case(
        op="Int8Linear",
        inputs={"x": bytes_, "steps": steps},
        constants={"packed": packed, "offsets": offsets, "scales": scales, "bias": bias, **others},
        attributes={"gelu": 1, "added": EIGHT_BITS.added},
        others=gelu_of([("com.microsoft", "MatMulIntegerToFloat", ["x", "matrix", "one", "scales", "zero"], {})]),
        reference=lambda: int8_linear(bytes_, steps, weight, scales, bias, zero=EIGHT_BITS.zero, gelu=True),
    )


def session(nodes: list[Node], case: Case, threads: int) -> ort.InferenceSession:
    """A session that runs so many nodes; the last one's first output is "y"."""
    known: dict[str, ir.Value] = {}
    for name, array in {**case.inputs, **case.constants}.items():
        tensor = ir.tensor(array, name=name)
        constant = name in case.constants
        shape = ir.Shape(array.shape if constant else [None] * array.ndim)
        known[name] = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor if constant else None
        )
    made = []
    for domain, op, names, attributes in nodes:
        outputs = 2 if op in {"RotateQuantize", "int8_rows"} else 1
        node = ir.node(op, [known[name] for name in names], attributes, domain=domain, num_outputs=outputs)
        node.metadata_props[MODULE] = op
        known["y"] = node.outputs[0]
        made.append(node)
    known["y"].name = "y"
    graph = ir.Graph(
        [known[name] for name in case.inputs],
        [known["y"]],
        nodes=made,
        initializers=[known[name] for name in case.constants],
        opset_imports={"": OPSET, "bge": 1, "com.microsoft": 1, OURS: bge_kernels.VERSION},
    )
    model = ir.Model(graph, ir_version=10, functions=functions())
    lower(model, {})
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    options.register_custom_ops_library(str(bge_kernels.library()))
    proto = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])


def compared(case: Case, rows: int, threads: int) -> dict[str, Any]:
    """Median microseconds of our operator and of those it replaces, in turn, and their largest errors."""
    sessions = {name: session(getattr(case, name), case, threads) for name in ("others", "ours")}
    wanted = case.reference().astype(np.float64)
    errors = {name: float(np.abs(one.run(["y"], case.inputs)[0] - wanted).max()) for name, one in sessions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(RUNS):
        for name, one in sessions.items():
            time.sleep(REST)
            one.run(["y"], case.inputs)
            start = time.perf_counter()
            one.run(["y"], case.inputs)
            seconds[name].append(time.perf_counter() - start)
    micros = {name: 1e6 * statistics.median(times) for name, times in seconds.items()}
    return {"op": case.op, "rows": rows, "threads": threads, "micros": micros, "errors": errors}
