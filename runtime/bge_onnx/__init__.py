"""BGE embedding models and rerankers on ONNX Runtime: bundle and texts in, vectors and scores out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bge_onnx.bundle.bundle import Bundle
    from bge_onnx.embedder import Embedder
    from bge_onnx.errors import BgeError, BundleError, CheckpointError, InputError, InstallationError, ProviderError
    from bge_onnx.reranker import Ranked, Reranker
    from bge_onnx.vectors.embeddings import Embeddings
    from bge_onnx.vectors.scores import colbert_score, colbert_scores, hybrid, lexical_score, similarity, top_k

__all__ = [
    "BgeError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "Embedder",
    "Embeddings",
    "InputError",
    "InstallationError",
    "ProviderError",
    "Ranked",
    "Reranker",
    "colbert_score",
    "colbert_scores",
    "hybrid",
    "lexical_score",
    "similarity",
    "top_k",
]

_MODULES = {
    "Bundle": "bundle.bundle",
    "Embedder": "embedder",
    "Embeddings": "vectors.embeddings",
    "Ranked": "reranker",
    "Reranker": "reranker",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `bge --help` needs no ONNX Runtime."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES.get(name) or ("errors" if name.endswith("Error") else "vectors.scores")
    value = getattr(importlib.import_module(f"bge_onnx.{module}"), name)
    globals()[name] = value
    return value
