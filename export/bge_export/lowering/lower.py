"""From the graph a model file builds to the graph a target runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes import common

import bge_kernels
from bge_export.checkpoint.weights import Rounding
from bge_export.graph.ops import DOMAIN, MODULE

Precision = Literal["float32", "float16", "bfloat16"]

Swap = Callable[[ir.Node], ir.Node]
"""Gives the fused node of one output that takes a call's place, or the call itself."""


@dataclass(frozen=True, slots=True)
class Lowering:
    """How a target lowers one model, and what PyTorch does to compute the same before it is compared.

    weights, inputs  the rounding of weights, and of what linear modules are given; None where there is none
    finish           is called with the lowered graph
    precision        of the layers, a name of torch's and numpy's
    """

    swaps: Mapping[str, Swap]
    weights: Rounding | None = None
    inputs: Rounding | None = None
    finish: Callable[[ir.Model], None] | None = None
    precision: Precision = "float32"


def lower(model: ir.Model, swaps: Mapping[str, Swap]) -> int:
    """Swap calls for fused nodes, inline all other calls, drop what no output needs; returns the calls swapped."""
    count = 0
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type in swaps:
            fused = swaps[node.op_type](node)
            if fused is node:
                continue
            fused.name = node.name
            fused.metadata_props.update(node.metadata_props)
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [fused], node.outputs, fused.outputs)
            import_domain(model.graph, fused.domain)
            count += 1
    common.InlinePass()(model)
    common.RemoveUnusedNodesPass()(model)
    _drop_unused_inputs(model.graph)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    _name_nodes(model.graph)
    return count


def import_domain(graph: ir.Graph, domain: str) -> None:
    """Let the graph have operators of a domain, in the version that there is."""
    graph.opset_imports.setdefault(domain, bge_kernels.VERSION if domain == bge_kernels.DOMAIN else 1)


def _drop_unused_inputs(graph: ir.Graph) -> None:
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)


def _name_nodes(graph: ir.Graph) -> None:
    """Name every node after its module and operator, so that profiles and errors use the checkpoint's words."""
    seen: dict[str, int] = {}
    for node in graph:
        name = f"{node.metadata_props.pop(MODULE)}.{node.op_type}"
        seen[name] = seen.get(name, 0) + 1
        node.name = name if seen[name] == 1 else f"{name}.{seen[name]}"
