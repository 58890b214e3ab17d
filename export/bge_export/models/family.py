"""What a family of models declares: one record a `model_type`, which everything else asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from bge_export.checkpoint.weights import Shape, Weights
from bge_export.models.graph_outputs import GraphOutputs


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomTokenizer:
    """The tokenizer that a checkpoint of random weights gets.

    pieces       "wordpiece" with BERT's special tokens, or "unigram"
    first, last  special tokens at the beginning and at the end of a unigram vocabulary
    settings     of tokenizer_config.json
    """

    pieces: Literal["wordpiece", "unigram"]
    settings: dict[str, str]
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A `model_type` of transformers.

    Config            a frozen dataclass of sizes, for `parse_config`
    prefix            of the weights' names in a task's model, as "bert."
    harmless_weights  beginnings of the names of weights that take no part in the vectors
    weight_shapes     of a configuration: every weight that the vectors depend on, as PyTorch stores it
    position_limit    of a configuration: tokens that have a position
    build             the graph of a checkpoint, unlowered
    causal            tokens look back only, and the last one's state is the vector
    half              what GPUs compute its layers in, where not in float32
    neutral_norm      the value of a norm's weight that changes nothing
    """

    Config: type[Any]
    prefix: str
    harmless_weights: tuple[str, ...]
    weight_shapes: Callable[[Any], dict[str, Shape]]
    position_limit: Callable[[Any], int]
    build: Callable[[Any, Weights, GraphOutputs], ir.Model]
    causal: bool
    tokenizer: RandomTokenizer
    half: Literal["float16", "bfloat16"] = "float16"
    neutral_norm: float = 1.0
