"""FlagEmbedding's classes on bundles: the same arguments, defaults, return types and shapes, without PyTorch.

    from bge_onnx.flag import BGEM3FlagModel    # was: from FlagEmbedding import BGEM3FlagModel
    model = BGEM3FlagModel("bge-m3-cpu-fp32")   # a bundle, or a Hub repository that holds one

Mirrors FlagEmbedding 1.4.2, FlagEmbedding/inference. What differs: a bundle has one precision and one provider.
`use_fp16` and `use_bf16` only choose the type of the results from GPUs; on a CPU all is float32, as in FlagEmbedding.
For another precision, export another bundle. `devices` of another provider are refused. An empty list gives empty
arrays. Results do not depend on the batch, except those of `compute_score`, as in FlagEmbedding.
"""

from bge_onnx.flag.auto import FlagAutoModel
from bge_onnx.flag.decoder import FlagICLModel, FlagLLMModel
from bge_onnx.flag.encoder import FlagModel
from bge_onnx.flag.m3 import BGEM3FlagModel
from bge_onnx.flag.reranker import FlagAutoReranker, FlagLLMReranker, FlagReranker

__all__ = [
    "BGEM3FlagModel",
    "FlagAutoModel",
    "FlagAutoReranker",
    "FlagICLModel",
    "FlagLLMModel",
    "FlagLLMReranker",
    "FlagModel",
    "FlagReranker",
]
