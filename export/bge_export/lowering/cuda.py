"""Targets `cuda-fp32` and `cuda-fp16` of encoders: packed texts, ONNX Runtime's fused operators, no work for the host.

A layer is six products, whose biases are added by what follows them: PackedMultiHeadAttention over all texts,
SkipLayerNormalization, BiasGelu. There is no Gemm: ONNX Runtime multiplies its bias with a buffer of ones that moves
when a larger batch comes, which recorded CUDA graphs would not notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from bge_export.graph.ops import MODULE
from bge_export.lowering.initializers import add


def gelu(call: ir.Node) -> ir.Node:
    """The bias of the product before, and erf GELU, in one pass."""
    product, bias = _product(call)
    return ir.node("BiasGelu", [product, bias], domain="com.microsoft")


def layer_norm(call: ir.Node) -> ir.Node:
    """The bias of the product before, the residual sum and the norm in one pass; without such a sum, the norm alone."""
    x, scale, shift = call.inputs
    assert x
    residual = x.producer()
    if residual is None or residual.op_type != "residual":
        return ir.Node("", "LayerNormalization", call.inputs, attributes=[call.attributes["epsilon"]])
    product, bias = _product(residual)
    inputs = [product, residual.inputs[1], scale, shift, bias]
    return ir.Node("com.microsoft", "SkipLayerNormalization", inputs, attributes=[call.attributes["epsilon"]])


def packed_attention(call: ir.Node) -> ir.Node:
    """Attention over all texts of a batch, with the biases of its queries, keys and values.

    The three inputs are separate. With one input for all three, ONNX Runtime would not use its flash kernel for texts
    of up to 512 tokens.
    """
    _, _, _, _, token_offset, cu_seqlens = call.inputs
    products, biases = zip(*(_product(call, place) for place in range(3)), strict=True)
    attributes = [call.attributes["num_heads"], call.attributes["scale"]]
    inputs = [*products, _joined(call, biases), token_offset, cu_seqlens]
    return ir.Node("com.microsoft", "PackedMultiHeadAttention", inputs, attributes=attributes)


def l2_normalize(call: ir.Node) -> ir.Node:
    """In operators that need no cuDNN."""
    return ir.node("normalize_by_sum", call.inputs, domain=call.domain)


def in_float(name: str, call: ir.Node) -> ir.Node:
    """The call with a body that turns its weights into float32."""
    return ir.node(name, call.inputs, domain=call.domain)


def _product(call: ir.Node, place: int = 0) -> tuple[ir.Value, ir.Value]:
    """The product that is input `place` of `call`, without its bias, and the bias."""
    read = call.inputs[place]
    assert read
    producer = read.producer()
    assert producer
    assert producer.op_type == "linear"
    x, matrix, bias = producer.inputs
    assert bias
    node = ir.node("MatMul", [x, matrix])
    node.metadata_props.update(producer.metadata_props)
    assert call.graph is not None
    call.graph.insert_after(producer, node)
    return node.outputs[0], bias


def _joined(call: ir.Node, parts: Sequence[ir.Value]) -> ir.Value:
    """Weights (N,) one behind another."""
    sources = [part.const_value for part in parts]
    name = f"{call.metadata_props[MODULE]}.bias"

    def joined() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([source.numpy() for source in sources if source]), name=name)

    size = sum(source.size for source in sources if source)
    return add(call, ir.LazyTensor(joined, ir.DataType.FLOAT, ir.Shape([size]), name=name))


SWAPS = {
    "gelu": gelu,
    "layer_norm": layer_norm,
    "packed_attention": packed_attention,
    "l2_normalize": l2_normalize,
}

HALF_SWAPS = SWAPS | {
    name: partial(in_float, f"{name}_in_float") for name in ("project_vector", "project_vector_with_bias")
}
"""Where weights are in half precision: what stands on the pooled vector, a reranker's head, computes in float32."""
