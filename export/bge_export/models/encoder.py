"""The encoder that BERT and XLM-R share: post-norm layers with erf GELU, the last layer pruned.

Mirrors transformers' BertLayer and XLMRobertaLayer, which are the same:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/bert/modeling_bert.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from bge_export.checkpoint.weights import Array, Shape, Weights
from bge_export.models.encoder_heads import HeadedEncoder
from bge_export.models.family import Family, RandomTokenizer
from bge_export.models.graph_outputs import GraphOutputs
from bge_onnx.errors import CheckpointError

# Of a `config.json`: what transformers defines for these models and what changes nothing of a forward pass.
HARMLESS_KEYS = frozenset({
    "attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout", "initializer_range",  # training
    "use_cache", "bos_token_id", "eos_token_id",                                        # generation
    "tie_word_embeddings",                                                              # heads we do not have
    "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",             # pooler, not used
    "pooler_size_per_head", "pooler_type", "directionality",
})  # fmt: skip


# Keys that change the forward pass, with the only value that our graph computes.
REQUIRED: dict[str, Any] = {
    "hidden_act": "gelu",  # the exact erf form
    "position_embedding_type": "absolute",
    "is_decoder": False,  # causal attention
    "add_cross_attention": False,
    "pruned_heads": {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes that every encoder of this kind has; a family adds `required`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    required: ClassVar[dict[str, Any]] = REQUIRED
    harmless: ClassVar[frozenset[str]] = HARMLESS_KEYS

    def __post_init__(self) -> None:
        if not self.num_attention_heads or self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"config.json: expected hidden_size to be a multiple of num_attention_heads, found {self.hidden_size} "
                f"and {self.num_attention_heads}.\n    Is it the config.json of these weights?"
            )


def encoder_family(
    config: type[Sizes], *, prefix: str, task_head: str, tokenizer: RandomTokenizer, past_padding: bool = False
) -> Family:
    """A family of encoders.

    task_head     the beginning of the names of a masked-language-model head's weights
    past_padding  as in PyTorch, only ids other than the padding id have positions, and these count from the table's
                  row behind the padding id; a text may hold the padding token as a word
    """
    model_type = config.required["model_type"]

    def build(sizes: Sizes, weights: Weights, wanted: GraphOutputs) -> ir.Model:
        encoder = Encoder.of(model_type, sizes, weights, wanted)
        return encoder.build(pad_id=sizes.pad_token_id if past_padding else None)

    def position_limit(sizes: Sizes) -> int:
        return sizes.max_position_embeddings - (sizes.pad_token_id + 1 if past_padding else 0)

    return Family(
        Config=config,
        prefix=prefix,
        # The pooler's two weights, the positions' buffer and a language model's head take no part in the vectors.
        harmless_weights=("pooler.", "embeddings.position_ids", task_head),
        weight_shapes=weight_shapes,
        position_limit=position_limit,
        build=build,
        causal=False,
        tokenizer=tokenizer,
    )


def weight_shapes(config: Sizes) -> dict[str, Shape]:
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


@dataclass(frozen=True, slots=True)
class Encoder(HeadedEncoder[Sizes]):
    """The parts of the model, added to `graph` when called."""

    def words(self) -> ir.Value:
        """Word embeddings of the tokens, with token type 0 added.

        All tokens of one text have type 0, so its row is added to the table once, here; of a pair each has its own.
        The sum (word + type) + position keeps PyTorch's order: it is bit-identical.
        """
        name, types_name = "embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"

        def rows(start: int, stop: int) -> Array:
            words = self.weights.read(name, rows=slice(start, stop))
            table: Array = words if self.inputs.types else words + self.weights.read(types_name)[0]
            return table

        table = self.graph.weight(self.weights.lazy_rows(name, rows))
        words = self.graph.call("lookup", "embeddings.word_embeddings", self.inputs.ids, table)
        if self.inputs.types is None:
            return words
        module = "embeddings.token_type_embeddings"
        types = self.graph.call("rows", module, self.weight(types_name), self.inputs.types)
        return self.graph.call("residual", module, words, types)

    def build(self, *, pad_id: int | None = None) -> ir.Model:
        """The whole model; `pad_id` where positions count past the padding id. Outputs are float32."""
        inputs = self.inputs
        positions = self.weight("embeddings.position_embeddings.weight")
        summed = inputs.embed(self.words(), positions, pad_id)
        hidden = self.layer_norm("embeddings.LayerNorm", summed)
        last = self.config.num_hidden_layers - 1
        for number in range(last):
            hidden = self.layer(number, hidden, hidden)
        states = self.layer(last, inputs.before_last(hidden), hidden, last=True)
        return self.finish(states)

    def layer(self, number: int, queries: ir.Value, hidden: ir.Value, *, last: bool = False) -> ir.Value:
        """Layer `number` for `queries` (…, Q, D) that look at the tokens `hidden` (…, T, D).

        Returns (…, Q, D). The last layer returns only the rows that `inputs.after_attention` keeps.
        """
        module = f"encoder.layer.{number}"
        names = ("query", "key", "value")
        sources = (queries, hidden, hidden)
        inputs = [
            self.linear(f"{module}.attention.self.{name}", source) for name, source in zip(names, sources, strict=True)
        ]
        heads = self.config.num_attention_heads
        head_width = self.config.hidden_size // heads
        context = self.inputs.attention(f"{module}.attention.self", inputs, heads, head_width)
        if last:
            context, queries = self.inputs.after_attention(context), self.inputs.after_attention(queries)
        attended = self.linear(f"{module}.attention.output.dense", context)
        attended = self.graph.call("residual", f"{module}.attention.output", attended, queries)
        attended = self.layer_norm(f"{module}.attention.output.LayerNorm", attended)
        inner = self.linear(f"{module}.intermediate.dense", attended)
        inner = self.graph.call("gelu", f"{module}.intermediate", inner)
        outer = self.linear(f"{module}.output.dense", inner)
        outer = self.graph.call("residual", f"{module}.output", outer, attended)
        return self.layer_norm(f"{module}.output.LayerNorm", outer)

    def layer_norm(self, module: str, x: ir.Value) -> ir.Value:
        """`x` (…, D) normalised over D, scaled and shifted."""
        scale, bias = self.weight(f"{module}.weight"), self.weight(f"{module}.bias")
        return self.graph.call("layer_norm", module, x, scale, bias, attributes={"epsilon": self.config.layer_norm_eps})
