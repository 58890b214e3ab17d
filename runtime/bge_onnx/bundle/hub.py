"""Bundles from the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bge_onnx.bundle.records import MANIFEST
from bge_onnx.errors import BundleError, InputError, first_line
from bge_onnx.files.json_file import read_json

REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")


def find_bundle(bundle: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The local folder of a bundle: `bundle` itself where that exists, else the Hub repository of that name.

    Only the files that the repository's manifest lists are downloaded. huggingface_hub decides on cache, token, offline
    mode and endpoint (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT) and resumes what was cut off.
    Raises BundleError: no such repository, or one without a bundle. InputError: neither a path nor a name.
    """
    if not isinstance(bundle, str | os.PathLike):
        raise InputError(f"bundle: expected a folder or a repository's name, found {bundle!r:.60}")
    folder = Path(bundle)
    if folder.exists() or not isinstance(bundle, str) or not REPOSITORY.fullmatch(bundle):
        return folder
    from huggingface_hub import hf_hub_download, snapshot_download  # noqa: PLC0415 - a local bundle must not wait for it

    errors: tuple[type[Exception], ...] = (*hub_errors(), KeyError, TypeError)
    try:
        manifest = Path(hf_hub_download(bundle, MANIFEST, revision=revision, cache_dir=cache_dir))
        files = list(read_json(manifest)["files"])
        return Path(
            snapshot_download(bundle, revision=revision, cache_dir=cache_dir, allow_patterns=[MANIFEST, *files])
        )
    except errors as error:
        raise BundleError(
            f"{bundle}: expected a local folder, or a Hub repository with a {MANIFEST}; there is no such folder, and "
            f"the Hub says: {first_line(error)}\n"
            f"    A checkpoint becomes a bundle with `bge-export run {bundle} --out DIR`. Private ones need HF_TOKEN."
        ) from error


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: its own errors, those of the HTTP client it is built on, and bad names."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError  # noqa: PLC0415

    return (*HfHubHTTPError.__bases__, EntryNotFoundError, ValueError)
