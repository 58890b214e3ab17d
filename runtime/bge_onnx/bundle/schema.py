"""JSON values as frozen records: types are compared with the record's annotations, and all faults are told at once."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bge_onnx.files.json_file import HALF_CHARACTER, shortened

T = TypeVar("T")

FAULTS_SHOWN = 5

LONGEST_NAME = 1000
"""Letters of a name. Prompts are texts, and may be longer."""


def parse(kind: type[T], record: Any, **given: Any) -> T:
    """`record` as a dataclass `kind`, whose fields are annotated with JSON's types, Literal, Mapping, tuple or such
    dataclasses.

    given  fields that are no part of the JSON

    Raises ValueError naming the keys that are missing, unknown or of another type.
    """
    faults: list[str] = []
    value = _dataclass(kind, record, "", faults, given)
    if faults:
        more = f"; and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise ValueError("; ".join(faults[:FAULTS_SHOWN]) + more)
    return value  # type: ignore[no-any-return]  # without faults it is a `kind`


def _value(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    """`value` as what the annotation `kind` says; what is wrong with it is added to `faults`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where, faults, {})
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (only,) = [argument for argument in arguments if argument is not type(None)]
        return _value(only, value, where, faults)
    if origin is Mapping and isinstance(value, dict):
        return {key: _value(arguments[1], entry, f"{where}.{key}", faults) for key, entry in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], entry, f"{where}[{index}]", faults) for index, entry in enumerate(value))
    if isinstance(value, str) and len(value) > LONGEST_NAME and not where.startswith("prompts."):
        faults.append(f"{where}: expected a name, found {len(value)} letters")
    elif not _is_plain(kind, value):
        faults.append(f"{where}: expected {_described(kind)}, found {shortened(repr(value), 60)}")
    return value


def _dataclass(kind: Any, record: Any, where: str, faults: list[str], given: Mapping[str, Any]) -> Any:
    if not isinstance(record, dict):
        faults.append(f"{where or 'it'}: expected a JSON object, found {shortened(repr(record), 60)}")
        return None
    before, hints = len(faults), _hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name not in given}
    prefix = f"{where}." if where else ""
    faults += [f"{prefix}{key!r} is missing" for key, field in fields.items() if key not in record and _needed(field)]
    faults += [f"{prefix}{shortened(repr(key), 60)} is unknown" for key in record if key not in fields]
    values = {key: _value(hints[key], record[key], f"{prefix}{key}", faults) for key in fields if key in record}
    return kind(**values, **given) if len(faults) == before else None


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_plain(kind: Any, value: Any) -> bool:
    """Whether a value is of JSON's own type, or one of a Literal's. True is no number."""
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # math.isfinite fails on large integers
    if kind is str:
        return type(value) is str and not HALF_CHARACTER.search(value)
    return type(value) is kind


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    names = {str: "a string", int: "a whole number", float: "a finite number", bool: "true or false"}
    return names.get(kind) or ("a list" if get_origin(kind) is tuple else "a JSON object")
