"""The decoder that Mistral and Gemma2 share: pre-norm layers, rotary positions, grouped-query attention, a gated MLP.

Mirrors transformers' MistralModel and Gemma2Model:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/mistral/modeling_mistral.py
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/gemma2/modeling_gemma2.py

No token has padding in front of it, so its position is its index. If a graph takes a prefix, its positions come
first. The last layer is computed for the last token alone, which is pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from bge_export.checkpoint.modules import WordLogit, width_of
from bge_export.checkpoint.weights import Array, Shape, Weights
from bge_export.graph.ops import Attributes, Graph
from bge_export.models.decoder_config import Sizes
from bge_export.models.decoder_inputs import DecoderInputs, Outputs, Prefixed, Whole
from bge_export.models.family import Family, RandomTokenizer
from bge_export.models.graph_outputs import GraphOutputs

NO_WINDOW = 1 << 31

PREFIX = "model."


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a decoder's layer is put together. Names of norms are the checkpoint's; None where there is none."""

    before_attention: str
    after_attention: str | None
    before_mlp: str
    after_mlp: str | None
    activation: str  # the operation that joins gate and up projections
    scale: float  # of queries
    softcap: float | None  # of attention scores
    embedding_scale: float
    one_plus_norm: bool  # norms scale by 1 + weight
    window: Callable[[int], int | None]  # of a layer: how many tokens, itself included, a token sees
    biased: frozenset[str] = frozenset()  # of a layer's linear modules: those with a bias
    query_norm: str | None = None  # of each head's queries, before they are rotated
    key_norm: str | None = None


def weight_shapes(config: Sizes, layout: Layout) -> dict[str, Shape]:
    """Every weight that the vectors depend on, as PyTorch stores it: linear weights are (out, in)."""
    width, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_width
    shared = config.num_key_value_heads * config.head_width
    shapes: dict[str, Shape] = {"embed_tokens.weight": (config.vocab_size, width), "norm.weight": (width,)}
    norms = (layout.before_attention, layout.after_attention, layout.before_mlp, layout.after_mlp)
    for number in range(config.num_hidden_layers):
        layer: dict[str, Shape] = {
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (shared, width),
            "self_attn.v_proj": (shared, width),
            "self_attn.o_proj": (width, queries),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            **{norm: (width,) for norm in norms if norm},
            **{norm: (config.head_width,) for norm in (layout.query_norm, layout.key_norm) if norm},
        }
        shapes |= {f"layers.{number}.{module}.weight": shape for module, shape in layer.items()}
        shapes |= {f"layers.{number}.{module}.bias": layer[module][:1] for module in sorted(layout.biased)}
    return shapes


