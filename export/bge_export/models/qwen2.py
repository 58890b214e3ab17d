"""Qwen2 (`model_type: qwen2`): bge-code-v1, gte-Qwen2 and every other Qwen2 embedding model with causal attention.

Mirrors transformers' Qwen2Model:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/qwen2/modeling_qwen2.py
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
    """Sizes of a Qwen2 decoder, without windows."""

    sliding_window: int | None = None

    required: ClassVar[dict[str, Any]] = {
        **REQUIRED, "model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": False
    }  # fmt: skip
    harmless: ClassVar[frozenset[str]] = HARMLESS_KEYS | {"max_window_layers"}

    @staticmethod
    def flatten(record: Mapping[str, Any]) -> dict[str, Any]:
        """Flat, without what says that no layer has a window."""
        return without_windows(Sizes.flatten(record))


def layout_of(config: Config) -> Layout:
    """Mistral's, with biases on queries, keys and values."""
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
        biased=frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}),
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
