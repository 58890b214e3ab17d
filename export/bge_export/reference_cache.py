"""What float32 PyTorch reached on a task, kept between evaluations: it takes hours where a bundle takes minutes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_export.checkpoint import Recipe
from bge_export.evaluate import Scores
from bge_export.tasks import Task
from bge_onnx.replace import replacing

FORMAT = 1
"""Raised when scores are computed another way: what was kept before is of no use then."""


def folder() -> Path:
    """BGE_CACHE, or bge-onnx in the user's cache folder."""
    given = os.environ.get("BGE_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "bge-onnx"


def scores_of(weights_sha256: str, recipe: Recipe, task: Task, compute: Callable[[], Scores]) -> Scores:
    """The scores that were kept for these weights, this recipe and this task, else those that `compute` gives.

    A folder that cannot be written, or a file that cannot be read, costs the time only.
    """
    path = folder() / "reference" / f"{_key(weights_sha256, recipe, task)}.npz"
    kept = _read(path)
    if kept is not None:
        return kept
    scores = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **_arrays(scores))
    except OSError:
        pass
    return scores


def _key(weights_sha256: str, recipe: Recipe, task: Task) -> str:
    versions = {name: version(name) for name in ("torch", "transformers")}
    parts = [FORMAT, weights_sha256, dataclasses.asdict(recipe), dataclasses.asdict(task), versions]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _arrays(scores: Scores) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {f"reranked.{head}": values for head, values in scores.reranked.items()}
    arrays |= {f"value.{name}": np.array(value) for name, value in scores.values.items()}
    if scores.best is not None:
        arrays["best"] = scores.best
    return {**arrays, "vectors": scores.vectors, "metric": np.array(scores.metric)}


def _read(path: Path) -> Scores | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
            return Scores(
                metric=str(found["metric"]),
                values={name[6:]: float(value) for name, value in found.items() if name.startswith("value.")},
                vectors=found["vectors"],
                best=found.get("best"),
                reranked={name[9:]: value for name, value in found.items() if name.startswith("reranked.")},
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
