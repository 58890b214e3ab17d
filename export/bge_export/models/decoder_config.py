"""The configuration that decoders share: sizes, and which keys of a `config.json` they understand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bge_onnx.errors import CheckpointError

MOST_POSITIONS = 1 << 24  # no model has more; the tables of rotary positions are as long

# Of a `config.json`: what transformers defines for these models and what changes nothing of a forward pass.
HARMLESS_KEYS = frozenset({
    "attention_dropout", "initializer_range",                                           # training
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "is_decoder",          # generation
    "tie_word_embeddings", "final_logit_softcapping",                                   # the language model's head
})  # fmt: skip

# Keys that change the forward pass, with the only value that our graph computes.
REQUIRED: dict[str, object] = {
    "rope_type": "default",
    "rope_scaling": None,
    "attention_bias": False,
    "pretraining_tp": 1,
    "add_cross_attention": False,
    "pruned_heads": {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes that every decoder of this kind has; a family adds `required` and its own."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    max_position_embeddings: int
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    sliding_window: int | None = 4096

    required: ClassVar[dict[str, Any]] = REQUIRED
    harmless: ClassVar[frozenset[str]] = HARMLESS_KEYS

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def head_width(self) -> int:
        """Components of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @staticmethod
    def flatten(record: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json with the keys of `rope_parameters`, where transformers 5 keeps them, among the others."""
        rope = record.get("rope_parameters")
        flat = {key: value for key, value in record.items() if key != "rope_parameters"}
        return flat | (dict(rope) if isinstance(rope, Mapping) else {})


def check_sizes(config: Sizes) -> None:
    """Raise CheckpointError: heads that do not divide each other, an odd head, or positions without end."""
    if config.max_position_embeddings > MOST_POSITIONS:
        raise CheckpointError(
            f"config.json: expected max_position_embeddings of at most {MOST_POSITIONS}, found "
            f"{config.max_position_embeddings}.\n    Is it the config.json of these weights?"
        )
    heads, shared, width = config.num_attention_heads, config.num_key_value_heads, config.head_width
    if not heads or not shared or heads % shared or not width or width % 2:
        raise CheckpointError(
            f"config.json: expected num_attention_heads to be a multiple of num_key_value_heads and an even head_dim, "
            f"found {heads}, {shared} and {width}.\n    Is it the config.json of these weights?"
        )


def without_windows(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat configuration without `layer_types` and `sliding_window`, where they ask for no window.

    Raises CheckpointError: some layer has a window.
    """
    types = flat.pop("layer_types", None) or []
    if set(types) - {"full_attention"}:
        raise CheckpointError(
            f"config.json: expected full_attention in every layer, found {', '.join(sorted(set(types)))}.\n"
            "    Windows of this family are not supported."
        )
    if not flat.get("use_sliding_window"):
        flat["sliding_window"] = None  # a number that nothing reads
    return flat
