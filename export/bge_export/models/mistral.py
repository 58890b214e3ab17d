"""Mistral (`model_type: mistral`): bge-en-icl, and every other Mistral embedding model with causal attention.

Mirrors transformers' MistralModel:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/mistral/modeling_mistral.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bge_export.models.decoder import Layout, decoder_family
from bge_export.models.decoder_config import REQUIRED, Sizes
from bge_export.models.family import RandomTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Sizes):
    """Sizes of a Mistral decoder. transformers' defaults; bge-en-icl has an epsilon of 1e-5."""

    required: ClassVar[dict[str, Any]] = {**REQUIRED, "model_type": "mistral", "hidden_act": "silu"}


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


FAMILY = decoder_family(
    Config,
    layout_of,
    tokenizer=RandomTokenizer(
        pieces="unigram",
        first=("<unk>", "<s>", "</s>"),
        last=("<instruct>", "<query>", "<response>"),
        settings={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"},
    ),
)
