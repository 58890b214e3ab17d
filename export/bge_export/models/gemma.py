"""Gemma (`model_type: gemma`): bge-reranker-v2-gemma.

Mirrors transformers' GemmaModel. It takes `hidden_act: gelu` for the tanh approximation, as we do:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/gemma/modeling_gemma.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bge_export.models.decoder import Layout, decoder_family
from bge_export.models.decoder_config import HARMLESS_KEYS, REQUIRED, Sizes
from bge_export.models.family import RandomTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Sizes):
    """Sizes of a Gemma decoder, without windows."""

    head_dim: int = 256
    sliding_window: int | None = None

    required: ClassVar[dict[str, Any]] = {
        **REQUIRED,
        "model_type": "gemma",
        "hidden_act": "gelu_pytorch_tanh",
        "use_bidirectional_attention": None,
    }
    harmless: ClassVar[frozenset[str]] = HARMLESS_KEYS | {"hidden_activation"}  # transformers 5 reads hidden_act alone

    @staticmethod
    def flatten(record: Mapping[str, Any]) -> dict[str, Any]:
        """Flat, with the activation that transformers takes."""
        flat: dict[str, Any] = Sizes.flatten(record)
        if flat.get("hidden_act", "gelu") == "gelu":
            flat["hidden_act"] = "gelu_pytorch_tanh"
        return flat


def layout_of(config: Config) -> Layout:
    """Two norms a layer, which scale by 1 + weight, and no window."""
    return Layout(
        before_attention="input_layernorm",
        after_attention=None,
        before_mlp="post_attention_layernorm",
        after_mlp=None,
        activation="gated_gelu",
        scale=config.head_width**-0.5,
        softcap=None,
        embedding_scale=config.hidden_size**0.5,
        one_plus_norm=True,
        window=lambda _: None,
    )


FAMILY = decoder_family(
    Config,
    layout_of,
    half="bfloat16",  # as it was trained: its states may leave float16's range
    neutral_norm=0.0,
    tokenizer=RandomTokenizer(
        pieces="unigram",
        first=("<pad>", "<eos>", "<bos>", "<unk>"),
        settings={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    ),
)
