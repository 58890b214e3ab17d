"""Gemma2 (`model_type: gemma2`): bge-multilingual-gemma2.

Mirrors transformers' Gemma2Model, with causal attention:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/gemma2/modeling_gemma2.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bge_export.models.decoder import Layout, decoder_family
from bge_export.models.decoder_config import HARMLESS_KEYS, REQUIRED, Sizes
from bge_export.models.family import RandomTokenizer
from bge_onnx.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Sizes):
    """Sizes of a Gemma2 decoder."""

    head_dim: int = 256
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

    @staticmethod
    def flatten(record: Mapping[str, Any]) -> dict[str, Any]:
        """Flat, without `layer_types` where these are Gemma2's own: a window in even layers."""
        flat: dict[str, Any] = Sizes.flatten(record)
        types = flat.pop("layer_types", None)
        if types is not None and types != [
            "full_attention" if number % 2 else "sliding_attention" for number in range(len(types))
        ]:
            raise CheckpointError(
                f"config.json: expected layer_types to alternate from sliding_attention on, found {types!r:.80}.\n"
                "    Other orders are not supported."
            )
        return flat


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


FAMILY = decoder_family(
    Config,
    layout_of,
    half="bfloat16",  # its states leave float16's range
    neutral_norm=0.0,
    tokenizer=RandomTokenizer(
        pieces="unigram",
        first=("<pad>", "<eos>", "<bos>", "<unk>"),
        last=("<instruct>", "<query>"),
        settings={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    ),
)
