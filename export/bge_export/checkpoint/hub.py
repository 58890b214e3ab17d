"""Checkpoints from the Hugging Face Hub: only the files that an export needs, at a pinned revision."""

from __future__ import annotations

import contextlib
import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from bge_export.checkpoint.files import SENTENCE_FILES, model_folder
from bge_export.checkpoint.heads import FILES
from bge_onnx.bundle.hub import hub_errors
from bge_onnx.errors import CheckpointError, first_line

MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "adapter_model.*",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    *SENTENCE_FILES,
)
FIRST = "0_*/"  # the first module's folder, where old versions of sentence-transformers put the model's files
SMALL_FILES = (
    *MODEL_FILES,
    *(f"{FIRST}{name}" for name in MODEL_FILES),
    "modules.json",
    "config_sentence_transformers.json",
    *(f"[1-9]*_*/{name}" for name in ("config.json", "model.safetensors", "pytorch_model.bin")),  # other modules
    *FILES.values(),
)
WEIGHTS = (
    ("model.safetensors", ("model.safetensors",)),
    ("model.safetensors.index.json", ("model.safetensors.index.json", "model-*.safetensors")),
    ("pytorch_model.bin", ("pytorch_model.bin",)),
    ("pytorch_model.bin.index.json", ("pytorch_model.bin.index.json", "pytorch_model-*.bin")),
    ("adapter_config.json", ()),  # alone: what to do is said where weights are read
)


def download(repository: str, revision: str | None) -> tuple[Path, str]:
    """The local folder of a checkpoint and its commit, downloaded where it is not in the cache; bars go to stderr.

    huggingface_hub honours HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT, and resumes what was cut off. Without a
    network the cache serves.
    Raises CheckpointError: no such repository or revision, no access, no network and nothing in the cache.
    """
    try:
        folder = _snapshot(repository, revision)
    except hub_errors() as error:
        raise CheckpointError(
            f"{repository}: expected a repository on {constants.ENDPOINT} at revision {revision or 'main'}, found "
            f"{first_line(error)}\n"
            "    Check the name, HF_TOKEN (for private models) and the network, or give a folder with --checkpoint."
        ) from error
    return folder, folder.name  # huggingface_hub names a snapshot's folder after its commit


def _snapshot(repository: str, revision: str | None) -> Path:
    try:
        present = set(HfApi().list_repo_files(repository, revision=revision))
    except HfHubHTTPError:  # the Hub has answered: no such repository, no access
        raise
    except hub_errors() as error:
        return _cached(repository, revision, error)
    for file, patterns in WEIGHTS:
        for place in ("", FIRST):
            if fnmatch.filter(present, place + file):
                wanted = [*SMALL_FILES, *(place + pattern for pattern in patterns)]
                return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    raise CheckpointError(
        f"{repository}: expected weights ({', '.join(file for file, _ in WEIGHTS)}), found none of them there."
    )


def _cached(repository: str, revision: str | None, error: Exception) -> Path:
    """The snapshot that an earlier run downloaded, whichever weights it took; raises `error` where there is none."""
    for file, patterns in WEIGHTS:
        with contextlib.suppress(*hub_errors()):
            wanted = [*SMALL_FILES, *patterns, *(FIRST + pattern for pattern in patterns)]
            folder = snapshot_download(repository, revision=revision, allow_patterns=wanted, local_files_only=True)
            if (model_folder(Path(folder)) / file).is_file():
                return Path(folder)
    raise error
