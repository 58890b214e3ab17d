"""Strict reading of a checkpoint's `config.json`: a key that could change the result is never dropped in silence."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from bge_onnx.errors import CheckpointError
from bge_onnx.files import json_file
from bge_onnx.files.json_file import shortened

LISTED = 10
"""An error lists so many faults and counts the others."""

# Keys that transformers 4 defined for every model, and keys that other tools add; those that transformers defines now
# need no entry. None of these keys changes a forward pass. `is_decoder`, `add_cross_attention` and `pruned_heads` do
# change it, so models say which values they need.
HARMLESS_KEYS = frozenset({
    "name_or_path", "_commit_hash", "auto_map", "transformers.js_config",              # origin; code is never run
    "unsloth_version", "unsloth_fixed", "sentence_transformers",
    "torch_dtype", "torchscript", "use_bfloat16", "gradient_checkpointing",            # storage and training
    "tf_legacy_loss", "finetuning_task", "num_labels", "task_specific_params",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",     # how to compute the same
    "experts_implementation", "output_attentions",
    "tokenizer_class", "prefix", "model_max_length", "sep_token_id", "cls_token_id",   # the tokenizer has its own
    "mask_token_id", "unk_token_id",
    "output_past", "tie_encoder_decoder", "tie_word_embeddings", "cross_attention_hidden_size",  # of other tasks
    "add_pooling_layer",
})  # fmt: skip


class ModelConfig(Protocol):
    """What a model file's `Config` offers: a frozen dataclass of sizes, and what else `config.json` may hold."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    required: ClassVar[dict[str, Any]]  # key -> the only value that our graph computes; absent keys mean that value
    harmless: ClassVar[frozenset[str]]  # keys of this model's own that change nothing of a forward pass


C = TypeVar("C", bound=ModelConfig)


def read_json(path: Path, kind: type[dict[str, Any] | list[Any]] = dict) -> Any:
    """The JSON object (or list) of a checkpoint's file. Raises CheckpointError: it is missing or none."""
    try:
        value = json_file.read_json(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: expected a checkpoint with {path.name}, found none.\n"
            "    Give the folder that holds config.json, the weights and the tokenizer."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, found {error}.\n    Download the checkpoint again.") from None
    if not isinstance(value, kind):
        raise CheckpointError(
            f"{path}: expected a JSON {'object' if kind is dict else 'list'}, found {quoted(value)}.\n"
            "    Download the checkpoint again."
        )
    return value


def quoted(value: object) -> str:
    """A value of a checkpoint's file as an error shows it: in one line, cut where it is long or deep."""
    show = reprlib.Repr()
    show.maxstring = show.maxlong = show.maxother = 100
    return shortened(show.repr(value))


def listed(faults: Sequence[str]) -> str:
    """The first faults, one a line, and how many more there are."""
    more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
    lines = "\n    ".join([*faults[:LISTED], *more])
    return lines.encode("utf-8", "backslashreplace").decode("utf-8")  # JSON may hold halves of characters


@lru_cache
def harmless_keys(model_type: str) -> frozenset[str]:
    """Keys that transformers defines for every model, for text generation and for tokenizers, but no model's own.

    A key that the configuration class of `model_type` defines itself can change the forward pass. It is not harmless,
    even if transformers uses the same name elsewhere.
    """
    import transformers  # noqa: PLC0415 - takes seconds

    base = {*vars(transformers.PretrainedConfig())}
    generation = {*vars(transformers.GenerationConfig())}  # type: ignore[no-untyped-call]
    own = {*vars(transformers.CONFIG_MAPPING[model_type]())} - base
    tokens = {f"{name}_id" for name in transformers.PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES}
    return frozenset((base | generation | tokens) - own) | HARMLESS_KEYS


def parse_config(kind: type[C], record: dict[str, Any], path: Path) -> C:
    """`record` as a `kind`. Raises CheckpointError listing keys that are missing, unknown or not supported."""
    record = getattr(kind, "flatten", dict)(record)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    faults = [f"{key}   missing" for key, field in fields.items() if key not in record and _is_needed(field)]
    harmless = kind.harmless | harmless_keys(kind.required["model_type"])
    for key, value in record.items():
        if key in fields:
            faults += _number_fault(fields[key], value)
        elif key in kind.required:
            if value != kind.required[key]:
                faults.append(f"{key}   expected {kind.required[key]!r}, found {quoted(value)}")
        elif key not in harmless:
            faults.append(f"{shortened(key)}   unknown, found {quoted(value)}")
    if faults:
        raise CheckpointError(
            f"{path}: {len(faults)} keys that the exporter cannot honour:\n    {listed(faults)}\n"
            "    Each could change the vectors. If one cannot, list it as harmless in the model's Config."
        )
    return kind(**{key: record[key] for key in fields if key in record})


def _number_fault(field: dataclasses.Field[Any], value: object) -> list[str]:
    """What is wrong with the value of a size, if anything."""
    if value is None and "None" in str(field.type):
        return []
    if not isinstance(value, int | float) or isinstance(value, bool):
        return [f"{field.name}   expected a number, found {quoted(value)}"]
    if str(field.type).startswith("int"):
        wrong = not isinstance(value, int) or not 0 <= value < 1 << 63
        return [f"{field.name}   expected a whole number, found {quoted(value)}"] * wrong
    wrong = not -math.inf < value < math.inf or value < 0
    return [f"{field.name}   expected a number from 0 on, found {quoted(value)}"] * wrong


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