@dataclass(frozen=True, slots=True)
class Decoder:
    """The parts of the model, added to `graph` when called."""

    graph: Graph
    config: Sizes
    layout: Layout
    weights: Weights

    def build(self, wanted: GraphOutputs) -> ir.Model:
        """The whole model, from input_ids (B, T) int64 and what `Prefixed` or `Whole` adds."""
        config, graph = self.config, self.graph
        input_ids = graph.input("input_ids", ["B", "T"])
        tokens = (Whole if wanted.whole else Prefixed)(self, input_ids)
        hidden = graph.call("lookup", "embed_tokens", input_ids, self.table())
        for number in range(config.num_hidden_layers):
            hidden = self.layer(number, hidden, tokens)
        last = graph.call("drop_token_axis", "pooling", self.norm("norm", hidden))
        for step in wanted.steps:
            assert isinstance(step, WordLogit)
            last = self.logit(step, last)
        name = wanted.of_pooled
        shape: list[int | str] = ["B", width_of(config.hidden_size, wanted.pooling, wanted.steps)]
        outputs: Outputs = {}
        if wanted.normalize:
            outputs[name] = (graph.call("l2_normalize", f"{name}.normalize", last), shape)
            outputs[f"{name}_raw"] = (last, shape)
        else:
            outputs[name] = (last, shape)
        return graph.finish(outputs | tokens.outputs())

    def layer(self, number: int, hidden: ir.Value, tokens: DecoderInputs) -> ir.Value:
        """The states after layer `number` of `hidden` (B, T, D). The last layer gives those of the last token alone."""
        module, layout, graph = f"layers.{number}", self.layout, self.graph
        last = number == self.config.num_hidden_layers - 1
        normed = self.norm(f"{module}.{layout.before_attention}", hidden)
        key = self.linear(f"{module}.self_attn.k_proj", normed)
        key = self.head_norm(module, layout.key_norm, key, self.config.num_key_value_heads)
        key = tokens.rotate(f"{module}.self_attn", key, self.config.num_key_value_heads)
        value = self.linear(f"{module}.self_attn.v_proj", normed)
        if last and tokens.last_query_alone:
            hidden, normed = (tokens.last_rows(states, self.config.hidden_size) for states in (hidden, normed))
        query = self.linear(f"{module}.self_attn.q_proj", normed)
        query = self.head_norm(module, layout.query_norm, query, self.config.num_attention_heads)
        query = tokens.rotate(f"{module}.self_attn", query, self.config.num_attention_heads, last=last)
        attended = tokens.attend(number, query, key, value, last=last)
        if last and not tokens.last_query_alone:
            hidden = tokens.last_rows(hidden, self.config.hidden_size)
            attended = tokens.last_rows(attended, self.config.num_attention_heads * self.config.head_width)
        attended = self.linear(f"{module}.self_attn.o_proj", attended)
        if layout.after_attention:
            attended = self.norm(f"{module}.{layout.after_attention}", attended)
        hidden = graph.call("residual", f"{module}.self_attn", hidden, attended)
        normed = self.norm(f"{module}.{layout.before_mlp}", hidden)
        gate, up = self.linear(f"{module}.mlp.gate_proj", normed), self.linear(f"{module}.mlp.up_proj", normed)
        inner = self.linear(f"{module}.mlp.down_proj", graph.call(layout.activation, f"{module}.mlp", gate, up))
        if layout.after_mlp:
            inner = self.norm(f"{module}.{layout.after_mlp}", inner)
        return graph.call("residual", f"{module}.mlp", hidden, inner)

    def rotate(self, module: str, x: ir.Value, heads: int, position: ir.Value) -> ir.Value:
        """`x` (B, T, heads × K) rotated by positions that count from `position` (1,) on."""
        sizes: Attributes = {"num_heads": heads, "split": [0, 0, heads, self.config.head_width]}
        config = self.config
        tables = rotary_tables(config.rope_theta, config.head_width, config.max_position_embeddings)
        return self.graph.call("rotary", module, x, position, *map(self.graph.weight, tables), attributes=sizes)

    def attend(self, kind: str, number: int, inputs: Sequence[ir.Value | None]) -> ir.Value:
        """Attention of `kind`, "causal" or "last", with the model's heads, scale, window and soft cap."""
        config, layout = self.config, self.layout
        heads, shared, width = config.num_attention_heads, config.num_key_value_heads, config.head_width
        group = heads // shared
        attributes: dict[str, float | list[int]] = {
            "num_heads": heads,
            "kv_num_heads": shared,
            "window": layout.window(number) or NO_WINDOW,
            "scale": layout.scale,
            "query_split": [0, 0, shared, group, width],
            "key_split": [0, 0, shared, width],
            "merged": [0, shared, -1, width],
            "grouped": [0, shared, group],
            "by_head": [0, shared],
        }
        if layout.softcap is not None:
            attributes["softcap"] = layout.softcap
        name = f"{kind}_attention" + ("" if layout.softcap is None else "_softcap")
        return self.graph.call(name, f"layers.{number}.self_attn", *inputs, attributes=attributes)

    def table(self) -> ir.Value:
        """The word table (V, D), the model's scale of embeddings folded in: the same product as at run time."""
        name, scale = "embed_tokens.weight", np.float32(self.layout.embedding_scale)

        def rows(start: int, stop: int) -> Array:
            table: Array = self.weights.read(name, rows=slice(start, stop)) * scale
            return table

        return self.graph.weight(self.weights.lazy_rows(name, rows))

    def linear(self, module: str, x: ir.Value) -> ir.Value:
        """`x` (…, in) times the transpose of the weight (out, in), plus the bias if there is one."""
        name = f"{module}.weight"

        def rows(start: int, stop: int) -> Array:
            return self.weights.read(name, rows=slice(start, stop))

        y = self.graph.call("project", module, x, self.graph.weight(self.weights.lazy_rows(name, rows)))
        if module.split(".", 2)[-1] not in self.layout.biased:
            return y
        bias = f"{module}.bias"
        tensor = self.weights.lazy(bias, lambda: self.weights.read(bias), self.weights.shapes[bias])
        return self.graph.call("add_bias", module, y, self.graph.weight(tensor))

    def logit(self, step: WordLogit, x: ir.Value) -> ir.Value:
        """The logit (B, 1) of one word, from states (B, D) behind the last norm."""

        def column() -> Array:
            row: Array = self.weights.read(step.table, rows=slice(step.token, step.token + 1))
            return np.ascontiguousarray(row.T)

        row = self.graph.weight(self.weights.lazy("lm_head.row", column, (step.inputs, 1)))
        return self.graph.call("project_vector", "lm_head", x, row)

    def head_norm(self, layer: str, name: str | None, x: ir.Value, heads: int) -> ir.Value:
        """`x` (B, T, heads × K) with each head normalised by itself, where the layout has such a norm."""
        if name is None:
            return x
        module, split = f"{layer}.{name}", {"by_head": [0, 0, heads, self.config.head_width]}
        normed = self.norm(module, self.graph.call("split_heads", module, x, attributes=split))
        return self.graph.call("join_heads", module, normed)

    def norm(self, module: str, x: ir.Value) -> ir.Value:
        """`x` (…, D) divided by its root mean square and scaled; Gemma's 1 + weight is folded in float32."""
        name = f"{module}.weight"

        def scale() -> Array:
            weight = self.weights.read(name)
            return 1 + weight if self.layout.one_plus_norm else weight

        tensor = self.weights.lazy(name, scale, self.weights.shapes[name])
        epsilon: Attributes = {"epsilon": self.config.rms_norm_eps}
        return self.graph.call("rms_norm", module, x, self.graph.weight(tensor), attributes=epsilon)


