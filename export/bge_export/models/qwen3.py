"""Qwen3 (`model_type: qwen3`): Qwen3-Embedding, BGE-Reasoner-Embed and other Qwen3 embedding models.

Mirrors transformers' Qwen3Model:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/qwen3/modeling_qwen3.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bge_export.models.decoder import Layout, decoder_family
from bge_export.models.decoder_config import HARMLESS_KEYS, REQUIRED, Sizes, without_windows
from bge_export.models.family import RandomTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Sizes):
    """Sizes of a Qwen3 decoder, without windows."""

    head_dim: int = 128
    sliding_window: int | None = None

    required: ClassVar[dict[str, Any]] = {
        **REQUIRED, "model_type": "qwen3", "hidden_act": "silu", "use_sliding_window": False
    }  # fmt: skip
    harmless: ClassVar[frozenset[str]] = HARMLESS_KEYS | {"max_window_layers"}

    @staticmethod
    def flatten(record: Mapping[str, Any]) -> dict[str, Any]:
        """Flat, without what says that no layer has a window."""
        return without_windows(Sizes.flatten(record))


def layout_of(config: Config) -> Layout:
    """Mistral's, with a norm on each head's queries and keys."""
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
        window=lambda _: None,
        query_norm="self_attn.q_norm",
        key_norm="self_attn.k_norm",
    )


FAMILY = decoder_family(
    Config,
    layout_of,
    half="bfloat16",  # as it was trained: its states may leave float16's range
    tokenizer=RandomTokenizer(
        pieces="unigram",
        first=("<unk>", "<s>", "</s>"),
        last=("<instruct>", "<query>"),
        settings={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"},
    ),
)
