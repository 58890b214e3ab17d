"""Reading `bundle.json`: its form, its own hash, and whether the files are those that it lists."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from bge_onnx.bundle import schema
from bge_onnx.bundle.heads import HEADS, SCORE
from bge_onnx.bundle.prompts import BEHIND, BETWEEN, TASK
from bge_onnx.bundle.records import FORMAT_VERSION, MANIFEST, OLDEST_VERSION, FileState, Manifest, sha256_of
from bge_onnx.errors import BundleError
from bge_onnx.files.json_file import QUOTED_CHARS, read_json, shortened

SEAL = "sha256"
"""The manifest's key for the hash of everything else in it, from format 5 on."""

M = TypeVar("M", bound=Manifest)

MEASURED = {"parity", "quality"}
"""Keys that `bge-export check` and `evaluate` write into the manifest of a bundle that may be open."""

SHA256 = re.compile("[0-9a-f]{64}")
LARGEST = 1 << 40
"""No size, width or token id is as large: numbers beyond are damage."""


def open_manifest(kind: type[M], folder: Path, *, verify: bool) -> M:
    """A bundle's manifest as a `kind`, its files compared with it; see `Bundle.open`."""
    try:
        folder = folder.resolve()
        state = FileState.of(folder / MANIFEST)
    except FileNotFoundError:
        found = "a folder without one" if folder.is_dir() else "no such folder"
        raise BundleError(
            f"{folder}: expected a bundle (a folder with {MANIFEST}), found {found}.\n"
            f"    Make one with `bge-export run MODEL --out {folder}`."
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleError(
            f"{shortened(str(folder))}: expected a bundle (a folder with {MANIFEST}), found {shortened(str(error))}."
        ) from None
    bundle = read_manifest(kind, folder / MANIFEST)
    states = {MANIFEST: state, **_check_files(bundle, verify=verify)}
    return dataclasses.replace(bundle, states=states)


def read_manifest(kind: type[M], path: Path) -> M:
    """The manifest at `path`, its folder's files not looked at. Raises BundleError: none, or an edited one."""
    return _parse(kind, path, _read(path))


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with its own hash, as `bundle.json` holds it."""
    return {**record, SEAL: _hash(record)}


def _hash(record: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a manifest but its hash, whatever the order of keys and the spaces."""
    rest = {key: value for key, value in record.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except (ValueError, OSError) as error:
        raise BundleError(f"{path}: expected a JSON manifest, found {error}.\n    Export the bundle again.") from None
    version = record.get("format_version") if isinstance(record, dict) else None
    if type(version) is not int or not OLDEST_VERSION <= version <= FORMAT_VERSION:
        newer = type(version) is int and version > FORMAT_VERSION
        raise BundleError(
            f"{path}: expected format_version {OLDEST_VERSION} to {FORMAT_VERSION}, found "
            f"{shortened(repr(version), 60)}.\n    {'Upgrade bge-onnx' if newer else 'Export it again'}."
        )
    assert isinstance(record, dict)
    return record


def _parse(kind: type[M], path: Path, record: dict[str, Any]) -> M:
    """The manifest as a record. Raises BundleError: it was edited or damaged."""
    seal = record.pop(SEAL, None)
    try:
        whole = _hash(record)
        identity = _hash({key: value for key, value in record.items() if key not in MEASURED})
        bundle = schema.parse(kind, record, folder=path.parent, identity=identity, states={})
        found = "; ".join(list(_faults(bundle))[:5])
        if not found and bundle.format_version >= FORMAT_VERSION and seal != whole:
            found = f"its hash is {whole[:16]}…, and it says {shortened(repr(seal), 20)}"
    except (ValueError, RecursionError) as error:
        found = str(error)
    if found:
        raise BundleError(
            f"{path}: expected a manifest of format {record['format_version']}, found an edited or damaged one "
            f"({shortened(found, 3 * QUOTED_CHARS)}).\n"
            "    Export the bundle again. Prompts, lengths and the like are options of `bge-export run`."
        )
    return bundle


def _faults(bundle: Manifest) -> Iterator[str]:
    """What is wrong with values of the right types."""
    if not bundle.of_pooled or not set(bundle.outputs) <= set(HEADS):
        yield f"outputs of {', '.join(bundle.outputs) or 'no head'}"
    if set(bundle.dims) != set(bundle.outputs):
        yield f"dims of {', '.join(bundle.dims) or 'no head'}"
    if not set(bundle.raw_outputs) <= set(bundle.outputs):
        yield f"raw_outputs of {', '.join(bundle.raw_outputs)}"
    numbers = {
        "max_tokens": bundle.max_tokens,
        "truncate_dim": 1 if bundle.truncate_dim is None else bundle.truncate_dim,
    }
    numbers |= {f"dims.{head}": width for head, width in bundle.dims.items()}
    yield from (f"{name} {number}" for name, number in numbers.items() if not 1 <= number < LARGEST)
    asked = ("query", "passage", BETWEEN, BEHIND) if bundle.causal and SCORE in bundle.outputs else ()
    yield from (f"no prompt {name}" for name in asked if name not in bundle.prompts)
    template = bundle.prompts.get(TASK)
    if template is not None and (template.count("{}") != 2 or template.count("{") + template.count("}") != 4):
        yield f"prompts.{TASK} {template!r:.40}"
    ids = bundle.special_ids
    if "pad" not in ids:
        yield "special_ids without pad"
    yield from (f"special_ids.{name} {number}" for name, number in ids.items() if not 0 <= number < LARGEST)
    needed = (bundle.graph, bundle.tokenizer)
    yield from (f"{name} is not among the files" for name in needed if name not in bundle.files)
    for name, file in bundle.files.items():
        if not _inside(name):
            yield f"{name!r} lies outside the bundle"
        if not 0 <= file.size_bytes < LARGEST or not SHA256.fullmatch(file.sha256):
            yield f"size or sha256 of {name!r}"


def _inside(name: str) -> bool:
    """Whether a file's name, as `onnx/model.onnx`, is a path in the bundle's folder."""
    path = PurePosixPath(name)
    return (
        bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name and len(name) < 1024
    )


def _check_files(bundle: Manifest, *, verify: bool) -> dict[str, FileState]:
    """The states of all files. Raises BundleError: some are missing, of another size, or of another hash."""
    states, faults = {}, []
    for name, record in bundle.files.items():
        path = bundle.folder / name
        try:
            if not path.is_file():
                faults.append(f"{name}   missing")
                continue
            states[name] = FileState.of(path)
            if states[name].size_bytes != record.size_bytes:
                faults.append(f"{name}   expected {record.size_bytes} bytes, found {states[name].size_bytes}")
            elif verify and sha256_of(path) != record.sha256:
                faults.append(f"{name}   expected sha256 {record.sha256[:16]}…, found another")
        except OSError as error:
            faults.append(f"{shortened(name)}   {error.strerror}")
    if faults:
        lines = "\n    ".join(faults[:10])
        raise BundleError(
            f"{bundle.folder}: {len(faults)} of {len(bundle.files)} files are not as exported:\n    {lines}\n"
            "    Copy the bundle again, or export it again."
        )
    return states
