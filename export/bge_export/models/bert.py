"""BERT (`model_type: bert`): the twelve BGE models of v1 and v1.5, and every other BERT embedding model.

Mirrors transformers' BertModel, post-norm, erf GELU, absolute positions:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/bert/modeling_bert.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bge_export.models.encoder import REQUIRED, Sizes, encoder_family
from bge_export.models.family import RandomTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Sizes):
    """Sizes of a BERT encoder."""

    required: ClassVar[dict[str, Any]] = {**REQUIRED, "model_type": "bert"}


FAMILY = encoder_family(
    Config,
    prefix="bert.",
    task_head="cls.",
    tokenizer=RandomTokenizer(
        pieces="wordpiece",
        settings={
            "tokenizer_class": "BertTokenizer",
            **{f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")},
        },
    ),
)
