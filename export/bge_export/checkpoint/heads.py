"""The heads of a checkpoint: which it has, where their weights are, and what of them a graph is to give."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from bge_export.checkpoint.weights import Shape, Weights
from bge_onnx.errors import CheckpointError

HEADS = ("dense", "sparse", "colbert")
SPARSE, COLBERT = "sparse_linear", "colbert_linear"  # modules, each a linear layer in a file NAME.pt
FILES = {"sparse": f"{SPARSE}.pt", "colbert": f"{COLBERT}.pt"}


def decide(folder: Path, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The heads to export: those asked for, else dense and those that the checkpoint has a file for.

    Raises CheckpointError: a head asked for that has no file. One without weights is never made up.
    """
    found = [head for head, file in FILES.items() if (folder / file).is_file()]
    if asked is None:
        return tuple(head for head in HEADS if head == "dense" or head in found)
    unknown = [head for head in asked if head not in HEADS]
    if unknown or not asked:
        raise CheckpointError(f"heads: expected some of {', '.join(HEADS)}, found {', '.join(unknown) or 'none'}.")
    missing = [head for head in asked if head in FILES and head not in found]
    if missing:
        raise CheckpointError(
            f"{folder}: expected {', '.join(FILES[head] for head in missing)} for the heads asked for, found "
            f"{', '.join(FILES[head] for head in found) or 'no head files'}.\n"
            "    Add the files of the model's repository, or leave the heads out: --heads "
            f"{','.join(head for head in asked if head not in missing) or 'dense'}."
        )
    return tuple(head for head in HEADS if head in asked)


def files(heads: Sequence[str]) -> tuple[str, ...]:
    """The files that hold the weights of `heads`."""
    return tuple(FILES[head] for head in heads if head in FILES)


def copy(source: Path, folder: Path) -> list[Path]:
    """Copy the heads' files of `source` into `folder`; returns them. Raises CheckpointError: one is missing."""
    missing = [name for name in FILES.values() if not (source / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{source}: expected {' and '.join(FILES.values())}, found no {' and no '.join(missing)}."
        )
    return [Path(shutil.copyfile(source / name, folder / name)) for name in FILES.values()]


def weight_shapes(heads: Sequence[str], width: int, weights: Weights) -> dict[str, Shape]:
    """The weights of `heads` on states of `width`: sparse gives a number, ColBERT a row as wide as the file has it.

    Fine-tuned checkpoints have their own ColBERT width (FlagEmbedding's `colbert_dim`), so the file decides.
    """
    shapes: dict[str, Shape] = {}
    if "sparse" in heads:
        shapes |= {f"{SPARSE}.weight": (1, width), f"{SPARSE}.bias": (1,)}
    if "colbert" in heads:
        rows = colbert_width(weights)
        shapes |= {f"{COLBERT}.weight": (rows, width), f"{COLBERT}.bias": (rows,)}
    return shapes


def colbert_width(weights: Weights) -> int:
    """Components C of a ColBERT row; 0 where there is no such head."""
    return (weights.shapes.get(f"{COLBERT}.weight") or (0,))[0]
