"""One file per `model_type`: its configuration, its weights, its graph."""

from types import ModuleType

from bge_export.models import bert

MODELS: dict[str, ModuleType] = {"bert": bert}
