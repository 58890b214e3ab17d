"""Lazy reading of a checkpoint's weights: nothing is in memory before it is written to the bundle."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from bge_export.checkpoint.config import LISTED, listed, quoted, read_json
from bge_export.checkpoint.files import model_folder
from bge_export.checkpoint.modules import weight_file
from bge_onnx.errors import CheckpointError
from bge_onnx.files.json_file import shortened

Array = NDArray[np.float32]
Shape = tuple[int, ...]

Rounding = Callable[[str, Array], Array]
"""Gives what a target computes with in the place of a weight's values or of a module's input rows (N, K).

Takes the name of the weight or module, and the values or rows."""

Read = Callable[[slice], torch.Tensor]
ALL = slice(None)

# In the order in which transformers looks for them.
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"

OLD_NAMES = {"gamma": "weight", "beta": "bias"}
"""What TensorFlow called the parts of a LayerNorm; transformers loads them under either name."""


class LazyRows(ir.LazyTensor):
    """A matrix that is read when it is written, whole or some rows at a time: word tables are larger than memory is."""

    def __init__(self, name: str, shape: Shape, rows: Callable[[int, int], Array]) -> None:
        super().__init__(lambda: ir.tensor(rows(0, shape[0]), name=name), ir.DataType.FLOAT, ir.Shape(shape), name=name)
        self.rows = rows


@dataclass(frozen=True, slots=True)
class Weights:
    """Named tensors of a checkpoint. Names are without the task prefix (`bert.`) that some checkpoints have."""

    shapes: Mapping[str, Shape]
    _read: Mapping[str, Read]

    @classmethod
    def open(cls, folder: Path, *, prefix: str, heads: Iterable[str] = (), modules: Iterable[str] = ()) -> Weights:
        """Open `model.safetensors` or `pytorch_model.bin`, one file or sharded; safetensors where both are there.

        heads    files of a linear layer each: `sparse_linear.pt` gives `sparse_linear.weight` and `sparse_linear.bias`
        modules  folders of a Dense each: `2_Dense` gives `2_Dense.linear.weight` and perhaps `2_Dense.linear.bias`

        Raises CheckpointError: no weights, a truncated or damaged file, a pickle that holds more than tensors, a weight
        in two files.
        """
        tensors: dict[str, tuple[Shape, Read]] = {}
        for file in weight_files(folder):
            _refuse_pointer(file)
            found = _tensors(file)
            if twice := sorted(tensors.keys() & found.keys()):
                raise CheckpointError(
                    f"{file}: expected each weight in one file, found {', '.join(twice[:3])} in another too.\n"
                    "    Are shards of two downloads mixed? Download the checkpoint again."
                )
            tensors |= found
        named = _named(tensors, prefix)
        for head in heads:
            file = folder / head
            _refuse_pointer(file)
            named |= {f"{file.stem}.{name}": tensor for name, tensor in _pickle(file).items()}
        for module in modules:
            file = weight_file(folder, module)
            _refuse_pointer(file)
            named |= {f"{module}.{name}": tensor for name, tensor in _tensors(file).items()}
        shapes = {name: shape for name, (shape, _) in named.items()}
        return cls(shapes, {name: read for name, (_, read) in named.items()})

    def read(self, name: str, *, rows: slice = ALL) -> Array:
        """One tensor, or some of its rows, as float32. Raises CheckpointError: it holds NaN or infinity."""
        tensor = self._read[name](rows)
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{name}: expected floating-point weights, found {str(tensor.dtype).removeprefix('torch.')}.\n"
                "    Quantised checkpoints are not supported: take the original."
            )
        array: Array = tensor.to(torch.float32).numpy()
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"{name}: expected finite weights, found {int((~np.isfinite(array)).sum())} NaN or infinite of "
                f"{array.size}.\n    The checkpoint is damaged, or its training diverged: take another."
            )
        return array

    def lazy(self, name: str, compute: Callable[[], Array], shape: Shape) -> ir.LazyTensor:
        """A tensor of the graph. `compute` gives its values when the graph is written, not before."""
        return ir.LazyTensor(lambda: ir.tensor(compute(), name=name), ir.DataType.FLOAT, ir.Shape(shape), name=name)

    def lazy_rows(self, name: str, rows: Callable[[int, int], Array]) -> LazyRows:
        """A matrix of the graph. `rows` gives its rows from start to stop."""
        return LazyRows(name, self.shapes[name], rows)

    def require_layers(self, layers: int) -> None:
        """Raise CheckpointError: `config.json` asks for more layers than there can be in these weights."""
        if layers > len(self.shapes):
            raise CheckpointError(
                f"config.json: expected num_hidden_layers of at most {len(self.shapes)}, as many as there are weights, "
                f"found {layers}.\n    Is it the config.json of these weights?"
            )

    def check(self, expected: Mapping[str, Shape], *, harmless: Iterable[str], model_type: str) -> None:
        """Raise CheckpointError listing weights that are missing, of another shape, or more than the model has.

        harmless  beginnings of names that a checkpoint may hold though the vectors do not depend on them
        """
        beginnings = tuple(harmless)
        absent = [name for name in expected if name not in self.shapes]
        self._refuse_wrapped(absent, model_type)
        missing = [f"{name}   expected {expected[name]}, found nothing" for name in absent]
        misshapen = [
            f"{name}   expected {shape}, found {self.shapes[name]}"
            for name, shape in expected.items()
            if name in self.shapes and self.shapes[name] != shape
        ]
        extra = [
            f"{shortened(name)}   unknown"
            for name in self.shapes
            if name not in expected and not name.startswith(beginnings)
        ]
        if missing or misshapen or extra:
            raise CheckpointError(
                f"{model_type}: {len(missing)} weights missing, {len(misshapen)} of another shape, "
                f"{len(extra)} unknown:\n    {listed([*missing, *misshapen, *extra])}\n"
                "    Are config.json and the weights of the same model?"
            )

    def _refuse_wrapped(self, absent: Sequence[str], model_type: str) -> None:
        """Raise CheckpointError: the missing weights are there, but a wrapper's name stands in front of their names.

        transformers does not find them either, and would go on with random ones.
        """
        for name in absent[:1]:
            wrapped = next((found for found in self.shapes if found.endswith(f".{name}")), None)
            prefix = wrapped.removesuffix(name) if wrapped else None
            if prefix and all(prefix + other in self.shapes for other in absent):
                raise CheckpointError(
                    f"{model_type}: expected weights named as transformers names them, {name}, found them behind "
                    f"{shortened(prefix)!r}.\n"
                    "    They were saved with a wrapper around the model: save the inner model with save_pretrained()."
                )


def sha256_of(files: Iterable[Path]) -> str:
    """Hex hash over files, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a checkpoint's weights, in order of their names. Raises CheckpointError: none, or others."""
    folder = model_folder(folder)
    if (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder / ADAPTER}: expected a whole model, found a LoRA adapter, which changes the weights of another.\n"
            "    `pip install peft`, and the export merges it; or merge it yourself, with merge_and_unload()."
        )
    for name in (*SAFETENSORS, *PICKLES):
        if (folder / name).is_file():
            shards = _shards(folder / name) if name.endswith(".json") else {name}
            missing = sorted(shard for shard in shards if not (folder / shard).is_file())
            if missing:
                more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
                raise CheckpointError(
                    f"{folder / name} lists weights in {shortened(', '.join(missing[:LISTED]))}{more}, which are not "
                    "there.\n    Download the checkpoint again."
                )
            return tuple(folder / shard for shard in sorted(shards))
    raise CheckpointError(
        f"{folder}: expected weights ({', '.join((*SAFETENSORS, *PICKLES))}), found none of them.\n"
        "    Give the folder that holds the model's own files."
    )


