"""FlagEmbedding's classes on bundles: the same arguments, defaults, return types and shapes, without PyTorch.

    from bge_onnx.flag import BGEM3FlagModel    # was: from FlagEmbedding import BGEM3FlagModel
    model = BGEM3FlagModel("bge-m3-cpu-fp32")   # a bundle, or a Hub repository that holds one

Mirrors FlagEmbedding 1.4.2, FlagEmbedding/inference. What differs: a bundle has one precision and one provider, so
`use_fp16`, `use_bf16` and `devices` choose nothing, and are refused where the bundle cannot honour them; an empty list
gives empty arrays; results do not depend on the batch, but for `compute_score`, which keeps that behaviour.
"""

from bge_onnx.flag.auto import FlagAutoModel
from bge_onnx.flag.encoder import FlagModel
from bge_onnx.flag.m3 import BGEM3FlagModel

__all__ = ["BGEM3FlagModel", "FlagAutoModel", "FlagModel"]
