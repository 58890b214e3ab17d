"""A bundle as what its heads make it: an Embedder, or a Reranker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.heads import SCORE
from bge_onnx.bundle.hub import find_bundle
from bge_onnx.embedder import Embedder
from bge_onnx.reranker import Reranker


def open_model(bundle: str | Path, **options: Any) -> Embedder | Reranker:
    """Open a bundle with the options of `Embedder.open`. Raises BundleError, ProviderError, InputError."""
    places = {name: options.get(name) for name in ("revision", "cache_dir")}
    found = Bundle.open(find_bundle(bundle, **places))
    return (Reranker if SCORE in found.outputs else Embedder).open(bundle, **options)
