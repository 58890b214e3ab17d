"""Checkpoints from the Hugging Face Hub: only the files that an export needs, at a pinned revision."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from bge_onnx.errors import CheckpointError

SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
WEIGHTS = (
    ("model.safetensors", ("model.safetensors",)),
    ("model.safetensors.index.json", ("model.safetensors.index.json", "model-*.safetensors")),
    ("pytorch_model.bin", ("pytorch_model.bin",)),
    ("pytorch_model.bin.index.json", ("pytorch_model.bin.index.json", "pytorch_model-*.bin")),
)


def download(repository: str, revision: str | None) -> tuple[Path, str]:
    """The local folder of a checkpoint and its commit, downloaded where it is not in the cache; bars go to stderr.

    huggingface_hub honours HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT, and resumes what was cut off.
    Raises CheckpointError: no such repository or revision, no access, no network and nothing in the cache.
    """
    try:
        patterns = [*SMALL_FILES, *_weight_patterns(repository, revision)]
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise CheckpointError(
            f"{repository}: expected a repository on {constants.ENDPOINT} at revision {revision or 'main'}, found "
            f"{type(error).__name__}: {first}\n"
            "    Check the name, HF_TOKEN (for private models) and the network, or give a folder with --checkpoint."
        ) from error
    return folder, folder.name  # huggingface_hub names a snapshot's folder after its commit


def _weight_patterns(repository: str, revision: str | None) -> tuple[str, ...]:
    """File patterns of one copy of the weights: safetensors where the repository has them."""
    if constants.HF_HUB_OFFLINE:
        return tuple(pattern for _, patterns in WEIGHTS for pattern in patterns)
    present = set(HfApi().list_repo_files(repository, revision=revision))
    for file, patterns in WEIGHTS:
        if file in present:
            return patterns
    raise CheckpointError(
        f"{repository}: expected weights ({', '.join(file for file, _ in WEIGHTS)}), found none of them there."
    )
