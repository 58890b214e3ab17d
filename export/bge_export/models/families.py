"""The families that we know, by `model_type`: one file each."""

from __future__ import annotations

from bge_export.models import bert, gemma, gemma2, mistral, qwen2, qwen3, xlm_roberta
from bge_export.models.family import Family

MODELS: dict[str, Family] = {
    family.Config.required["model_type"]: family
    for family in (
        bert.FAMILY,
        xlm_roberta.FAMILY,
        mistral.FAMILY,
        gemma.FAMILY,
        gemma2.FAMILY,
        qwen2.FAMILY,
        qwen3.FAMILY,
    )
}