def _shards(index: Path) -> set[str]:
    weight_map = read_json(index).get("weight_map")
    files = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not all(isinstance(file, str) and Path(file).name == file and len(file) <= 200 for file in files):
        raise CheckpointError(
            f"{index}: expected a weight_map of file names in this folder, found {quoted(weight_map)}.\n"
            "    Download the checkpoint again."
        )
    return set(files)


def _named(tensors: Mapping[str, tuple[Shape, Read]], prefix: str) -> dict[str, tuple[Shape, Read]]:
    """The tensors under today's names, without `prefix`. Raises CheckpointError: two become one."""
    named: dict[str, tuple[Shape, Read]] = {}
    for name, tensor in tensors.items():
        today = re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda old: OLD_NAMES[old[1]], name.removeprefix(prefix))
        if today in named:
            raise CheckpointError(
                f"{shortened(name)}: expected each weight once, found {shortened(today)} under another name too.\n"
                "    Are two checkpoints mixed? Download it again."
            )
        named[today] = tensor
    return named


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(40).startswith(b"version https://git-lfs"):
            raise CheckpointError(
                f"{file}: expected weights, found a pointer of Git LFS.\n    Run `git lfs pull` in the repository."
            )


def _tensors(file: Path) -> dict[str, tuple[Shape, Read]]:
    return _safetensors(file) if file.suffix == ".safetensors" else _pickle(file)


def _safetensors(file: Path) -> dict[str, tuple[Shape, Read]]:
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        return {name: (shape, partial(_read_safetensor, file, name)) for name, shape in shapes.items()}
    except (SafetensorError, OSError) as error:
        reason = shortened(str(error))
        raise CheckpointError(
            f"{file}: expected a safetensors file, found {file.stat().st_size} bytes that are none ({reason}).\n"
            "    Truncated or damaged: download it again."
        ) from None


def _read_safetensor(file: Path, name: str, rows: slice) -> torch.Tensor:
    """One tensor, or rows of it. The file is opened anew: an open one keeps every page that it read in memory."""
    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name) if rows == ALL else opened.get_slice(name)[rows]
        return tensor


def _pickle(file: Path) -> dict[str, tuple[Shape, Read]]:
    try:
        try:
            state: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before PyTorch 1.6: no zip, cannot be mapped
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).rsplit("WeightsUnpickler error: ", 1)[-1].splitlines()[0].split(". ")[0]
        raise CheckpointError(
            f"{file}: expected a pickle of tensors only, found more, or a damaged one ({shortened(reason)}).\n"
            "    It was not run. Save the weights as safetensors with a PyTorch that you trust them with."
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle can end in any exception
        reason = shortened(str(error).partition("\n")[0] or type(error).__name__)
        raise CheckpointError(f"{file}: truncated or damaged ({reason}).\n    Download it again.") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
        for name, tensor in state.items()
    ):
        raise CheckpointError(
            f"{file}: expected a dict of tensors, found {type(state).__name__} with other things in it.\n"
            "    Save the model's state_dict() alone."
        )
    return {name: (tuple(tensor.shape), partial(_rows, tensor.detach())) for name, tensor in state.items()}


def _rows(tensor: torch.Tensor, rows: slice) -> torch.Tensor:
    return tensor if rows == ALL else tensor[rows]
