"""The targets a bundle can be lowered for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from bge_export.lowering import Swap, cpu_fp32, cpu_nbits, portable
from bge_export.weights import Rounding
from bge_onnx.bundle import Layout, Measure

ENCODERS = ("bert", "xlm-roberta")
DECODERS = ("mistral", "gemma2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Precision and provider, and what the bundle looks like."""

    provider: str
    layout: Layout
    swaps: Mapping[str, Swap]
    measure: Measure = "difference"  # of vectors from float32 PyTorch's
    limit: float = 2e-5  # largest value of that measure
    rounding: Rounding | None = None  # what that PyTorch does with its weights first
    bytes_per_weight: float = 4
    graph: str = "model.onnx"
    weights: str = "model.onnx_data"  # beside the graph
    plain: bool = False  # as other libraries expect it: token states always, vectors as the checkpoint wants them only
    outputs: Mapping[str, str] = field(default_factory=dict)  # output -> its name where others look for it
    model_types: tuple[str, ...] = ENCODERS


TARGETS = {
    "cpu-fp32": Target(
        provider="CPUExecutionProvider",
        layout="equal",
        swaps=cpu_fp32.SWAPS,
        model_types=(*ENCODERS, *DECODERS),
    ),
    "cpu-int8": Target(
        provider="CPUExecutionProvider",
        layout="equal",
        swaps=cpu_nbits.swaps(8),
        rounding=partial(cpu_nbits.rounded, bits=8),
        measure="1 - cosine",
        limit=0.01,
        bytes_per_weight=1.1,
        model_types=DECODERS,
    ),
    "cpu-int4": Target(
        provider="CPUExecutionProvider",
        layout="equal",
        swaps=cpu_nbits.swaps(4),
        rounding=partial(cpu_nbits.rounded, bits=4),
        measure="1 - cosine",
        limit=0.2,
        bytes_per_weight=0.8,  # the word table has 8 bits
        model_types=DECODERS,
    ),
    # sentence-transformers, Optimum and transformers.js look for onnx/model.onnx and its last_hidden_state
    "portable": Target(
        provider="CPUExecutionProvider",
        layout="padded",
        swaps=portable.SWAPS,
        graph="onnx/model.onnx",
        plain=True,
        outputs={"dense": "sentence_embedding", "token_states": "last_hidden_state"},
    ),
}
