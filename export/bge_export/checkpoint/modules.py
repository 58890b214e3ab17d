"""What follows the transformer: the modules of sentence-transformers' `modules.json`, read from a checkpoint's folder.

Mirrors sentence-transformers 6.2, sentence_transformer/modules/pooling.py and base/modules/dense.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from bge_export.checkpoint.config import quoted, read_json
from bge_export.checkpoint.files import module_path
from bge_export.graph.pooling import Activation, Mode
from bge_onnx.bundle.heads import FIRST
from bge_onnx.errors import CheckpointError

POOLING_FILE = "1_Pooling/config.json"

# sentence-transformers has two spellings. Up to version 4 there is a flag for each mode, in this order. From version 5
# on there is one key, `pooling_mode`.
POOLING_FLAGS: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}
POOLING_MODES: dict[str, Mode] = {"mean_sqrt_len_tokens": "mean_sqrt_len", "lasttoken": "last"}
"""Those that we call otherwise."""
THEIR_MODES = [next((name for name, ours in POOLING_MODES.items() if ours == mode), mode) for mode in get_args(Mode)]

ACTIVATIONS: dict[str, Activation] = {
    "Identity": "identity", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "Sigmoid": "sigmoid", "SiLU": "silu",
}  # fmt: skip
MODULE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A linear layer on the pooled vector: (in, out), a bias perhaps, and an activation behind it.

    path    of the module, for names of nodes
    linear  of its weights' names, as "2_Dense.linear"
    file    whether these are in a file of their own, in the folder `path`; else they are among the model's
    """

    path: str
    linear: str
    file: bool = True
    inputs: int
    outputs: int
    bias: bool
    activation: Activation


@dataclass(frozen=True, slots=True)
class Normalize:
    """Length 1, where other steps follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WordLogit:
    """A language model's logit of one word: the product with a row of its output matrix (words, inputs)."""

    token: int
    table: str
    words: int
    inputs: int


Step = Dense | Normalize | WordLogit

