"""How the states of a text's tokens become its vector, in the graph."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from bge_export.ops import Graph

Pooling = Literal["cls", "mean", "last"]


def pool(graph: Graph, hidden: ir.Value, attention_mask: ir.Value, pooling: Pooling) -> ir.Value:
    """One vector (B, D) per text from token states.

    hidden          (B, T, D), padded on the right; for `cls` a first token alone, (B, 1, D), is as good
    attention_mask  (B, T) int64

    As sentence-transformers' Pooling module with the modes cls, mean and lasttoken.
    """
    if pooling == "mean":
        return graph.call("mean", "pooling", hidden, attention_mask)
    if pooling == "last":
        return graph.call("last_token", "pooling", hidden, attention_mask)
    token = graph.call("first_token", "pooling", hidden)
    return graph.call("drop_token_axis", "pooling", token)
