"""Targets `cuda-fp32` and `cuda-fp16`: packed texts, ONNX Runtime's fused operators, nothing that needs the host.

A layer is three products with a bias, one attention over all texts, and three products whose bias is added by what
follows: SkipLayerNormalization and BiasGelu. Shapes are the only thing that differs from batch to batch.
"""

from __future__ import annotations

import onnx_ir as ir

FOLLOWERS = ("gelu", "residual")
"""What adds the bias of the product in front of it."""


def linear(call: ir.Node) -> ir.Node:
    """A product with its bias, of packed rows (T, in); one that is followed by `FOLLOWERS` is theirs to fuse."""
    if any(user.op_type in FOLLOWERS for user, place in call.outputs[0].uses() if place == 0):
        return call
    return ir.node("Gemm", call.inputs)


def gelu(call: ir.Node) -> ir.Node:
    """The bias of the product before, and erf GELU, in one pass."""
    product, bias = _product(call)
    return ir.node("BiasGelu", [product, bias], domain="com.microsoft")


def layer_norm(call: ir.Node) -> ir.Node:
    """The bias of the product before, the residual sum and the norm in one pass; a norm of no such sum in one too."""
    x, scale, shift = call.inputs
    assert x
    residual = x.producer()
    if residual is None or residual.op_type != "residual":
        return ir.Node("", "LayerNormalization", call.inputs, attributes=[call.attributes["epsilon"]])
    product, bias = _product(residual)
    inputs = [product, residual.inputs[1], scale, shift, bias]
    return ir.Node("com.microsoft", "SkipLayerNormalization", inputs, attributes=[call.attributes["epsilon"]])


def packed_attention(call: ir.Node) -> ir.Node:
    """Attention over all texts of a batch; queries, keys and values apart, which needs no copy of them."""
    query, key, value, _, token_offset, cu_seqlens = call.inputs
    attributes = [call.attributes["num_heads"], call.attributes["scale"]]
    inputs = [query, key, value, None, token_offset, cu_seqlens]
    return ir.Node("com.microsoft", "PackedMultiHeadAttention", inputs, attributes=attributes)


def _product(call: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The product that `call` reads first, without its bias, and the bias."""
    first = call.inputs[0]
    assert first
    producer = first.producer()
    assert producer
    assert producer.op_type == "linear"
    x, matrix, bias = producer.inputs
    assert bias
    node = ir.node("MatMul", [x, matrix])
    node.metadata_props.update(producer.metadata_props)
    assert call.graph is not None
    call.graph.insert_after(producer, node)
    return node.outputs[0], bias


SWAPS = {"linear": linear, "gelu": gelu, "layer_norm": layer_norm, "packed_attention": packed_attention}
