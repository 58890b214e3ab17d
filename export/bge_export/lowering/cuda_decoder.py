"""Targets `cuda-fp16` and `cuda-bf16` of decoders: products, rotations and attention in half precision.

The residual stream and the norms stay in float32: Gemma2's states leave float16's range, and its norms' 1 + weight is
lost in bfloat16. The activations of gates stay in float32 too, as in PyTorch; ONNX Runtime would compute them in half
precision. Attention is ONNX Runtime's GroupQueryAttention, which holds no matrix of tokens by tokens.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from bge_export.lowering import cuda, half
from bge_export.lowering.lower import Lowering, Precision, Swap
from bge_export.models.decoder import NO_WINDOW

CARRIED = ("num_heads", "kv_num_heads", "scale", "softcap")
"""Attributes that attention and ONNX Runtime's operator both have."""


def lowering(precision: Precision) -> Lowering:
    """The lowering of a target; float32 is for tests on the CPU, whose operators have no bfloat16."""
    dtype = getattr(ir.DataType, half.NAMES[precision])
    swaps: dict[str, Swap] = {
        "lookup": lambda call: _body("lookup_in_float", call),
        "project": lambda call: _body("project_in", call, to=dtype.value),
        "add_bias": lambda call: _body("add_bias_in", call, to=dtype.value),
        "join_heads": lambda call: _body("join_heads_in", call, to=dtype.value),
        "rms_norm": lambda call: _body("rms_norm_in_float", call, epsilon=call.attributes["epsilon"].as_float()),
        "residual": lambda call: _body("residual_in_float", call),
        "gated_silu": lambda call: _body("gated_quick_gelu", call, to=dtype.value),
        "gated_gelu": lambda call: _body("gated_fast_gelu", call, to=dtype.value),
        "rotary": _rotary,
        "causal_attention": _attention,
        "causal_attention_softcap": _attention,
        "l2_normalize": cuda.l2_normalize,
        "project_vector": partial(cuda.in_float, "project_vector_in_float"),
    }
    finish = partial(half.compute, dtype=dtype, matrices_alone=True)
    return Lowering(swaps, finish=finish, precision=precision)


def _body(name: str, call: ir.Node, **attributes: float) -> ir.Node:
    """The call with another body."""
    return ir.node(name, call.inputs, attributes, domain=call.domain)


def _rotary(call: ir.Node) -> ir.Node:
    """Rotation of all heads in one pass."""
    return ir.Node("com.microsoft", "RotaryEmbedding", call.inputs, attributes=[call.attributes["num_heads"]])


def _attention(call: ir.Node) -> ir.Node:
    """Grouped-query attention without a prefix."""
    query, key, value, _, _, _, last_places, tokens = call.inputs
    window = call.attributes["window"].as_int()
    attributes = {name: call.attributes[name].value for name in CARRIED if name in call.attributes}
    attributes["local_window_size"] = window if window < NO_WINDOW else -1
    inputs = [query, key, value, last_places, tokens]
    name = "grouped_attention_softcap" if "softcap" in attributes else "grouped_attention"
    return ir.node(name, inputs, attributes, domain=call.domain)
