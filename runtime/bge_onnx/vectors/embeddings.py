"""What comes back: the vectors of the heads asked for, in the caller's order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.heads import HEADS
from bge_onnx.errors import InputError
from bge_onnx.vectors.sparse import SparseVectors

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Vectors of N texts, entry i for text i. Heads not asked for are None in `by_head`, and an error to read.

    dense    (N, D) float32, of length 1 where the bundle says `normalized`
    sparse   N sparse vectors, token id to weight
    colbert  N arrays (T - 1, C) float32, a row per token but the first, of length 1 where `normalized`
    """

    count: int
    by_head: Mapping[str, Any]

    def __len__(self) -> int:
        """N, the number of texts."""
        return self.count

    @property
    def dense(self) -> Vectors:
        """Dense vectors (N, D). Raises InputError: not asked for."""
        dense: Vectors = self._head("dense")
        return dense

    @property
    def sparse(self) -> SparseVectors:
        """Sparse vectors of N texts. Raises InputError: not asked for."""
        sparse: SparseVectors = self._head("sparse")
        return sparse

    @property
    def colbert(self) -> list[Vectors]:
        """ColBERT rows of N texts. Raises InputError: not asked for."""
        colbert: list[Vectors] = self._head("colbert")
        return colbert

    def _head(self, head: str) -> Any:
        if self.by_head.get(head) is None:
            found = ", ".join(name for name, vectors in self.by_head.items() if vectors is not None)
            raise InputError(f"{head}: expected it among the heads asked for, found {found}.\n    Add it to heads=(…).")
        return self.by_head[head]


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorOptions:
    """What a caller wants of a bundle, checked against it by `check`.

    normalize     None as the bundle has it
    truncate_dim  keep so many leading components of dense and ColBERT vectors (Matryoshka models), before normalising;
                  None as many as the bundle says, which is all in most
    mcls          dense as the mean over a CLS token every 256 tokens
    """

    heads: tuple[str, ...] = ("dense",)
    normalize: bool | None = None
    truncate_dim: int | None = None
    mcls: bool = False

    def check(self, bundle: Bundle) -> None:
        """Raise InputError: a head, a dimension or a form that this bundle cannot give."""
        self._check_types()
        missing = [head for head in self.heads if head not in bundle.outputs]
        if missing or not self.heads:
            raise InputError(
                f"heads: expected one or more of {', '.join(bundle.outputs)}, which {bundle.name} has; found "
                f"{', '.join(map(str, self.heads)) or 'none'}.\n"
                "    bge-m3 and its fine-tuned kin have dense, sparse and colbert: bge-export run BAAI/bge-m3 --out DIR"
            )
        vectors = [head for head in self.heads if HEADS[head].is_vectors]
        widest = max((bundle.dims[head] for head in vectors), default=None)
        if self.truncate_dim is not None and (widest is None or not 1 <= self.truncate_dim <= widest):
            raise InputError(f"truncate_dim: expected 1 to {widest} for {bundle.name}, found {self.truncate_dim!r}")
        if self.normalize is False and vectors and bundle.normalized and not bundle.raw_outputs:
            raise InputError(
                f"normalize=False: the bundle {bundle.name} gives vectors of length 1 only.\n"
                "    Export one for cpu-fp32, which gives both."
            )
        if self.mcls and (self.heads != ("dense",) or bundle.token_states is None or bundle.pooling != "cls"):
            raise InputError(
                f"mcls: expected heads=('dense',) and a bundle with CLS pooling and more than 512 tokens, found "
                f"{', '.join(self.heads)} and {bundle.name} ({bundle.pooling}, {bundle.max_tokens} tokens)."
            )

    def _check_types(self) -> None:
        if not isinstance(self.normalize, bool | None):
            raise InputError(f"normalize: expected True, False or None, found {self.normalize!r:.60}")
        if not isinstance(self.mcls, bool):
            raise InputError(f"mcls: expected True or False, found {self.mcls!r:.60}")
        if self.truncate_dim is not None and type(self.truncate_dim) is not int:
            raise InputError(f"truncate_dim: expected a whole number or None, found {self.truncate_dim!r:.60}")

    def width(self, bundle: Bundle) -> int:
        """Components of a dense vector."""
        width = bundle.dims[bundle.of_pooled]
        return min(width, self.dim(bundle) or width)

    def dim(self, bundle: Bundle) -> int | None:
        """Components that vectors are cut to; None for all."""
        return self.truncate_dim or bundle.truncate_dim

    def output(self, head: str, bundle: Bundle) -> str:
        """The graph's output that `head` is made of."""
        if self.mcls:
            assert bundle.token_states
            return bundle.token_states
        if self.normalize is False:
            return bundle.raw_outputs.get(head, bundle.outputs[head])
        return bundle.outputs[head]


def heads_of(heads: Sequence[str]) -> tuple[str, ...]:
    """The names of heads. Raises InputError: one string, or no sequence of strings."""
    if isinstance(heads, str | bytes) or not isinstance(heads, Iterable):
        raise InputError(f"heads: expected a list of names, as ['dense'], found {heads!r:.60}")
    names = tuple(heads)
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"heads: expected names, as 'dense', found {names!r:.60}")
    return names