def decoder_family(
    config: type[Any],
    layout_of: Callable[[Any], Layout],
    *,
    tokenizer: RandomTokenizer,
    half: Literal["float16", "bfloat16"] = "float16",
    neutral_norm: float = 1.0,
) -> Family:
    """A family of decoders: its configuration, and how a layer of it is put together."""
    model_type = config.required["model_type"]

    def build(sizes: Any, weights: Weights, wanted: GraphOutputs) -> ir.Model:
        return Decoder(Graph(model_type), sizes, layout_of(sizes), weights).build(wanted)

    return Family(
        Config=config,
        prefix=PREFIX,
        harmless_weights=("lm_head.", "rotary_emb."),
        weight_shapes=lambda sizes: weight_shapes(sizes, layout_of(sizes)),
        position_limit=lambda sizes: sizes.max_position_embeddings,
        build=build,
        causal=True,
        half=half,
        neutral_norm=neutral_norm,
        tokenizer=tokenizer,
    )


@lru_cache(maxsize=1)  # every layer asks
def rotary_tables(base: float, width: int, positions: int) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
    """Cosines and sines (positions, width / 2) of positions times frequencies, in float32 as transformers has them."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies = np.float32(1) / np.power(np.float32(base), exponents)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    return ir.tensor(np.cos(angles), name="rotary.cosines"), ir.tensor(np.sin(angles), name="rotary.sines")
