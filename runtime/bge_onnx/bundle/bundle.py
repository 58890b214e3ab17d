"""The bundle: a folder with everything the runtime needs, and the only thing that passes from export to runtime."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bge_onnx.errors import BundleError

FORMAT_VERSION = 5
OLDEST_VERSION = 4
"""Bundles of all formats from here on open. Format 5 added the manifest's own hash."""

MANIFEST = "bundle.json"

QUERY_TOKENS = "query_tokens"
"""A graph's input (1,) int64, where it has one: for how many tokens, from the first on, the last layer is computed."""

TEXT_STARTS, CU_SEQLENS, TOKEN_OFFSET = "text_starts", "cu_seqlens", "token_offset"
"""A packed graph's inputs beside input_ids (T,): for each token where its text begins, (T,) int64; the same by text and
the end of the last, (B + 1,) int32; and (B, longest) int32, which ONNX Runtime's packed attention describes."""

POSITION_IDS, POSITIONS_PAST_PADDING = "position_ids", "positions_past_padding"
"""One of these is too, (T,) int64: a token's index in its text, or the number of tokens up to it that are not padding,
counted from the padding id on; the padding id itself, where a text has it, has that position."""

STATE_ROWS, POOLED_ROWS = "state_rows", "pooled_rows"
"""A packed graph's inputs (S,) and (B,) int64: the tokens that the last layer is computed for, and which of those the
texts' dense vectors are made of."""

LAST_PLACES, TOKENS = "last_places", "tokens"
"""Inputs of a graph of whole texts, as ONNX Runtime's grouped-query attention wants them: the place of each text's last
token, (B,) int32, and the tokens of the longest, int32 without an axis. `POOLED_ROWS` is one too, of B × T rows."""

PAST_KEYS, PAST_VALUES, KEPT_TOKENS, KEYS, VALUES = "past_keys", "past_values", "kept_tokens", "keys", "values"
"""Inputs and outputs of a decoder's graph: keys and values of a prefix, and how many tokens' are wanted back."""

Layout = Literal["equal", "padded", "packed", "whole"]
"""How texts share a batch: `equal`, all of one length and no mask; `padded`, with an attention mask; `packed`, one
after another without a text axis; `whole`, of causal models on a device, padded on the right, where no token looks."""

ON_DEVICE: frozenset[Layout] = frozenset({"packed", "whole"})
"""Of bundles that run on devices: what depends on lengths comes from the host."""


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

    measure  "difference", the largest absolute one of unit vectors or sparse weights; where weights are rounded
             "1 - cosine", and of sparse weights "relative": the length of the difference over that of the weights
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
class Bundle:
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
    raw_outputs: Mapping[str, str]  # head -> the output before normalisation; none where the graph gives no such
    token_states: str | None  # the output with the last layer's states (B, T, D), where the graph gives it
    dims: Mapping[str, int]  # head -> width of its vectors; of sparse ones, the vocabulary
    causal: bool  # tokens look back only: a prefix's keys and values are the same whatever follows
    pooling: str
    normalized: bool
    max_tokens: int
    lower_cased: bool  # the text was lower-cased before the checkpoint's tokenizer saw it; tokenizer.json does it
    prompts: Mapping[str, str]  # "query", "passage" -> text put in front
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

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Bundle:
        """Read and check a bundle. Sizes of all files are always compared, hashes with `verify=True`.

        Raises BundleError: no bundle there, a newer format, a manifest that was edited, a file missing or truncated.
        """
        from bge_onnx.bundle import manifest  # noqa: PLC0415 - it reads what is declared here

        return manifest.open_bundle(Path(folder), verify=verify)

    @property
    def pad_id(self) -> int:
        """The token id that fills padded batches; never seen by the model's arithmetic."""
        return self.special_ids["pad"]

    @property
    def mapped(self) -> tuple[str, ...]:
        """The files with weights, which ONNX Runtime maps into memory and does not copy."""
        own = (MANIFEST, self.graph, self.tokenizer)
        folder = self.graph.rpartition("/")[0]
        return tuple(name for name in self.states if name not in own and name.rpartition("/")[0] == folder)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        record = dataclasses.asdict(self)
        for name in NOT_IN_JSON:
            del record[name]
        return record

    def require_unchanged(self) -> None:
        """Raise BundleError: the folder holds another bundle than the one that was opened, or none any more."""
        changed = []
        for name, state in self.states.items():
            try:
                same = FileState.of(self.folder / name) == state
            except OSError:
                same = False
            if not same:
                changed.append(name)
        if changed == [MANIFEST] and self._is_still_listed():
            return
        self._refuse(changed, "is another or gone")

    def _is_still_listed(self) -> bool:
        """Whether the manifest, which was written anew, differs in what was measured of the bundle alone."""
        from bge_onnx.bundle import manifest  # noqa: PLC0415 - it reads what is declared here

        try:
            return manifest.read_manifest(self.folder / MANIFEST).identity == self.identity
        except BundleError:
            return False

    def require_unwritten(self, names: Iterable[str]) -> None:
        """Raise BundleError: somebody has written to one of these files, which are mapped into memory.

        A file that was removed or replaced is no harm: what was mapped stays.
        """
        written = []
        for name in names:
            state = self.states[name]
            try:
                found = os.stat(self.folder / name)  # noqa: PTH116 - twice as fast as Path.stat, before and after each run
            except OSError:
                continue
            same = (found.st_dev, found.st_ino) == (state.device, state.inode)
            if same and (found.st_size, found.st_mtime_ns) != (state.size_bytes, state.modified_ns):
                written.append(name)
        self._refuse(written, "was written to")

    def _refuse(self, names: list[str], what: str) -> None:
        if names:
            raise BundleError(
                f"{self.folder}: expected the bundle that was opened, found that {', '.join(names[:3])} {what}.\n"
                "    Open the bundle again. To replace one, put the new folder in its place as a whole, as "
                "`bge-export run --force` does."
            )


NOT_IN_JSON = ("folder", "identity", "states")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
