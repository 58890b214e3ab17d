"""The heads of a checkpoint: which it has, where their weights are, and what of them a graph is to give."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bge_export.checkpoint.weights import Shape, Weights
from bge_onnx.bundle.heads import FIRST, HEADS
from bge_onnx.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """The linear layer that a head is, on the states of a text's tokens.

    module  in a file NAME.pt
    width   outputs; None as many as the file has. Fine-tuned checkpoints have their own ColBERT width (FlagEmbedding's
            `colbert_dim`)
    """

    module: str
    width: int | None = None


LINEARS = {"sparse": Linear(module="sparse_linear", width=1), "colbert": Linear(module="colbert_linear")}
"""Of the heads that have weights of their own."""

FILES = {head: f"{linear.module}.pt" for head, linear in LINEARS.items()}


def decide(folder: Path, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The heads to export: those asked for, else dense and those that the checkpoint has a file for.

    Raises CheckpointError: a head asked for that has no file. One without weights is never made up.
    """
    found = [head for head, file in FILES.items() if (folder / file).is_file()]
    if asked is None:
        return tuple(head for head in HEADS if head == FIRST or head in found)
    unknown = [head for head in asked if head not in HEADS]
    if unknown or not asked:
        raise CheckpointError(f"heads: expected some of {', '.join(HEADS)}, found {', '.join(unknown) or 'none'}.")
    missing = [head for head in asked if head in FILES and head not in found]
    if missing:
        raise CheckpointError(
            f"{folder}: expected {', '.join(FILES[head] for head in missing)} for the heads asked for, found "
            f"{', '.join(FILES[head] for head in found) or 'no head files'}.\n"
            "    Add the files of the model's repository, or leave the heads out: --heads "
            f"{','.join(head for head in asked if head not in missing) or FIRST}."
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


def weight_shapes(heads: Sequence[str], states: int, weights: Weights) -> dict[str, Shape]:
    """The weights of `heads` on states of so many components."""
    shapes: dict[str, Shape] = {}
    for head in heads:
        if head in LINEARS:
            module, width = LINEARS[head].module, width_of(head, weights)
            shapes |= {f"{module}.weight": (width, states), f"{module}.bias": (width,)}
    return shapes


def width_of(head: str, weights: Weights) -> int:
    """Outputs of a head's linear layer; 0 where its file has none."""
    linear = LINEARS[head]
    return linear.width or (weights.shapes.get(f"{linear.module}.weight") or (0,))[0]
