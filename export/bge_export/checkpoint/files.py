"""Where a checkpoint's files are: in its folder, or where sentence-transformers' first versions put them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from bge_export.checkpoint.config import quoted, read_json
from bge_onnx.errors import CheckpointError, first_line
from bge_onnx.files.json_file import shortened

# As sentence-transformers looks for them; the first that is there and not empty counts.
SENTENCE_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)


def model_folder(folder: Path) -> Path:
    """The folder of config.json, weights and tokenizer: the checkpoint's own, or its first module's.

    Old versions of sentence-transformers put them into `0_Transformer` or `0_BERT`.
    Raises CheckpointError: modules.json names no folder inside the checkpoint.
    """
    path = folder / "modules.json"
    modules = read_json(path, list) if path.is_file() else []
    first = modules[0] if modules and isinstance(modules[0], dict) else {}
    return folder / module_path(path, first.get("path") or "")


def module_path(file: Path, given: Any) -> str:
    """A module's path in `modules.json` as a folder's name, empty for the checkpoint's own folder.

    Raises CheckpointError: no folder inside the checkpoint.
    """
    path = PurePosixPath(given) if isinstance(given, str) else PurePosixPath("..")
    if len(path.parts) > 1 or path.parts in (("..",), ("/",)):
        raise CheckpointError(
            f"{file}: expected a module's path to be a folder beside it, found {quoted(given)}.\n"
            "    Download the checkpoint again."
        )
    return path.name


def sentence_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """The name and content of `sentence_bert_config.json`, or of the file under its older names."""
    for name in SENTENCE_FILES:
        path = model_folder(folder) / name
        settings = read_json(path) if path.is_file() else {}
        if settings:
            return name, settings
    return SENTENCE_FILES[0], {}


def require_files(folder: Path) -> None:
    """Raise CheckpointError: the folder holds something that is no file, as a FIFO; reading it could wait forever."""
    for path in [*folder.iterdir(), *(path for sub in folder.iterdir() if sub.is_dir() for path in sub.iterdir())]:
        if path.exists() and not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
            raise CheckpointError(
                f"{path}: expected a file, found a {'FIFO' if stat.S_ISFIFO(mode) else 'device or socket'}.\n"
                "    Give a folder that holds the checkpoint's files alone."
            )


@contextmanager
def transformers_faults(folder: Path) -> Iterator[None]:
    """Whatever transformers raises of a checkpoint, as one short CheckpointError."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(
            f"{folder}: expected a checkpoint that transformers loads, found {shortened(first_line(error))}.\n"
            "    Download the checkpoint again."
        ) from error