WORD_TABLE = "embed_tokens.weight"
"""A decoder's, which often is its output matrix too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """What a folder's files say of the way from token states to a vector; None where they say nothing.

    pooling    modes with + between; their vectors are concatenated
    steps      between pooling and the last normalisation
    normalize  whether vectors have length 1 at the end
    head       what the vector is: dense, or a reranker's score
    prompts    of a reranker that reads a prompt, by their place
    beyond     tokens that such a prompt may take beside the maximum
    """

    pooling: str | None
    steps: tuple[Step, ...] = ()
    normalize: bool | None = None
    head: str = FIRST
    prompts: Mapping[str, str] = field(default_factory=dict)
    beyond: int = 0


def read_modules(folder: Path) -> Modules:
    """The modules of a checkpoint. Raises CheckpointError: some that we do not compute, or files that are damaged."""
    path = folder / "modules.json"
    if not path.is_file():
        return Modules(pooling=_pooling(folder / POOLING_FILE))
    modules = read_json(path, list)
    kinds = [_kind(module) for module in modules]
    after = kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(after) <= {"Dense", "Normalize"}:
        raise CheckpointError(
            f"{path}: expected the modules Transformer and Pooling, and then Dense and Normalize in any number, found "
            f"{quoted(', '.join(kinds))}.\n    Other modules change the vectors and are not supported."
        )
    steps = [
        _dense(folder, _path(path, module)) if kind == "Dense" else Normalize()
        for kind, module in zip(after, modules[2:], strict=True)
    ]
    while steps[-2:] == [Normalize(), Normalize()]:
        steps.pop()
    normalize = bool(steps) and isinstance(steps[-1], Normalize)
    pooling_folder = folder / _path(path, modules[1], default="1_Pooling")
    return Modules(
        pooling=_pooling(pooling_folder / "config.json"),
        steps=tuple(steps[:-1] if normalize else steps),
        normalize=normalize,
    )


def width_of(hidden: int, pooling: str, steps: Sequence[Step]) -> int:
    """Components of the vector. Raises CheckpointError: a Dense for vectors of another width."""
    width = hidden * len(pooling.split("+"))
    for step in steps:
        if isinstance(step, Dense):
            if step.inputs != width:
                raise CheckpointError(
                    f"{step.path}: expected a Dense for vectors of {width} components, found in_features {step.inputs}."
                    "\n    Are the modules of the same model?"
                )
            width = step.outputs
        elif isinstance(step, WordLogit):
            width = 1
    return width


def weight_shapes(steps: Sequence[Step]) -> dict[str, tuple[int, ...]]:
    """The weights that the steps need."""
    shapes: dict[str, tuple[int, ...]] = {}
    for step in steps:
        if isinstance(step, Dense):
            shapes[f"{step.linear}.weight"] = (step.outputs, step.inputs)
            if step.bias:
                shapes[f"{step.linear}.bias"] = (step.outputs,)
        elif isinstance(step, WordLogit):
            shapes[step.table] = (step.words, step.inputs)
    return shapes


def weight_file(folder: Path, path: str) -> Path:
    """The file of a Dense's weights. Raises CheckpointError: there is none."""
    found = next((folder / path / name for name in MODULE_WEIGHTS if (folder / path / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{folder / path}: expected the weights of a Dense ({' or '.join(MODULE_WEIGHTS)}), found none.\n"
            "    Download the checkpoint again."
        )
    return found


def _kind(module: Any) -> str:
    kind = module.get("type") if isinstance(module, dict) else None
    return kind.rsplit(".", 1)[-1] if isinstance(kind, str) else quoted(kind)


def _path(file: Path, module: dict[str, Any], default: str = "") -> str:
    path = module_path(file, module.get("path", default))
    if not path:
        raise CheckpointError(f"{file}: expected a module with a folder of its own, found {quoted(module)}.")
    return path


def _pooling(path: Path) -> str | None:
    """The modes of a Pooling module's file, with + between; None where there is no such file."""
    if not path.is_file():
        return None
    record = read_json(path)
    if "pooling_mode" in record:
        modes = record["pooling_mode"]
        given = [str(mode) for mode in (modes if isinstance(modes, list) else [modes])]
        found = [POOLING_MODES.get(mode, mode) for mode in given]
    else:
        given = found = [mode for flag, mode in POOLING_FLAGS.items() if record.get(flag)] or ["mean"]
    if not found or not set(found) <= set(get_args(Mode)):
        raise CheckpointError(
            f"{path}: expected pooling modes out of {', '.join(THEIR_MODES)}, found "
            f"{quoted(' + '.join(given)) if given else 'none'}."
        )
    if record.get("include_prompt", True) is not True:
        raise CheckpointError(
            f"{path}: expected prompts that take part in pooling, found include_prompt "
            f"{quoted(record['include_prompt'])}.\n    Pooling without the prompt's tokens is not supported."
        )
    return "+".join(found)


def _dense(folder: Path, path: str) -> Dense:
    file = folder / path / "config.json"
    record = read_json(file)
    name = str(record.get("activation_function", "torch.nn.modules.activation.Tanh"))
    sizes = [record.get(key) for key in ("in_features", "out_features")]
    activation = ACTIVATIONS.get(name.rsplit(".", 1)[-1]) if name.startswith("torch.") else None
    faults = []
    if not all(type(size) is int and 0 < size < 1 << 20 for size in sizes):
        faults.append(f"in_features and out_features {quoted(sizes)}")
    if activation is None:
        faults.append(f"activation_function {quoted(name)}, out of {', '.join(ACTIVATIONS)} of torch")
    if record.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        faults.append(f"module_input_name {quoted(record['module_input_name'])}")
    if record.get("module_output_name") not in (None, "sentence_embedding"):
        faults.append(f"module_output_name {quoted(record['module_output_name'])}")
    if record.get("use_residual"):
        faults.append("use_residual true")
    if faults or activation is None:
        raise CheckpointError(
            f"{file}: expected a Dense on the sentence's vector that we compute, found {'; '.join(faults)}."
        )
    bias = bool(record.get("bias", True))
    inputs, outputs = (int(str(size)) for size in sizes)
    return Dense(path=path, linear=f"{path}.linear", inputs=inputs, outputs=outputs, bias=bias, activation=activation)
