"""XLM-R (`model_type: xlm-roberta`): bge-m3, and every other XLM-R embedding model.

Mirrors transformers' XLMRobertaModel: BERT's layers, one token type, positions that count from behind the padding id:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/xlm_roberta/modeling_xlm_roberta.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from bge_export.checkpoint.weights import Weights
from bge_export.models import bert
from bge_export.models.encoder import HARMLESS_KEYS, Encoder, check_sizes, weight_shapes
from bge_export.models.wanted import Wanted

__all__ = ["HARMLESS_WEIGHTS", "PREFIX", "Config", "build", "position_limit", "weight_shapes"]

PREFIX = "roberta."


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Sizes of an XLM-R encoder."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2  # transformers' default; bge-m3 has 1
    layer_norm_eps: float = 1e-12  # transformers' default; bge-m3 has 1e-5
    pad_token_id: int = 1

    required: ClassVar[dict[str, Any]] = {**bert.Config.required, "model_type": "xlm-roberta"}
    harmless: ClassVar[frozenset[str]] = HARMLESS_KEYS

    def __post_init__(self) -> None:
        check_sizes(self)


# The pooler's two weights, the positions' buffer and a masked-language-model head take no part in the vectors.
HARMLESS_WEIGHTS = ("pooler.", "embeddings.position_ids", "lm_head.")


def position_limit(config: Config) -> int:
    """Tokens that have a position: rows 0 to `pad_token_id` of the table belong to none."""
    return config.max_position_embeddings - config.pad_token_id - 1


def build(config: Config, weights: Weights, wanted: Wanted) -> ir.Model:
    """The graph of a checkpoint, unlowered; see `models.tokens` for its inputs.

    Positions are counted over the ids that are not the padding id, as PyTorch counts them: a text may hold the padding
    token as a word.
    """
    return Encoder.of("xlm-roberta", config, weights, wanted).build(pad_id=config.pad_token_id)
