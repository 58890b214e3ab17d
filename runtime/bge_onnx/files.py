"""Texts from files, vectors to files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from numpy.typing import NDArray

from bge_onnx.embeddings import Embeddings
from bge_onnx.errors import InputError


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file, one by one: a line each, or the key "text" of each JSON line in a .jsonl file; `-` is stdin.

    Raises InputError: no such file, bytes that are not UTF-8, a JSON line without a text (its number is named).
    """
    if str(path) == "-":
        yield from _lines(sys.stdin.buffer, "stdin")
        return
    try:
        with path.open("rb") as file:
            lines = _lines(file, str(path))
            yield from (_json_texts(lines, path) if path.suffix == ".jsonl" else lines)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: expected a file of texts, found none.") from None


def read_examples(path: Path) -> list[Any]:
    """Few-shot examples of a file: a JSON list of objects with instruct, query and response, or one a line (.jsonl).

    Raises InputError: no such file, no JSON, something else than a list.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = (
            [json.loads(line) for line in text.split("\n") if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file of examples, found none.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: expected JSON, found {error}.") from None
    if not isinstance(found, list):
        raise InputError(f"{path}: expected a JSON list of examples, found {found!r:.60}.")
    return found


def _lines(file: BinaryIO, name: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number}: expected UTF-8, found byte 0x{line[error.start]:02x} at position "
                f"{error.start}.\n    Convert the file to UTF-8."
            ) from None


def _json_texts(lines: Iterable[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: expected JSON, found {error}.") from None
        text = record.get("text") if isinstance(record, dict) else record
        if not isinstance(text, str):
            raise InputError(f'{path}, line {number}: expected {{"text": "…"}}, found {line[:60]}')
        yield text


def write_embeddings(embeddings: Iterable[Embeddings], out: Path | None, *, force: bool) -> int:
    """Write vectors to `out` (.npz or .jsonl), or as JSON lines to stdout; returns how many.

    A file appears whole or not at all. Raises InputError: another ending, or a file that exists and no `force`.
    """
    if out is None:
        return _write_lines(embeddings, sys.stdout)
    if out.suffix not in (".npz", ".jsonl"):
        raise InputError(f"{out}: expected a name that ends in .npz or .jsonl, found {out.suffix or 'no ending'}.")
    if out.exists() and not force:
        raise InputError(f"{out}: expected a file that does not exist yet, found one. Add --force to replace it.")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        if out.suffix == ".npz":
            chunks = list(embeddings)
            count = sum(len(chunk) for chunk in chunks)
            with partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **_arrays(chunks))
        else:
            with partial.open("w", encoding="utf-8") as lines:
                count = _write_lines(embeddings, lines)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _arrays(chunks: Sequence[Embeddings]) -> dict[str, NDArray[Any]]:
    """What an .npz file holds of each head; lists of arrays lie end to end, with where each text's part starts."""
    heads = [head for head, vectors in chunks[0].by_head.items() if vectors is not None]
    arrays: dict[str, NDArray[Any]] = {}
    if "dense" in heads:
        arrays["dense"] = np.concatenate([chunk.dense for chunk in chunks])
    if "sparse" in heads:
        counts = np.concatenate([np.diff(chunk.sparse.starts) for chunk in chunks])
        arrays["sparse_starts"] = np.concatenate([[0], np.cumsum(counts)])
        arrays["sparse_ids"] = np.concatenate([chunk.sparse.ids for chunk in chunks])
        arrays["sparse_weights"] = np.concatenate([chunk.sparse.weights for chunk in chunks])
    if "colbert" in heads:
        rows = [text for chunk in chunks for text in chunk.colbert]
        arrays["colbert_starts"] = np.cumsum([0, *(len(text) for text in rows)])
        arrays["colbert"] = np.concatenate(rows or [np.empty((0, 0), dtype=np.float32)])
    return arrays


def _write_lines(embeddings: Iterable[Embeddings], file: TextIO) -> int:
    index = 0
    for chunk in embeddings:
        for row in range(len(chunk)):
            file.write(json.dumps({"index": index, **_record(chunk, row)}) + "\n")
            index += 1
        file.flush()
    return index


def _record(chunk: Embeddings, row: int) -> dict[str, Any]:
    """One text's vectors as JSON values, to eight digits."""
    record: dict[str, Any] = {}
    if chunk.by_head["dense"] is not None:
        record["dense"] = np.round(chunk.dense[row].astype(np.float64), 8).tolist()
    if chunk.by_head["sparse"] is not None:
        record["sparse"] = {str(token): round(weight, 8) for token, weight in chunk.sparse[row].items()}
    if chunk.by_head["colbert"] is not None:
        record["colbert"] = np.round(chunk.colbert[row].astype(np.float64), 8).tolist()
    return record
