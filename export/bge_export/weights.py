"""Lazy reading of a checkpoint's weights: nothing is in memory before it is written to the bundle."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from bge_export.config import read_json
from bge_onnx.errors import CheckpointError

Array = NDArray[np.float32]
Shape = tuple[int, ...]

Rounding = Callable[[str, Array], Array]
"""A weight's name and values, or a module's and its input rows (N, K): to what a target computes with instead."""

Read = Callable[[slice], torch.Tensor]
ALL = slice(None)

SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
PICKLES = ("pytorch_model.bin.index.json", "pytorch_model.bin")


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
    def open(cls, folder: Path, *, prefix: str, heads: Iterable[str] = ()) -> Weights:
        """Open `model.safetensors` or `pytorch_model.bin`, one file or sharded; safetensors where both are there.

        heads  files of a linear layer each: `sparse_linear.pt` gives `sparse_linear.weight` and `sparse_linear.bias`

        Raises CheckpointError: no weights, a truncated or damaged file, a pickle that holds more than tensors, a weight
        in two files.
        """
        tensors: dict[str, tuple[Shape, Read]] = {}
        for file in weight_files(folder):
            _refuse_pointer(file)
            found = _safetensors(file) if file.suffix == ".safetensors" else _pickle(file)
            if twice := sorted(tensors.keys() & found.keys()):
                raise CheckpointError(
                    f"{file}: expected each weight in one file, found {', '.join(twice[:3])} in another too.\n"
                    "    Are shards of two downloads mixed? Download the checkpoint again."
                )
            tensors |= found
        named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        for head in heads:
            file = folder / head
            _refuse_pointer(file)
            named |= {f"{file.stem}.{name}": tensor for name, tensor in _pickle(file).items()}
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
        """A tensor of the graph whose values `compute` gives when it is written, and not before."""
        return ir.LazyTensor(lambda: ir.tensor(compute(), name=name), ir.DataType.FLOAT, ir.Shape(shape), name=name)

    def lazy_rows(self, name: str, rows: Callable[[int, int], Array]) -> LazyRows:
        """A matrix of the graph, of which `rows` gives the rows from start to stop."""
        return LazyRows(name, self.shapes[name], rows)

    def check(self, expected: Mapping[str, Shape], *, harmless: Iterable[str], model_type: str) -> None:
        """Raise CheckpointError listing all weights that are missing, of another shape, or more than the model has.

        harmless  beginnings of names that a checkpoint may hold though the vectors do not depend on them
        """
        beginnings = tuple(harmless)
        missing = [
            f"{name}   expected {shape}, found nothing" for name, shape in expected.items() if name not in self.shapes
        ]
        misshapen = [
            f"{name}   expected {shape}, found {self.shapes[name]}"
            for name, shape in expected.items()
            if name in self.shapes and self.shapes[name] != shape
        ]
        extra = [
            f"{name}   unknown" for name in self.shapes if name not in expected and not name.startswith(beginnings)
        ]
        if missing or misshapen or extra:
            lines = "\n    ".join([*missing, *misshapen, *extra])
            raise CheckpointError(
                f"{model_type}: {len(missing)} weights missing, {len(misshapen)} of another shape, "
                f"{len(extra)} unknown:\n    {lines}\n    Are config.json and the weights of the same model?"
            )


def sha256_of(files: Iterable[Path]) -> str:
    """Hex hash over files, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a checkpoint's weights, in order of their names."""
    for name in (*SAFETENSORS, *PICKLES):
        if (folder / name).is_file():
            shards = _shards(folder / name) if name.endswith(".json") else {name}
            missing = sorted(shard for shard in shards if not (folder / shard).is_file())
            if missing:
                raise CheckpointError(
                    f"{folder / name} lists weights in {', '.join(missing)}, which are not there.\n"
                    "    Download the checkpoint again."
                )
            return tuple(folder / shard for shard in sorted(shards))
    raise CheckpointError(
        f"{folder}: expected weights ({', '.join((*SAFETENSORS, *PICKLES))}), found none of them.\n"
        "    Give the folder that holds the model's own files."
    )


def _shards(index: Path) -> set[str]:
    weight_map = read_json(index).get("weight_map")
    files = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise CheckpointError(
            f"{index}: expected a weight_map of file names in this folder, found {weight_map!r:.60}.\n"
            "    Download the checkpoint again."
        )
    return set(files)


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(40).startswith(b"version https://git-lfs"):
            raise CheckpointError(
                f"{file}: expected weights, found a pointer of Git LFS.\n    Run `git lfs pull` in the repository."
            )


def _safetensors(file: Path) -> dict[str, tuple[Shape, Read]]:
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        return {name: (shape, partial(_read_safetensor, file, name)) for name, shape in shapes.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: expected a safetensors file, found {file.stat().st_size} bytes that are none ({error}).\n"
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
            f"{file}: expected a pickle of tensors only, found more, or a damaged one ({reason}).\n"
            "    It was not run. Save the weights as safetensors with a PyTorch that you trust them with."
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file}: truncated or damaged ({reason}).\n    Download it again.") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(
            f"{file}: expected a dict of tensors, found {type(state).__name__} with other things in it.\n"
            "    Save the model's state_dict() alone."
        )
    return {name: (tuple(tensor.shape), partial(_rows, tensor.detach())) for name, tensor in state.items()}


def _rows(tensor: torch.Tensor, rows: slice) -> torch.Tensor:
    return tensor if rows == ALL else tensor[rows]
