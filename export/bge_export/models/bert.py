"""BERT (`model_type: bert`): the twelve BGE models of v1 and v1.5, and every other BERT embedding model.

Mirrors transformers' BertModel, post-norm, erf GELU, absolute positions:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/bert/modeling_bert.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from bge_export.checkpoint.weights import Weights
from bge_export.models.encoder import HARMLESS_KEYS, Encoder, check_sizes, weight_shapes
from bge_export.models.wanted import Wanted

__all__ = ["HARMLESS_WEIGHTS", "PREFIX", "Config", "build", "position_limit", "weight_shapes"]

PREFIX = "bert."


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Sizes of a BERT encoder."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    required: ClassVar[dict[str, Any]] = {
        "model_type": "bert",
        "hidden_act": "gelu",  # the exact erf form
        "position_embedding_type": "absolute",
        "is_decoder": False,  # causal attention
        "add_cross_attention": False,
        "pruned_heads": {},
    }
    harmless: ClassVar[frozenset[str]] = HARMLESS_KEYS

    def __post_init__(self) -> None:
        check_sizes(self)


# The pooler's two weights, the positions' buffer and a masked-language-model head take no part in the vectors.
HARMLESS_WEIGHTS = ("pooler.", "embeddings.position_ids", "cls.")


def position_limit(config: Config) -> int:
    """Tokens that have a position."""
    return config.max_position_embeddings


def build(config: Config, weights: Weights, wanted: Wanted) -> ir.Model:
    """The graph of a checkpoint, unlowered; see `models.tokens` for its inputs."""
    return Encoder.of("bert", config, weights, wanted).build()
