"""LoRA adapters: merged into the weights that they change, where peft is installed."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bge_export.checkpoint import hub
from bge_export.checkpoint.config import quoted, read_json
from bge_export.checkpoint.files import model_folder
from bge_export.checkpoint.weights import ADAPTER, sha256_of, weight_files
from bge_onnx.bundle.hub import REPOSITORY
from bge_onnx.errors import CheckpointError, first_line
from bge_onnx.files.json_file import shortened

ADAPTER_FILES = "adapter_*"
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.index.json")


@contextmanager
def merged(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """A folder with whole weights, and the hash of adapter and base; `folder` itself and None without an adapter.

    An adapter is merged with its base in float32, in a temporary folder. Without peft it stays what it is, and is
    refused where weights are read. Raises CheckpointError: an adapter that does not fit its base.
    """
    inner = model_folder(folder)
    path = inner / ADAPTER
    if not path.is_file() or not importlib.util.find_spec("peft"):
        yield folder, None
        return
    weights = [file for name in ("adapter_model.safetensors", "adapter_model.bin") if (file := inner / name).is_file()]
    if not weights:
        raise CheckpointError(f"{inner}: expected adapter_model.safetensors beside {ADAPTER}, found none.")
    whole = folder if (inner / "config.json").is_file() else _base_of(path)  # as transformers decides it
    with tempfile.TemporaryDirectory(prefix="bge-export-") as temporary:
        base, out = Path(temporary) / "base", Path(temporary) / "merged"
        shutil.copytree(model_folder(whole), base, ignore=shutil.ignore_patterns(ADAPTER_FILES))
        shutil.copytree(whole, out, ignore=_but_for_weights(model_folder(whole)))
        if whole != folder:  # its own modules and tokenizer count
            nested = ("modules.json",) if model_folder(whole) != whole else ()
            shutil.copytree(folder, out, ignore=_but_for_weights(inner, *nested), dirs_exist_ok=True)
        others = [file for pattern in ("*.pt", "*/*.safetensors", "*/*.bin") for file in sorted(out.glob(pattern))]
        sha256 = sha256_of([path, weights[0], *weight_files(base), *others])
        config = (base / "config.json").read_bytes()
        try:
            _merge(base, inner).save_pretrained(model_folder(out))
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001 - of a damaged adapter, peft and transformers raise what they like
            raise CheckpointError(
                f"{path}: expected a LoRA adapter that fits its base, found {shortened(first_line(error))}.\n"
                "    Merge it with what it was trained with, and export the merged model."
            ) from None
        (model_folder(out) / "config.json").write_bytes(config)
        yield out, sha256


def _but_for_weights(model: Path, *others: str) -> Callable[[str, list[str]], set[str]]:
    """What `copytree` leaves out: in the model's folder its weights, adapter and `others`; graphs everywhere."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        own = (ADAPTER_FILES, *WEIGHT_FILES, *others) if Path(folder) == model else ()
        return shutil.ignore_patterns("*.onnx*", *own)(folder, names)

    return ignored


def _base_of(path: Path) -> Path:
    """The folder of the model that an adapter names."""
    name = read_json(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not (Path(name).is_dir() or REPOSITORY.fullmatch(name)):
        raise CheckpointError(
            f"{path}: expected base_model_name_or_path to be a folder or a Hub name, found {quoted(name)}.\n"
            "    Put the base model's files beside the adapter."
        )
    return Path(name) if Path(name).is_dir() else hub.download(name, None)[0]


def _merge(base: Path, adapter: Path) -> Any:
    """The base model with the adapter in its weights. Raises CheckpointError: the adapter changes other weights."""
    import transformers  # noqa: PLC0415 - takes seconds

    peft: Any = importlib.import_module("peft")
    model = transformers.AutoModel.from_pretrained(base, dtype="float32")
    config = peft.PeftConfig.from_pretrained(str(adapter))
    config.base_model_name_or_path = None  # it lies in a temporary folder here, which peft would warn of
    model = peft.get_peft_model(model, config)
    found = peft.set_peft_model_state_dict(model, peft.load_peft_weights(str(adapter), device="cpu"))
    wrong = [*found.unexpected_keys, *(name for name in found.missing_keys if "lora_" in name)]
    if wrong:
        raise CheckpointError(
            f"{adapter / ADAPTER}: expected an adapter for the weights of its base, found {len(wrong)} others or "
            f"missing, {shortened(wrong[0])}.\n    Merge it with what it was trained with, and export the merged model."
        )
    return model.merge_and_unload()
