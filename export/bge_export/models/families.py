"""One file per `model_type`: its configuration, its weights, its graph."""

from __future__ import annotations

from types import ModuleType

from bge_export.models import bert, gemma2, mistral, xlm_roberta

MODELS: dict[str, ModuleType] = {
    "bert": bert,
    "xlm-roberta": xlm_roberta,
    "mistral": mistral,
    "gemma2": gemma2,
}
