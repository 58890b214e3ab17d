"""LoRA adapters: merged into the weights that they change, where peft is installed."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bge_export import hub
from bge_export.checkpoint_files import model_folder
from bge_export.config import quoted, read_json
from bge_export.weights import ADAPTER, PICKLES, SAFETENSORS, sha256_of, weight_files
from bge_onnx.errors import CheckpointError, first_line
from bge_onnx.hub import REPOSITORY
from bge_onnx.json_file import shortened

ADAPTER_FILES = "adapter_*"
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.index.json", "*.pt", "*.onnx*")


@contextmanager
def merged(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """A folder with whole weights, and the hash of adapter and base; `folder` itself and None without an adapter.

    An adapter is merged with its base in float32, in a temporary folder. Without peft it stays what it is, and is
    refused where weights are read. Raises CheckpointError: an adapter that does not fit its base.
    """
    path = folder / ADAPTER
    if not path.is_file() or not importlib.util.find_spec("peft"):
        yield folder, None
        return
    weights = [file for name in ("adapter_model.safetensors", "adapter_model.bin") if (file := folder / name).is_file()]
    if not weights:
        raise CheckpointError(f"{folder}: expected adapter_model.safetensors beside {ADAPTER}, found none.")
    with tempfile.TemporaryDirectory(prefix="bge-export-") as temporary:
        base, out = Path(temporary) / "base", Path(temporary) / "merged"
        shutil.copytree(model_folder(_base_of(folder)), base, ignore=shutil.ignore_patterns(ADAPTER_FILES))
        sha256 = sha256_of([path, weights[0], *weight_files(base)])
        shutil.copytree(base, out, ignore=shutil.ignore_patterns(*WEIGHT_FILES))
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns(ADAPTER_FILES, *_main_weights()), dirs_exist_ok=True)
        config = (base / "config.json").read_bytes()
        try:
            _merge(base, folder).save_pretrained(out)
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001 - of a damaged adapter, peft and transformers raise what they like
            raise CheckpointError(
                f"{path}: expected a LoRA adapter that fits its base, found {shortened(first_line(error))}.\n"
                "    Merge it with what it was trained with, and export the merged model."
            ) from None
        (out / "config.json").write_bytes(config)
        yield out, sha256


def _main_weights() -> tuple[str, ...]:
    return (*SAFETENSORS, *PICKLES, "model-*.safetensors", "pytorch_model-*.bin")


def _base_of(folder: Path) -> Path:
    """As transformers decides it: the model beside the adapter, else the one that the adapter names."""
    if (folder / "config.json").is_file():
        return folder
    name = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(name, str) or not (Path(name).is_dir() or REPOSITORY.fullmatch(name)):
        raise CheckpointError(
            f"{folder / ADAPTER}: expected base_model_name_or_path to be a folder or a Hub name, found "
            f"{quoted(name)}.\n"
            "    Put the base model's files beside the adapter."
        )
    return Path(name) if Path(name).is_dir() else hub.download(name, None)[0]


def _merge(base: Path, adapter: Path) -> Any:
    """The base model with the adapter in its weights. Raises CheckpointError: the adapter changes other weights."""
    import transformers  # noqa: PLC0415 - takes seconds

    peft: Any = importlib.import_module("peft")
    model = transformers.AutoModel.from_pretrained(base, dtype="float32")
    model = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(str(adapter)))
    found = peft.set_peft_model_state_dict(model, peft.load_peft_weights(str(adapter), device="cpu"))
    wrong = [*found.unexpected_keys, *(name for name in found.missing_keys if "lora_" in name)]
    if wrong:
        raise CheckpointError(
            f"{adapter / ADAPTER}: expected an adapter for the weights of its base, found {len(wrong)} others or "
            f"missing, {shortened(wrong[0])}.\n    Merge it with what it was trained with, and export the merged model."
        )
    return model.merge_and_unload()
