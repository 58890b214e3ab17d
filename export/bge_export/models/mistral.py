"""Mistral (`model_type: mistral`): bge-en-icl, and every other Mistral embedding model with causal attention.

Mirrors transformers' MistralModel:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/mistral/modeling_mistral.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from bge_export.checkpoint.weights import Shape, Weights
from bge_export.graph.ops import Graph
from bge_export.models import decoder
from bge_export.models.decoder import HARMLESS_KEYS, HARMLESS_WEIGHTS, PREFIX, REQUIRED, Decoder, Layout
from bge_export.models.wanted import Wanted

__all__ = ["HARMLESS_WEIGHTS", "PREFIX", "Config", "build", "position_limit", "weight_shapes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Sizes of a Mistral decoder."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    max_position_embeddings: int
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6  # transformers' default; bge-en-icl has 1e-5
    rope_theta: float = 10000.0
    sliding_window: int | None = 4096

    required: ClassVar[dict[str, Any]] = {**REQUIRED, "model_type": "mistral", "hidden_act": "silu"}
    harmless: ClassVar[frozenset[str]] = HARMLESS_KEYS
    flatten = staticmethod(decoder.flatten)

    def __post_init__(self) -> None:
        decoder.check_sizes(self)

    @property
    def head_width(self) -> int:
        """Components of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


def layout_of(config: Config) -> Layout:
    """Two norms a layer, a window in all of them."""
    return Layout(
        before_attention="input_layernorm",
        after_attention=None,
        before_mlp="post_attention_layernorm",
        after_mlp=None,
        activation="gated_silu",
        scale=config.head_width**-0.5,
        softcap=None,
        embedding_scale=1.0,
        one_plus_norm=False,
        window=lambda _: config.sliding_window,
    )


def position_limit(config: Config) -> int:
    """Tokens that have a position."""
    return config.max_position_embeddings


def weight_shapes(config: Config) -> dict[str, Shape]:
    """Every weight that the vectors depend on."""
    return decoder.weight_shapes(config, layout_of(config))


def build(config: Config, weights: Weights, wanted: Wanted) -> ir.Model:
    """The graph of a checkpoint, unlowered; see `Decoder.build`."""
    return Decoder(Graph("mistral"), config, layout_of(config), weights).build(wanted)
