"""The targets a bundle can be lowered for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bge_export.lowering import cpu_fp32, cpu_nbits, cuda, cuda_decoder, half, portable
from bge_export.lowering.int8 import cpu_int8, operators
from bge_export.lowering.int8.operators import Int8
from bge_export.lowering.int8.rounding import Grid
from bge_export.lowering.limits import Limits
from bge_export.lowering.lower import Lowering, Precision
from bge_onnx.bundle.graph_names import Layout
from bge_onnx.bundle.records import Storage
from bge_onnx.run.cuda import CUDA

DECODERS = ("mistral", "gemma2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Precision and provider, and what the bundle looks like."""

    provider: str
    layout: Layout
    lowering: Callable[[Any, Int8 | None], Lowering]  # of a model's configuration
    limits: Callable[[Any, Grid], Limits] = lambda *_: Limits()  # of errors against PyTorch
    on_bytes: bool = False  # linear layers take bytes: there are calibration, operators, bits of activations to choose
    bytes_per_weight: float = 4
    stores: Storage = "fp32"  # matrices, where --weights says nothing else
    graph: str = "model.onnx"
    weights: str = "model.onnx_data"  # beside the graph
    plain: bool = False  # as other libraries expect it: token states always, vectors as the checkpoint wants them only
    outputs: Mapping[str, str] = field(default_factory=dict)  # output -> its name where others look for it


CPU_FP32 = Target(provider="CPUExecutionProvider", layout="equal", lowering=lambda *_: Lowering(cpu_fp32.SWAPS))

ENCODER_TARGETS = {
    "cpu-fp32": CPU_FP32,
    "cpu-int8": Target(
        provider="CPUExecutionProvider",
        layout="equal",
        lowering=operators.lowering,
        on_bytes=True,
        limits=cpu_int8.limits,
        bytes_per_weight=1.1,
    ),
    "cuda-fp32": Target(provider=CUDA, layout="packed", lowering=lambda *_: Lowering(cuda.SWAPS)),
    "cuda-fp16": Target(
        provider=CUDA,
        layout="packed",
        lowering=lambda *_: Lowering(cuda.SWAPS, finish=half.compute, precision="float16"),
        bytes_per_weight=2,
        stores="fp16",
    ),
    # sentence-transformers, Optimum and transformers.js look for onnx/model.onnx and its last_hidden_state
    "portable": Target(
        provider="CPUExecutionProvider",
        layout="padded",
        lowering=lambda *_: Lowering(portable.SWAPS),
        graph="onnx/model.onnx",
        plain=True,
        outputs={"dense": "sentence_embedding", "token_states": "last_hidden_state"},
    ),
}


def _nbits(bits: int, *, bytes_per_weight: float) -> Target:
    return Target(
        provider="CPUExecutionProvider",
        layout="equal",
        lowering=lambda *_: cpu_nbits.lowering(bits),
        limits=lambda *_: Limits(measure="1 - cosine", vectors=0.03),
        bytes_per_weight=bytes_per_weight,
    )


def _on_gpu(precision: Precision, stores: Storage) -> Target:
    return Target(
        provider=CUDA,
        layout="whole",
        lowering=lambda *_: cuda_decoder.lowering(precision),
        bytes_per_weight=2,
        stores=stores,
    )


CPU_DECODER_TARGETS = {
    "cpu-fp32": CPU_FP32,
    "cpu-int8": _nbits(8, bytes_per_weight=1.1),
    "cpu-int4": _nbits(4, bytes_per_weight=0.7),  # the word table has 8 bits
}

TARGETS: Mapping[str, Mapping[str, Target]] = {
    "bert": ENCODER_TARGETS,
    "xlm-roberta": ENCODER_TARGETS,
    "mistral": CPU_DECODER_TARGETS | {"cuda-fp16": _on_gpu("float16", "fp16")},
    "gemma2": CPU_DECODER_TARGETS | {"cuda-bf16": _on_gpu("bfloat16", "bf16")},  # its states leave float16's range
}
"""By model type and name."""

NAMES = tuple(dict.fromkeys(name for targets in TARGETS.values() for name in targets))
