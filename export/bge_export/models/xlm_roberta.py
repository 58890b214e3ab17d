"""XLM-R (`model_type: xlm-roberta`): bge-m3, and every other XLM-R embedding model.

Mirrors transformers' XLMRobertaModel: BERT's layers, one token type, positions that count from behind the padding id:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/xlm_roberta/modeling_xlm_roberta.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bge_export.models.encoder import REQUIRED, Sizes, encoder_family
from bge_export.models.family import RandomTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Sizes):
    """Sizes of an XLM-R encoder. transformers' defaults; bge-m3 has one token type and an epsilon of 1e-5."""

    pad_token_id: int = 1

    required: ClassVar[dict[str, Any]] = {**REQUIRED, "model_type": "xlm-roberta"}


FAMILY = encoder_family(
    Config,
    prefix="roberta.",
    task_head="lm_head.",
    past_padding=True,
    tokenizer=RandomTokenizer(
        pieces="unigram",
        first=("<s>", "<pad>", "</s>", "<unk>"),
        last=("<mask>",),
        settings={
            "tokenizer_class": "XLMRobertaTokenizer",
            **{f"{kind}_token": f"<{kind}>" for kind in ("pad", "unk", "mask")},
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
        },
    ),
)
