"""What `bundle.json` holds, and what is known of the files beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bge_onnx.bundle.graph_names import Layout
from bge_onnx.bundle.heads import of_pooled

FORMAT_VERSION = 5
OLDEST_VERSION = 4
"""Bundles of all formats from here on open. Format 5 added the manifest's own hash."""

MANIFEST = "bundle.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Size and hash of one file of a bundle."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells a file from another in its place, and from itself after somebody has written to it."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Of a file that is there. Raises OSError: there is none."""
        found = path.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the weights came from."""

    kind: Literal["hub", "folder", "random"]
    revision: str | None = None  # commit of the Hub repository
    seed: int | None = None  # of random weights
    sha256: str | None = None  # over all weight files in name order; of random weights, over the head files given


Storage = Literal["fp32", "fp16", "bf16"]
Activations = Literal[7, 8]

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
"""How two dense vectors are compared; of distances, their negative."""

Measure = Literal["difference", "1 - cosine", "relative"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadParity:
    """The largest error of one head against float32 PyTorch, and where it was.

    measure  "difference": the largest absolute difference of unit vectors or sparse weights. Where a bundle rounds its
             weights: "1 - cosine", or for sparse weights "relative", the length of the difference over their length
    """

    max_error: float
    measure: Measure
    limit: float
    text: int  # index of the worst text among those compared
    tokens: int  # that text's length

    @property
    def passed(self) -> bool:
        """True when the error is within the limit (a NaN never is)."""
        return self.max_error <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What the export's own check against PyTorch found."""

    texts: int
    heads: Mapping[str, HeadParity]
    tokenizer_mismatches: int  # texts whose token ids differ from the reference tokenizer's
    reference: str

    @property
    def passed(self) -> bool:
        """True when every head is within its limit and all token ids agree."""
        return self.tokenizer_mismatches == 0 and all(head.passed for head in self.heads.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The manifest of a bundle, as `bundle.json` holds it.

    folder    where it lies, an absolute path without links
    identity  SHA-256 of the manifest, which has the hashes of all other files in it, without parity and quality: those
              are written when the bundle is measured again
    states    of the manifest and all files when the bundle was opened
    """

    folder: Path
    identity: str = ""
    states: Mapping[str, FileState] = field(default_factory=dict)
    format_version: int
    name: str
    model: str
    model_type: str
    licence: str | None
    source: Source
    target: str
    provider: str  # the only ONNX Runtime execution provider it may run on
    layout: Layout
    graph: str  # file name, relative to the folder
    tokenizer: str
    outputs: Mapping[str, str]  # head -> name of the graph's output
    raw_outputs: Mapping[str, str]  # head -> the output before normalisation; empty if the graph has none
    token_states: str | None  # the output with the last layer's states (B, T, D), where the graph gives it
    dims: Mapping[str, int]  # head -> width of its vectors; of sparse ones, the vocabulary
    causal: bool  # tokens look back only: a prefix's keys and values are the same whatever follows
    pooling: str
    normalized: bool
    max_tokens: int
    lower_cased: bool  # the text was lower-cased before the checkpoint's tokenizer saw it; tokenizer.json does it
    prompts: Mapping[
        str, str
    ]  # "query", "passage" -> text put in front; "task", "between", "behind" where a model has them
    special_ids: Mapping[str, int]  # "pad", "cls", "sep", "unk", "mask" -> token id
    kernels: tuple[str, ...]  # custom operator libraries needed
    activations: Activations | None  # bits that an encoder's linear layers round their inputs to; None where not ours
    weights: Storage  # how matrices that the target does not round are stored; CPUs compute in float32
    calibration: str | None  # the texts that its weights were rounded for
    versions: Mapping[str, str]  # of what made it
    files: Mapping[str, FileRecord]
    parity: Parity | None
    quality: Mapping[str, Mapping[str, float]]  # task -> metric -> value, of those that were evaluated
    similarity: Similarity = "cosine"
    truncate_dim: int | None = None  # components that dense and ColBERT vectors are cut to, unless a caller says more

    @property
    def of_pooled(self) -> str:
        """The head that the pooled vector is; "" where there is none."""
        return of_pooled(self.outputs)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


NOT_IN_JSON = ("folder", "identity", "states")
