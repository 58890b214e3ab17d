"""Strict reading of a checkpoint's `config.json`: a key that could change the result is never dropped in silence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from bge_onnx.errors import CheckpointError


class ModelConfig(Protocol):
    """What a model file's `Config` offers: a frozen dataclass of sizes, and what else `config.json` may hold."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    required: ClassVar[dict[str, Any]]  # key -> the only value that our graph computes; absent keys mean that value
    harmless: ClassVar[frozenset[str]]  # keys that change nothing of a forward pass


C = TypeVar("C", bound=ModelConfig)


def read_json(path: Path, kind: type[dict[str, Any] | list[Any]] = dict) -> Any:
    """The JSON object (or list) of a checkpoint's file. Raises CheckpointError: it is missing or none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: expected a checkpoint with {path.name}, found none.\n"
            "    Give the folder that holds config.json, the weights and the tokenizer."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: expected JSON, found {error}.\n    Download the checkpoint again.") from None
    if not isinstance(value, kind):
        raise CheckpointError(
            f"{path}: expected a JSON {'object' if kind is dict else 'list'}, found {value!r:.40}.\n"
            "    Download the checkpoint again."
        )
    return value


def parse_config(kind: type[C], record: dict[str, Any], path: Path) -> C:
    """`record` as a `kind`. Raises CheckpointError listing every key that is missing, unknown or not supported."""
    record = getattr(kind, "flatten", dict)(record)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    faults = [f"{key}   missing" for key, field in fields.items() if key not in record and _is_needed(field)]
    for key, value in record.items():
        if key in fields:
            if value is None and "None" in str(fields[key].type):
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                faults.append(f"{key}   expected a number, found {value!r}")
            elif str(fields[key].type).startswith("int") and (not isinstance(value, int) or value < 0):
                faults.append(f"{key}   expected a whole number, found {value!r}")
        elif key in kind.required:
            if value != kind.required[key]:
                faults.append(f"{key}   expected {kind.required[key]!r}, found {value!r}")
        elif key not in kind.harmless:
            faults.append(f"{key}   unknown, found {value!r}")
    if faults:
        lines = "\n    ".join(faults)
        raise CheckpointError(
            f"{path}: {len(faults)} keys that the exporter cannot honour:\n    {lines}\n"
            "    Each could change the vectors. If one cannot, list it as harmless in the model's Config."
        )
    return kind(**{key: record[key] for key in fields if key in record})


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
