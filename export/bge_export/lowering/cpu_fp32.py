"""Target `cpu-fp32`: batches hold texts of one length, so there is no padding and no mask.

ONNX Runtime's CPU flash attention runs only without a mask: 6.2 ms against 14.9 ms with one at 8×128 tokens, 16 heads,
and 0.3 GB against 4.6 GB of memory at 1×8192.
"""

from __future__ import annotations

import onnx_ir as ir

from bge_export.models.decoder import NO_WINDOW


def multi_head_attention(call: ir.Node) -> ir.Node:
    """Attention without its bias: query (B, Q, D), key and value (B, T, D), nothing padded."""
    query, key, value, _ = call.inputs
    attributes = [call.attributes["num_heads"], call.attributes["scale"]]
    return ir.Node("com.microsoft", "MultiHeadAttention", [query, key, value], attributes=attributes)


def no_bias(call: ir.Node) -> ir.Node:
    """A bias of zero for a family's own attention: nothing is padded. `multi_head_attention` takes no bias at all."""
    readers = {node.op_type for node, _ in call.outputs[0].uses()}
    return call if readers <= {"attention"} else ir.node("Constant", [], {"value_float": 0.0})


def over_all(call: ir.Node) -> ir.Node:
    """A pooling over all tokens (B, T, D) -> (B, D), as none is padding."""
    hidden, _ = call.inputs
    return ir.node(f"{call.op_type}_of_all", [hidden], domain="bge")


def last_token(call: ir.Node) -> ir.Node:
    """The state of the last token (B, T, D) -> (B, D), as it is never padding."""
    hidden, _ = call.inputs
    return ir.node("last_of_all", [hidden], domain="bge")


def mask_rows(call: ir.Node) -> ir.Node:
    """The rows as they are, as none is padding."""
    rows, _ = call.inputs
    return ir.node("Identity", [rows])


def project(call: ir.Node) -> ir.Node:
    """A product with the weight (out, in) as it is stored: packed once, when the session is made."""
    return ir.node("FusedMatMul", call.inputs, {"transB": 1}, domain="com.microsoft")


def rms_norm(call: ir.Node) -> ir.Node:
    """ONNX Runtime's root-mean-square norm in one pass."""
    return ir.Node("", "SimplifiedLayerNormalization", call.inputs, attributes=[call.attributes["epsilon"]])


def rotary(call: ir.Node) -> ir.Node:
    """Rotation of all heads in one pass; a single position is that of the first token."""
    x, position, cosines, sines = call.inputs
    inputs = [x, position, cosines, sines]
    return ir.Node("com.microsoft", "RotaryEmbedding", inputs, attributes=[call.attributes["num_heads"]])


def causal_attention(call: ir.Node) -> ir.Node:
    """Grouped-query attention where there is no prefix, else the composed body.

    ONNX Runtime's operator takes a prefix for one text at a time only. Its flash attention, which holds no matrix of
    tokens by tokens, needs the presents named.
    """
    query, key, value, past_key, past_value, no_past, last_indices, tokens = call.inputs
    window = call.attributes["window"].as_int()
    attributes = {
        "num_heads": call.attributes["num_heads"].as_int(),
        "kv_num_heads": call.attributes["kv_num_heads"].as_int(),
        "scale": call.attributes["scale"].as_float(),
        "local_window_size": window if window < NO_WINDOW else -1,
    }
    if "softcap" in call.attributes:
        attributes["softcap"] = call.attributes["softcap"].as_float()
    fused = ir.Node(
        "com.microsoft",
        "GroupQueryAttention",
        [query, key, value, None, None, last_indices, tokens],
        attributes=ir.convenience.convert_attributes(attributes),
        outputs=[ir.Value(name=f"{call.name}.{name}") for name in ("fused", "present_key", "present_value")],
        name=f"{call.name}.GroupQueryAttention",
    )
    composed = ir.Node(
        call.domain,
        call.op_type,
        [query, key, value, past_key, past_value, no_past, last_indices, tokens],
        attributes=call.attributes.values(),
        outputs=[ir.Value(name=f"{call.name}.composed")],
        name=f"{call.name}.composed",
    )
    branches = [
        ir.AttrGraph(name, ir.Graph([], [node.outputs[0]], nodes=[node], name=node.name))
        for name, node in (("then_branch", fused), ("else_branch", composed))
    ]
    return ir.Node("", "If", [no_past], attributes=branches)


SWAPS = {
    "attention_bias": no_bias,
    "attention": multi_head_attention,
    "mean": over_all,
    "max": over_all,
    "mean_sqrt_len": over_all,
    "weighted_mean": over_all,
    "last_token": last_token,
    "mask_rows": mask_rows,
    "project": project,
    "rms_norm": rms_norm,
    "rotary": rotary,
    "causal_attention": causal_attention,
    "causal_attention_softcap": causal_attention,
}
