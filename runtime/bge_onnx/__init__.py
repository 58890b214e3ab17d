"""BGE embedding models on ONNX Runtime: bundle and texts in, vectors out."""

from bge_onnx.bundle import Bundle
from bge_onnx.embedder import Embedder
from bge_onnx.embeddings import Embeddings
from bge_onnx.errors import BgeError, BundleError, CheckpointError, InputError, ProviderError
from bge_onnx.scores import colbert_score, colbert_scores, hybrid, lexical_score, similarity, top_k

__all__ = [
    "BgeError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "Embedder",
    "Embeddings",
    "InputError",
    "ProviderError",
    "colbert_score",
    "colbert_scores",
    "hybrid",
    "lexical_score",
    "similarity",
    "top_k",
]
