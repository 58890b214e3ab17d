"""What to export, and the folder where its weights lie while that is done."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bge_export.checkpoint import adapter, catalog, heads, hub
from bge_export.checkpoint.files import require_files
from bge_export.checkpoint.identity import checkpoint_sha256
from bge_export.checkpoint.recipe import Options
from bge_export.checkpoint.weights import sha256_of
from bge_export.lowering.int8.calibrate import Texts
from bge_export.lowering.int8.operators import Operators
from bge_export.models import random_checkpoint
from bge_onnx import CheckpointError
from bge_onnx.bundle.hub import REPOSITORY
from bge_onnx.bundle.records import Activations, Source, Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to export: a known or Hub name, or a local folder, or random weights of a known architecture."""

    model: str
    target: str
    checkpoint: Path | None = None
    revision: str | None = None
    seed: int | None = None
    head_files: Path | None = None  # folder with the heads' files for random weights, instead of random heads
    tokenizer: Path | None = None  # SentencePiece model for random weights, instead of an untrained tokenizer
    weights: Storage = "fp32"  # how matrices are stored; cpu-fp32 of encoders offers fp16
    calibration: Texts | None = None  # rounding errs least on these; None: random ids, where the target rounds
    kernels: Operators | Literal["auto"] | None = "auto"  # of bge_kernels; "auto" for the fastest that there are here
    activations: Activations = 8  # bits of the bytes that rows are rounded to; 7 for Int8Linear, faster on AVX2
    check: bool = True  # compare with PyTorch; False if this machine does not have the provider
    options: Options = dataclasses.field(default_factory=Options)


@contextmanager
def open_checkpoint(request: Request) -> Iterator[tuple[Path, Source]]:
    """The folder of the weights and where they came from; random ones are removed afterwards."""
    entry = catalog.find(request.model)
    if why := catalog.why_left_out(request.model):
        raise CheckpointError(f"{request.model}: expected a model that can be exported, found that {why}.")
    if request.checkpoint is not None:
        folder = request.checkpoint
        require_files(folder)
        with adapter.merged(folder) as (whole, sha256):
            yield whole, Source(kind="folder", sha256=sha256 or checkpoint_sha256(whole))
    elif request.seed is not None:
        if entry is None:
            known = ", ".join(known.short_name for known in catalog.ENTRIES)
            raise CheckpointError(f"{request.model}: expected a known model for --random-weights, one of {known}.")
        with tempfile.TemporaryDirectory(prefix="bge-export-") as temporary:
            folder = Path(temporary)
            random_checkpoint.write(
                folder,
                entry.config,
                seed=request.seed,
                lower_case=entry.lower_case,
                heads=entry.heads,
                sentencepiece_model=request.tokenizer,
            )
            given = heads.copy(request.head_files, folder) if request.head_files else []
            yield folder, Source(kind="random", seed=request.seed, sha256=sha256_of(given) if given else None)
    else:
        if entry is None:
            _require_hub_name(request.model)
        revision = request.revision or (entry.revision if entry else None)
        folder, commit = hub.download(entry.repository if entry else request.model, revision)
        with adapter.merged(folder) as (whole, sha256):
            yield whole, Source(kind="hub", revision=commit, sha256=sha256 or checkpoint_sha256(whole))


def _require_hub_name(model: str) -> None:
    """Raise CheckpointError: what is to be exported is a folder, or no name that a Hub repository can have."""
    folder = (Path(model) / "config.json").is_file() or (Path(model) / "modules.json").is_file()
    if folder or not REPOSITORY.fullmatch(model):
        found = "the folder of a checkpoint" if folder else "neither"
        name = Path(model).resolve().name if folder else "NAME"
        raise CheckpointError(
            f"{model}: expected a known model (see `bge-export list`) or a Hub name OWNER/NAME, found {found}.\n"
            f"    A folder goes with --checkpoint, beside a name for the bundle: `bge-export run {name} --checkpoint "
            f"{model if folder else 'DIR'} --out OUT`."
        )
