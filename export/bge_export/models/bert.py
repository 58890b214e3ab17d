"""BERT (`model_type: bert`): the twelve BGE models of v1 and v1.5, and every other BERT embedding model.

Mirrors transformers' BertModel, post-norm, erf GELU, absolute positions:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/bert/modeling_bert.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from bge_export.ops import Attributes, Graph
from bge_export.pooling import Pooling, pool
from bge_export.weights import Array, Shape, Weights
from bge_onnx.errors import CheckpointError

PREFIX = "bert."


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Sizes of a BERT encoder."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    required: ClassVar[dict[str, Any]] = {
        "model_type": "bert",
        "hidden_act": "gelu",  # the exact erf form
        "position_embedding_type": "absolute",
        "is_decoder": False,  # causal attention
        "add_cross_attention": False,
        "pruned_heads": {},
    }
    harmless: ClassVar[frozenset[str]] = frozenset({
        "architectures", "_name_or_path", "name_or_path", "transformers_version", "model_max_length",  # origin
        "auto_map",                                                                         # never run
        "attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout",        # training
        "initializer_range", "gradient_checkpointing", "problem_type",                      # training
        "torch_dtype", "dtype",                                                             # storage
        "use_cache", "output_past", "bos_token_id", "eos_token_id", "cross_attention_hidden_size",  # generation
        "tie_word_embeddings", "is_encoder_decoder", "sep_token_id", "cls_token_id",        # heads we do not have
        "id2label", "label2id", "num_labels", "finetuning_task",                            # classifiers
        "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",             # pooler, not used
        "pooler_size_per_head", "pooler_type", "directionality",
        "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward",  # same numbers
        "attn_implementation", "_attn_implementation", "sentence_transformers",
    })  # fmt: skip

    def __post_init__(self) -> None:
        """Raise CheckpointError: heads that do not divide the width."""
        if not self.num_attention_heads or self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"config.json: expected hidden_size to be a multiple of num_attention_heads, found {self.hidden_size} "
                f"and {self.num_attention_heads}.\n    Is it the config.json of these weights?"
            )


# The pooler's two weights, the positions' buffer and a masked-language-model head take no part in the vectors.
HARMLESS_WEIGHTS = ("pooler.", "embeddings.position_ids", "cls.")


def weight_shapes(config: Config) -> dict[str, Shape]:
    """Every weight that the vectors depend on, as PyTorch stores it: linear weights are (out, in)."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, Shape] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, width),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, width),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, width),
    }
    modules: dict[str, Shape] = {"embeddings.LayerNorm": (width,)}
    for layer in range(config.num_hidden_layers):
        modules |= {
            f"encoder.layer.{layer}.attention.self.query": (width, width),
            f"encoder.layer.{layer}.attention.self.key": (width, width),
            f"encoder.layer.{layer}.attention.self.value": (width, width),
            f"encoder.layer.{layer}.attention.output.dense": (width, width),
            f"encoder.layer.{layer}.attention.output.LayerNorm": (width,),
            f"encoder.layer.{layer}.intermediate.dense": (inner, width),
            f"encoder.layer.{layer}.output.dense": (width, inner),
            f"encoder.layer.{layer}.output.LayerNorm": (width,),
        }
    for module, shape in modules.items():
        shapes |= {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
    return shapes


def build(config: Config, weights: Weights, *, pooling: Pooling, normalize: bool, token_states: bool) -> ir.Model:
    """The graph of a checkpoint, unlowered.

    inputs   input_ids, attention_mask (B, T) int64, padded on the right
    outputs  dense (B, D) float32; with `token_states` also last_hidden_state (B, T, D)

    Without `token_states` and with CLS pooling, the last layer computes that one token of each text alone.
    """
    graph = Graph("bert")
    encoder = Encoder(graph, config, weights)
    input_ids = graph.input("input_ids", ["B", "T"])
    mask = graph.input("attention_mask", ["B", "T"])
    bias = graph.call("attention_bias", "attention_bias", mask)
    hidden = encoder.embeddings(input_ids)
    last = config.num_hidden_layers - 1
    for layer in range(config.num_hidden_layers):
        queries = hidden
        if layer == last and pooling == "cls" and not token_states:
            queries = graph.call("first_token", "pooling", hidden)
        hidden = encoder.layer(layer, queries, hidden, bias)
    dense = pool(graph, hidden, mask, pooling)
    if normalize:
        dense = graph.call("l2_normalize", "normalize", dense)
    outputs: dict[str, tuple[ir.Value, list[int | str]]] = {"dense": (dense, ["B", config.hidden_size])}
    if token_states:
        outputs["last_hidden_state"] = (hidden, ["B", "T", config.hidden_size])
    return graph.finish(outputs)


@dataclass(frozen=True, slots=True)
class Encoder:
    """The parts of the model, added to `graph` when called."""

    graph: Graph
    config: Config
    weights: Weights

    def embeddings(self, input_ids: ir.Value) -> ir.Value:
        """Word, token type and position embeddings, normalised: (B, T) int64 -> (B, T, D).

        All tokens of one text have type 0, so its row is added to the word table once, here. The sum (word + type) +
        position keeps PyTorch's order: it is bit-identical.
        """
        name = "embeddings.word_embeddings.weight"

        def words() -> Array:
            table: Array = self.weights.read(name) + self.weights.read("embeddings.token_type_embeddings.weight")[0]
            return table

        words_table = self.graph.weight(self.weights.lazy(name, words, self.weights.shapes[name]))
        positions_table = self.weight("embeddings.position_embeddings.weight")
        summed = self.graph.call("embeddings", "embeddings", input_ids, words_table, positions_table)
        return self.layer_norm("embeddings.LayerNorm", summed)

    def layer(self, number: int, queries: ir.Value, hidden: ir.Value, bias: ir.Value) -> ir.Value:
        """One encoder layer: `queries` (B, Q, D) look at `hidden` (B, T, D); returns (B, Q, D)."""
        module = f"encoder.layer.{number}"
        query = self.linear(f"{module}.attention.self.query", queries)
        key = self.linear(f"{module}.attention.self.key", hidden)
        value = self.linear(f"{module}.attention.self.value", hidden)
        heads = self.config.num_attention_heads
        head_width = self.config.hidden_size // heads
        sizes: Attributes = {"num_heads": heads, "heads": [0, 0, heads, head_width], "scale": float(head_width**-0.5)}
        context = self.graph.call("attention", f"{module}.attention.self", query, key, value, bias, attributes=sizes)
        attended = self.linear(f"{module}.attention.output.dense", context)
        attended = self.graph.call("residual", f"{module}.attention.output", attended, queries)
        attended = self.layer_norm(f"{module}.attention.output.LayerNorm", attended)
        inner = self.linear(f"{module}.intermediate.dense", attended)
        inner = self.graph.call("gelu", f"{module}.intermediate", inner)
        outer = self.linear(f"{module}.output.dense", inner)
        outer = self.graph.call("residual", f"{module}.output", outer, attended)
        return self.layer_norm(f"{module}.output.LayerNorm", outer)

    def linear(self, module: str, x: ir.Value) -> ir.Value:
        """`x` (…, in) times the weight, stored here as (in, out), plus the bias."""
        name = f"{module}.weight"

        def transposed() -> Array:
            return np.ascontiguousarray(self.weights.read(name).T)

        matrix = self.graph.weight(self.weights.lazy(name, transposed, self.weights.shapes[name][::-1]))
        return self.graph.call("linear", module, x, matrix, self.weight(f"{module}.bias"))

    def layer_norm(self, module: str, x: ir.Value) -> ir.Value:
        """`x` (…, D) normalised over D, scaled and shifted."""
        scale, bias = self.weight(f"{module}.weight"), self.weight(f"{module}.bias")
        return self.graph.call("layer_norm", module, x, scale, bias, attributes={"epsilon": self.config.layer_norm_eps})

    def weight(self, name: str) -> ir.Value:
        """A weight as the checkpoint has it."""
        return self.graph.weight(self.weights.lazy(name, lambda: self.weights.read(name), self.weights.shapes[name]))
