"""How the states of a text's tokens become its vector, in the graph."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from bge_export.graph.ops import Graph

Mode = Literal["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last"]
Pooling = Literal["cls", "mean", "last"]
"""Those that BGE's models have, and that a user can choose."""

Activation = Literal["identity", "tanh", "relu", "gelu", "sigmoid", "silu"]

MASKED = {"max": "max", "mean": "mean", "mean_sqrt_len": "mean_sqrt_len", "weightedmean": "weighted_mean"}
"""Operations on all tokens, by mode."""


def pool(graph: Graph, hidden: ir.Value, attention_mask: ir.Value, pooling: str) -> ir.Value:
    """One vector (B, D) per text from token states, or (B, n D) of n modes with + between, one behind another.

    hidden          (B, T, D), padded on the right; for `cls` a first token alone, (B, 1, D), is as good
    attention_mask  (B, T) int64

    As sentence-transformers' Pooling module:
    https://github.com/huggingface/sentence-transformers/blob/v5.1.0/sentence_transformers/models/Pooling.py
    """
    parts = [_pool(graph, hidden, attention_mask, mode) for mode in pooling.split("+")]
    return parts[0] if len(parts) == 1 else graph.join("pooling", parts, axis=-1)


def _pool(graph: Graph, hidden: ir.Value, attention_mask: ir.Value, mode: str) -> ir.Value:
    if mode in MASKED:
        return graph.call(MASKED[mode], "pooling", hidden, attention_mask)
    if mode == "last":
        return graph.call("last_token", "pooling", hidden, attention_mask)
    token = graph.call("first_token", "pooling", hidden)
    return graph.call("drop_token_axis", "pooling", token)
