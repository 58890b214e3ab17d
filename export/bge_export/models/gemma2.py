"""Gemma2 (`model_type: gemma2`): bge-multilingual-gemma2.

Mirrors transformers' Gemma2Model, with causal attention:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/gemma2/modeling_gemma2.py
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
from bge_onnx.errors import CheckpointError

__all__ = ["HARMLESS_WEIGHTS", "PREFIX", "Config", "build", "position_limit", "weight_shapes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Sizes of a Gemma2 decoder."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    max_position_embeddings: int
    head_dim: int = 256
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    sliding_window: int | None = 4096
    query_pre_attn_scalar: int = 256
    attn_logit_softcapping: float | None = 50.0

    required: ClassVar[dict[str, Any]] = {
        **REQUIRED,
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": None,
    }
    # transformers reads hidden_activation and sliding_window; the other two are BAAI's copies of them
    harmless: ClassVar[frozenset[str]] = HARMLESS_KEYS | {"hidden_act", "sliding_window_size"}

    def __post_init__(self) -> None:
        decoder.check_sizes(self)

    @staticmethod
    def flatten(record: dict[str, Any]) -> dict[str, Any]:
        """Flat, without `layer_types` where these are Gemma2's own: a window in even layers."""
        flat: dict[str, Any] = decoder.flatten(record)
        types = flat.pop("layer_types", None)
        if types is not None and types != [
            "full_attention" if number % 2 else "sliding_attention" for number in range(len(types))
        ]:
            raise CheckpointError(
                f"config.json: expected layer_types to alternate from sliding_attention on, found {types!r:.80}.\n"
                "    Other orders are not supported."
            )
        return flat

    @property
    def head_width(self) -> int:
        """Components of a head."""
        return self.head_dim


def layout_of(config: Config) -> Layout:
    """Four norms a layer, which scale by 1 + weight; scores with a soft cap; a window in even layers."""
    return Layout(
        before_attention="input_layernorm",
        after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
        activation="gated_gelu",
        scale=config.query_pre_attn_scalar**-0.5,
        softcap=config.attn_logit_softcapping,
        embedding_scale=config.hidden_size**0.5,
        one_plus_norm=True,
        window=lambda number: None if number % 2 else config.sliding_window,
    )


def position_limit(config: Config) -> int:
    """Tokens that have a position."""
    return config.max_position_embeddings


def weight_shapes(config: Config) -> dict[str, Shape]:
    """Every weight that the vectors depend on."""
    return decoder.weight_shapes(config, layout_of(config))


def build(config: Config, weights: Weights, wanted: Wanted) -> ir.Model:
    """The graph of a checkpoint, unlowered; see `Decoder.build`."""
    return Decoder(Graph("gemma2"), config, layout_of(config), weights).build(wanted)
