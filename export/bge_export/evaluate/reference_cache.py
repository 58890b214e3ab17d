"""What float32 PyTorch reached on a task, kept between evaluations: it takes hours where a bundle takes minutes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_export.checkpoint.identity import checkpoint_sha256
from bge_export.checkpoint.recipe import Recipe
from bge_export.evaluate.scoring import Scores
from bge_export.evaluate.tasks import Task
from bge_onnx.files.replace import replacing

FORMAT = 2
"""Increase it when scores are computed in another way; scores that were kept before are then not used."""


SHA256_BYTES = 32
READ = frozenset({".json", ".txt", ".model"})
"""Endings of the files beside the weights that vectors depend on: configurations and vocabularies."""


def folder() -> Path:
    """BGE_CACHE, or bge-onnx in the user's cache folder. Raises RuntimeError: a user without a home."""
    given = os.environ.get("BGE_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "bge-onnx"


def checkpoint_key(checkpoint: Path) -> str:
    """A hash of all that vectors depend on: weights, configurations and the tokenizer, wherever the folder lies."""
    digest = hashlib.sha256(checkpoint_sha256(checkpoint).encode())
    files = (path for pattern in ("*", "*/*") for path in checkpoint.glob(pattern))
    for path in sorted(path for path in files if path.suffix in READ and path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(checkpoint).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def scores_of(checkpoint: str, recipe: Recipe, task: Task, compute: Callable[[], Scores]) -> Scores:
    """The scores that were kept for this checkpoint, recipe and task, else those that `compute` gives.

    checkpoint  its `checkpoint_key`

    A folder that cannot be written, or a damaged file, costs the time only.
    """
    try:
        path = folder() / "reference" / f"{_key(checkpoint, recipe, task)}.npz"
    except RuntimeError:
        return compute()
    kept = _read(path)
    if kept is not None:
        return kept
    scores = compute()
    arrays = io.BytesIO()
    np.savez(arrays, allow_pickle=False, **_arrays(scores))
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(hashlib.sha256(arrays.getbuffer()).digest() + arrays.getbuffer())
    return scores


def _key(checkpoint: str, recipe: Recipe, task: Task) -> str:
    """A hash of all that scores depend on; the name of a task is not among it."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    content = {name: value for name, value in dataclasses.asdict(task).items() if name != "name"}
    parts = [FORMAT, checkpoint, dataclasses.asdict(recipe), content, versions]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _arrays(scores: Scores) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {f"reranked.{head}": values for head, values in scores.reranked.items()}
    arrays |= {f"value.{name}": np.array(value) for name, value in scores.values.items()}
    if scores.best is not None:
        arrays["best"] = scores.best
    return {**arrays, "vectors": scores.vectors, "metric": np.array(scores.metric)}


def _read(path: Path) -> Scores | None:
    """Scores that were kept; None where there are none, or not the bytes that were written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[SHA256_BYTES:]).digest() != content[:SHA256_BYTES]:
        return None
    with np.load(io.BytesIO(content[SHA256_BYTES:]), allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    return Scores(
        metric=str(found["metric"]),
        values={name[6:]: float(value) for name, value in found.items() if name.startswith("value.")},
        vectors=found["vectors"],
        best=found.get("best"),
        reranked={name[9:]: value for name, value in found.items() if name.startswith("reranked.")},
    )
