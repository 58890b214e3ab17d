"""The bundle: a folder with everything the runtime needs, and the only thing that passes from export to runtime."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bge_onnx.errors import BundleError

FORMAT_VERSION = 4
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the weights came from."""

    kind: Literal["hub", "folder", "random"]
    revision: str | None = None  # commit of the Hub repository
    seed: int | None = None  # of random weights
    sha256: str | None = None  # over all weight files in name order; of random weights, over the head files given


Storage = Literal["fp32", "fp16", "bf16"]
Activations = Literal[7, 8]

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
    """The manifest of a bundle, as `bundle.json` holds it. `folder` is where it lies."""

    folder: Path
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

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Bundle:
        """Read and check a bundle. Sizes of all files are always compared, hashes with `verify=True`.

        Raises BundleError: no bundle there, a newer format, a file missing, truncated or edited.
        """
        folder = Path(folder)
        bundle = _parse(folder, _read_manifest(folder))
        _check_files(bundle, verify=verify)
        return bundle

    @property
    def pad_id(self) -> int:
        """The token id that fills padded batches; never seen by the model's arithmetic."""
        return self.special_ids["pad"]

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        record = dataclasses.asdict(self)
        del record["folder"]
        return record


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "a folder without one" if folder.is_dir() else "no such folder"
        raise BundleError(
            f"{folder}: expected a bundle (a folder with {MANIFEST}), found {found}.\n"
            f"    Make one with `bge-export run MODEL --out {folder}`."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path}: expected a JSON manifest, found {error}.\n    Export the bundle again.") from None
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        advice = "Upgrade bge-onnx" if isinstance(version, int) and version > FORMAT_VERSION else "Export it again"
        raise BundleError(f"{path}: expected format_version {FORMAT_VERSION}, found {version!r}.\n    {advice}.")
    assert isinstance(record, dict)
    return record


def _parse(folder: Path, record: dict[str, Any]) -> Bundle:
    try:
        files = {name: FileRecord(**entry) for name, entry in record["files"].items()}
        parity = record["parity"]
        if parity is not None:
            heads = {head: HeadParity(**entry) for head, entry in parity["heads"].items()}
            parity = Parity(**{**parity, "heads": heads})
        source = Source(**record["source"])
        fields = {**record, "files": files, "parity": parity, "source": source, "kernels": tuple(record["kernels"])}
        bundle = Bundle(folder=folder, **fields)
        _check_values(bundle)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(
            f"{folder / MANIFEST}: expected a manifest of format {FORMAT_VERSION}, found an edited or damaged one "
            f"({type(error).__name__}: {error}).\n    Export the bundle again."
        ) from None
    return bundle


def _check_values(bundle: Bundle) -> None:
    if bundle.layout not in get_args(Layout):
        raise ValueError(f"layout {bundle.layout!r}")
    if not isinstance(bundle.max_tokens, int) or bundle.max_tokens < 1:
        raise ValueError(f"max_tokens {bundle.max_tokens!r}")
    if bundle.activations not in (*get_args(Activations), None):
        raise ValueError(f"activations {bundle.activations!r}")
    if "pad" not in bundle.special_ids or "dense" not in bundle.outputs or "dense" not in bundle.dims:
        raise ValueError("special_ids, outputs or dims incomplete")
    for name in (bundle.graph, bundle.tokenizer):
        if name not in bundle.files:
            raise ValueError(f"{name} is not among the files")
    for name in bundle.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name} lies outside the bundle")


def _check_files(bundle: Bundle, *, verify: bool) -> None:
    faults = []
    for name, record in bundle.files.items():
        path = bundle.folder / name
        if not path.is_file():
            faults.append(f"{name}   missing")
        elif (size := path.stat().st_size) != record.size_bytes:
            faults.append(f"{name}   expected {record.size_bytes} bytes, found {size}")
        elif verify and sha256_of(path) != record.sha256:
            faults.append(f"{name}   expected sha256 {record.sha256[:16]}…, found another")
    if faults:
        lines = "\n    ".join(faults)
        raise BundleError(
            f"{bundle.folder}: {len(faults)} of {len(bundle.files)} files are not as exported:\n    {lines}\n"
            "    Copy the bundle again, or export it again."
        )
