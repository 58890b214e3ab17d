"""The operations models are made of. Each call is one node whose body is an ONNX function of standard operators.

A model file calls these; lowering swaps a call for a fused operator of the target or inlines its body. The bodies are
the reference: any ONNX Runtime runs them as they are. Shapes: B texts, T tokens, D hidden width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx.parser
import onnx_ir as ir

from bge_export.graph import bodies, decoder_bodies, lowered_bodies

DOMAIN = "bge"
OPSET = 21
MODULE = "bge.module"
"""Metadata key of every node: the checkpoint's module that it computes."""

Attributes = Mapping[str, float | Sequence[int]]


MODEL_BODIES = bodies.BODIES + decoder_bodies.BODIES + decoder_bodies.attention_bodies()


def functions(texts_of_all: str = MODEL_BODIES + lowered_bodies.BODIES) -> list[ir.Function]:
    """All operations as ONNX functions of domain `bge`."""
    header = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}, "com.microsoft": 1]>\n'
    texts = [body + "}" for body in texts_of_all.split("\n}")[:-1]]
    return [ir.serde.deserialize_function(onnx.parser.parse_function(header + text)) for text in texts]


class Graph:
    """A graph under construction: inputs, weights and calls, in the order they are added.

    bodies  of the operations that it may call; a family with operations of its own adds them
    """

    def __init__(self, name: str, bodies: str = MODEL_BODIES) -> None:
        self.name, self.bodies = name, bodies
        self.inputs: list[ir.Value] = []
        self.weights: dict[str, ir.Value] = {}
        self.tape = ir.tape.Tape()

    def input(self, name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """An input of the model."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def weight(self, tensor: ir.TensorProtocol) -> ir.Value:
        """A weight, under its tensor's name; the same value each time."""
        assert tensor.name
        if tensor.name not in self.weights:
            self.weights[tensor.name] = self.tape.initializer(tensor)
        return self.weights[tensor.name]

    def call(self, op: str, module: str, *inputs: ir.Value | None, attributes: Attributes | None = None) -> ir.Value:
        """The result of operation `op`, computed for the checkpoint's `module`."""
        named = {MODULE: module}
        return self.tape.op(op, inputs, attributes, domain=DOMAIN, name=module, metadata_props=named)

    def join(self, module: str, parts: Sequence[ir.Value], *, axis: int = 0) -> ir.Value:
        """The parts along an axis."""
        return self.tape.op("Concat", parts, {"axis": axis}, name=module, metadata_props={MODULE: module})

    def finish(self, outputs: Mapping[str, tuple[ir.Value, Sequence[int | str]]]) -> ir.Model:
        """The model; `outputs` gives each float32 output's name its value and shape."""
        for name, (value, shape) in outputs.items():
            value.name = name
            value.type = ir.TensorType(ir.DataType.FLOAT)
            value.shape = ir.Shape(shape)
        graph = ir.Graph(
            self.inputs,
            [value for value, _ in outputs.values()],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": OPSET, DOMAIN: 1},
            name=self.name,
        )
        operations = functions(self.bodies + lowered_bodies.BODIES)
        return ir.Model(graph, ir_version=10, functions=operations, producer_name="bge-onnx")
