"""Everything of a bundle but the manifest's parity: graph, weights, tokenizer, and the files that others look for."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import transformers
from tokenizers import Tokenizer
from tqdm import tqdm

from bge_export.bundle.folder import alone
from bge_export.bundle.portable_files import write_json
from bge_export.checkpoint.recipe import Recipe
from bge_export.checkpoint.tokenizer import prepend_lower_case
from bge_export.lowering.targets import Target
from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.manifest import sealed
from bge_onnx.bundle.records import FORMAT_VERSION, MANIFEST, FileRecord, Parity, sha256_of
from bge_onnx.errors import BundleError, CheckpointError
from bge_onnx.files.replace import replacing

TOKENIZER = "tokenizer.json"

WAIT_S = 60
"""Another process that records in the same bundle is done in less."""

SPECIAL = ("pad", "bos", "cls", "sep", "eos", "unk", "mask")


def write_graph(folder: Path, model: ir.Model, target: Target, *, progress: bool) -> None:
    """Save the graph, its weights beside it as external data, read and written one by one."""
    path = folder / target.graph
    path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(desc="weights", unit="B", unit_scale=True, disable=not progress) as bar:
        bar.total = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)

        def advance(tensor: ir.TensorProtocol, _: Any) -> None:
            bar.update(tensor.nbytes)

        try:
            ir.save(model, path, external_data=target.weights, alignment=4096, callback=advance)
        except ir.serde.SerdeError as error:  # hides what a lazy weight raised
            cause: BaseException = error
            while cause.__cause__:
                cause = cause.__cause__
            raise (cause if isinstance(cause, CheckpointError) else error) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise OSError(errno.ENOSPC, f"{path}: {error}") from error  # numpy's tofile says how much, not why


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """The tokenizers library raises a plain Exception where it cannot write: OSError again."""
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) or not found:
            raise
        raise OSError(int(found[1]), str(error)) from error


def write_tokenizer(folder: Path, tokenizer: transformers.PreTrainedTokenizerBase, recipe: Recipe) -> dict[str, int]:
    """Write `tokenizer.json`, without the padding and truncation some checkpoints store in it; returns special ids."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    if recipe.lower_cased:
        prepend_lower_case(backend)
    special = {kind: getattr(tokenizer, f"{kind}_token_id") for kind in SPECIAL}
    if special["pad"] is None:  # decoders have none; a batch of equal lengths needs none
        special["pad"] = special["eos"]
    with _os_errors():
        backend.save(str(folder / TOKENIZER))
    return {kind: int(token_id) for kind, token_id in special.items() if token_id is not None}


def write_whole_tokenizer(folder: Path, tokenizer: transformers.PreTrainedTokenizerBase, recipe: Recipe) -> None:
    """Write the tokenizer's own files too, as transformers does. Call before `write_tokenizer`."""
    tokenizer.model_max_length = recipe.max_tokens
    with _os_errors():
        tokenizer.save_pretrained(folder)


def write_manifest(bundle: Bundle) -> Bundle:
    """Write `bundle.json` with the size and hash of every file in a new folder; returns the bundle with those."""
    paths = sorted(path for path in bundle.folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {
        path.relative_to(bundle.folder).as_posix(): FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in paths
    }
    return rewrite_manifest(dataclasses.replace(bundle, files=files))


def rewrite_manifest(bundle: Bundle) -> Bundle:
    """Put a manifest in the place of the one that is there, in one step; the files stay as they are listed.

    Raises OSError: the folder cannot be written, the disk is full; the old manifest is kept then.
    """
    record = sealed({**bundle.to_json(), "format_version": FORMAT_VERSION})
    with replacing(bundle.folder / MANIFEST) as partial:
        write_json(partial, record)
    return Bundle.open(bundle.folder)


def record(
    bundle: Bundle, *, parity: Parity | None = None, quality: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Add what was measured of a bundle to its manifest, in one step; in a read-only folder do nothing.

    quality  values by the name of their task, beside those of other tasks

    Raises BundleError: another bundle took its place since it was opened. OSError: the manifest cannot be written.
    """
    if not os.access(bundle.folder, os.W_OK):
        return
    with alone(bundle.folder, wait_s=WAIT_S):
        found = Bundle.open(bundle.folder)  # anew: measuring takes hours
        if found.identity != bundle.identity:
            raise BundleError(
                f"{bundle.folder}: expected the bundle that was measured, found that another took its place.\n"
                "    Nothing was recorded in it. Measure the new one."
            )
        both = {**found.quality, **{task: dict(values) for task, values in (quality or {}).items()}}
        rewrite_manifest(dataclasses.replace(found, parity=parity or found.parity, quality=both))


def versions() -> Mapping[str, str]:
    """Versions of what makes a bundle."""
    names = ("bge-onnx", "torch", "transformers", "onnx-ir", "onnxruntime", "tokenizers")
    return {name: version_of(name) for name in names}


def version_of(name: str) -> str:
    """Of a module that is loaded, else of a package: what runs may be another than what is installed."""
    loaded = getattr(sys.modules.get(name.replace("-", "_")), "__version__", None)
    if loaded:
        return str(loaded)
    try:
        return version(name)
    except PackageNotFoundError:
        return "from source"
