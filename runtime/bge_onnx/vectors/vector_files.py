"""Vectors to files and to stdout: all that can fail is tried before the work."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.heads import HEADS
from bge_onnx.errors import InputError
from bge_onnx.files.replace import UNFINISHED, replacing
from bge_onnx.vectors.embeddings import Embeddings, Vectors
from bge_onnx.vectors.sparse import SparseVectors

ENDINGS = (".npz", ".jsonl")

Chunk = tuple[Embeddings, Sequence[str | None]]
"""Vectors of some texts, and the texts' ids."""


@contextlib.contextmanager
def vector_file(out: Path | None, *, force: bool) -> Iterator[Path | None]:
    """A new file that takes the place of `out` when the block ends well; None for stdout.

    It is made at once: a folder that is missing, full or may not be written is told before hours of work. Where `out`
    is a link, the file that it points to is replaced.
    Raises InputError: another ending, a folder, a file that exists and no `force`, or whatever the system says.
    """
    if out is None:
        if sys.stdout is None or not sys.stdout.writable():
            raise InputError("stdout: expected a place for the vectors, found it closed.")
        yield None
        return
    if out.suffix not in ENDINGS:
        raise InputError(f"{out}: expected a name that ends in .npz or .jsonl, found {out.suffix or 'no ending'}.")
    try:
        out = out.resolve() if out.is_symlink() else out
        os.lstat(out)
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError) as error:
        raise _refusal(out, error) from None
    if out.is_dir():
        raise InputError(
            f"{out}: expected a file's name, found a folder.\n    Name a file in it: --out {out}/vectors.npz"
        )
    if out.exists() and not force:
        raise InputError(f"{out}: expected a file that does not exist yet, found one. Add --force to replace it.")
    with contextlib.ExitStack() as stack:
        try:
            partial = stack.enter_context(replacing(out, force=force))
        except OSError as error:
            raise _refusal(out, error) from None
        try:
            yield partial
            stack.close()
        except OSError as error:
            raise _refusal(out, error) from error


def _refusal(out: Path, error: OSError | RuntimeError) -> InputError:
    said = getattr(error, "strerror", None) or str(error)
    return InputError(f"{out}: expected a file that can be written, found: {said}.\n    Choose another --out.")


def write_vectors(chunks: Iterable[Chunk], path: Path | None, *, arrays: bool) -> int:
    """Write vectors to `path`, as arrays (.npz) or JSON lines, or as JSON lines to stdout; returns how many.

    Raises InputError: of `chunks`. What was computed before it is kept in a file that the error names.
    """
    faults: list[InputError] = []
    count = _write(_until_fault(chunks, faults), path, arrays=arrays)
    if not faults:
        return count
    if path is None or not count:
        raise faults[0]
    kept = path.rename(path.with_suffix(UNFINISHED))
    raise InputError(f"{faults[0]}\n    The {count} vectors before it are kept as {kept}.") from None


def _until_fault(chunks: Iterable[Chunk], faults: list[InputError]) -> Iterator[Chunk]:
    """The chunks up to the first error, which is put into `faults`."""
    try:
        yield from chunks
    except InputError as error:
        faults.append(error)


def _write(chunks: Iterable[Chunk], path: Path | None, *, arrays: bool) -> int:
    if path is None:
        return _write_lines(chunks, sys.stdout)
    if not arrays:
        with path.open("w", encoding="utf-8") as lines:
            return _write_lines(chunks, lines)
    held = list(chunks)
    if held:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **_arrays(held))
    return sum(len(embeddings) for embeddings, _ in held)


def _arrays(chunks: Sequence[Chunk]) -> dict[str, NDArray[Any]]:
    """What an .npz file holds of each head; lists of arrays lie end to end, with where each text's part starts."""
    found = [embeddings for embeddings, _ in chunks]
    ids = [one for _, names in chunks for one in names]
    arrays: dict[str, NDArray[Any]] = {}
    if any(one is not None for one in ids):
        arrays["ids"] = np.array([one or "" for one in ids], dtype=np.str_)
    for head, vectors in found[0].by_head.items():
        if vectors is not None:
            arrays |= ARRAYS[HEADS[head].gives](head, [chunk.by_head[head] for chunk in found])
    return arrays


def _vector_arrays(head: str, parts: Sequence[Vectors]) -> dict[str, NDArray[Any]]:
    return {head: np.concatenate(parts)}


def _weights_arrays(head: str, parts: Sequence[SparseVectors]) -> dict[str, NDArray[Any]]:
    counts = np.concatenate([np.diff(part.starts) for part in parts])
    return {
        f"{head}_starts": np.concatenate([[0], np.cumsum(counts)]),
        f"{head}_ids": np.concatenate([part.ids for part in parts]),
        f"{head}_weights": np.concatenate([part.weights for part in parts]),
    }


def _rows_arrays(head: str, parts: Sequence[list[Vectors]]) -> dict[str, NDArray[Any]]:
    rows = [text for part in parts for text in part]
    return {
        f"{head}_starts": np.cumsum([0, *(len(text) for text in rows)]),
        head: np.concatenate(rows or [np.empty((0, 0), dtype=np.float32)]),
    }


ARRAYS: dict[str, Callable[[str, Any], dict[str, NDArray[Any]]]] = {
    "vector": _vector_arrays,
    "weights": _weights_arrays,
    "rows": _rows_arrays,
}
"""By what a head gives."""


def _write_lines(chunks: Iterable[Chunk], file: TextIO) -> int:
    index = 0
    for embeddings, ids in chunks:
        for row, name in enumerate(ids):
            record = {"index": index, **({} if name is None else {"id": name}), **_record(embeddings, row)}
            file.write(json.dumps(record, allow_nan=False) + "\n")
            index += 1
        file.flush()
    return index


def _record(chunk: Embeddings, row: int) -> dict[str, Any]:
    """One text's vectors as JSON values, to eight digits."""
    return {
        head: _weights(vectors[row]) if HEADS[head].gives == "weights" else _rounded(vectors[row])
        for head, vectors in chunk.by_head.items()
        if vectors is not None
    }


def _weights(row: Mapping[int, float]) -> dict[str, float]:
    return {str(token): round(weight, 8) for token, weight in row.items()}


def _rounded(vectors: Vectors) -> Any:
    return np.round(vectors.astype(np.float64), 8).tolist()
