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
from bge_export.models.families import MODELS
from bge_export.models.family import Family
from bge_onnx.bundle.graph_names import Layout
from bge_onnx.bundle.records import Storage
from bge_onnx.run.cuda import CUDA

CPU = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Precision and provider, which models have it, and what the bundle looks like.

    causal        for decoders, else for encoders
    precision     of its layers: a family takes float16 or bfloat16 as its `half` says
    lowering      of a model's configuration
    limits        of errors against PyTorch
    on_bytes      linear layers take bytes, so calibration, operators and bits of activations can be chosen
    stores        how matrices are stored, unless --weights says otherwise
    stores_fp16   whether --weights fp16 is allowed
    weights       the file beside the graph
    plain         as other libraries expect it: token states always, vectors as the checkpoint wants them only
    outputs       output -> its name where others look for it
    """

    name: str
    causal: bool
    provider: str
    layout: Layout
    lowering: Callable[[Any, Int8 | None], Lowering]
    precision: Precision = "float32"
    limits: Callable[[Any, Grid], Limits] = lambda *_: Limits()
    on_bytes: bool = False
    bytes_per_weight: float = 4
    stores: Storage = "fp32"
    stores_fp16: bool = False
    graph: str = "model.onnx"
    weights: str = "model.onnx_data"
    plain: bool = False
    outputs: Mapping[str, str] = field(default_factory=dict)


def _nbits(name: str, bits: int, *, bytes_per_weight: float) -> Target:
    return Target(
        name=name,
        causal=True,
        provider=CPU,
        layout="equal",
        lowering=lambda *_: cpu_nbits.lowering(bits),
        limits=lambda *_: Limits(measure="1 - cosine", vectors=0.03, sparse=0.25),  # such vectors are a quarter apart
        bytes_per_weight=bytes_per_weight,
    )


def _decoder_on_gpu(name: str, precision: Precision, stores: Storage) -> Target:
    return Target(
        name=name,
        causal=True,
        provider=CUDA,
        layout="whole",
        precision=precision,
        lowering=lambda *_: cuda_decoder.lowering(precision),
        bytes_per_weight=2,
        stores=stores,
    )


TABLE = (
    Target(
        name="cpu-fp32",
        causal=False,
        provider=CPU,
        layout="equal",
        lowering=lambda *_: Lowering(cpu_fp32.SWAPS),
        stores_fp16=True,
    ),
    Target(
        name="cpu-int8",
        causal=False,
        provider=CPU,
        layout="equal",
        lowering=operators.lowering,
        on_bytes=True,
        limits=cpu_int8.limits,
        bytes_per_weight=1.1,
    ),
    Target(name="cuda-fp32", causal=False, provider=CUDA, layout="packed", lowering=lambda *_: Lowering(cuda.SWAPS)),
    Target(
        name="cuda-fp16",
        causal=False,
        provider=CUDA,
        layout="packed",
        precision="float16",
        lowering=lambda *_: Lowering(cuda.HALF_SWAPS, finish=half.compute, precision="float16"),
        bytes_per_weight=2,
        stores="fp16",
    ),
    # sentence-transformers, Optimum and transformers.js look for onnx/model.onnx and its last_hidden_state
    Target(
        name="portable",
        causal=False,
        provider=CPU,
        layout="padded",
        lowering=lambda *_: Lowering(portable.SWAPS),
        graph="onnx/model.onnx",
        plain=True,
        outputs={"dense": "sentence_embedding", "token_states": "last_hidden_state", "score": "logits"},
    ),
    Target(name="cpu-fp32", causal=True, provider=CPU, layout="equal", lowering=lambda *_: Lowering(cpu_fp32.SWAPS)),
    _nbits("cpu-int8", 8, bytes_per_weight=1.1),
    _nbits("cpu-int4", 4, bytes_per_weight=0.7),  # the word table has 8 bits
    _decoder_on_gpu("cuda-fp16", "float16", "fp16"),
    _decoder_on_gpu("cuda-bf16", "bfloat16", "bf16"),
)


def targets_of(family: Family) -> dict[str, Target]:
    """The targets that a family of models has, by name."""
    return {
        target.name: target
        for target in TABLE
        if target.causal == family.causal and target.precision in ("float32", family.half)
    }


TARGETS: Mapping[str, Mapping[str, Target]] = {name: targets_of(family) for name, family in MODELS.items()}
"""By model type and name."""

NAMES = tuple(dict.fromkeys(name for targets in TARGETS.values() for name in targets))
