"""The oracle for decoders: PyTorch's own layers in float32, one at a time in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tqdm import tqdm

from bge_export.checkpoint.files import model_folder, transformers_faults
from bge_export.checkpoint.weights import ALL, Array, Rounding, Weights
from bge_export.lowering.lower import Lowering
from bge_export.models.decoder import PREFIX

Read = Callable[..., Array]
"""A weight's name, and maybe a slice of rows, to its values."""


def last_states(
    folder: Path,
    token_ids: Sequence[NDArray[np.int64]],
    *,
    lowering: Lowering | None = None,
    progress: bool = False,
) -> NDArray[np.float32]:
    """The state (N, D) of each text's last token after the last norm, as transformers' Mistral and Gemma2 give it.

    All texts go through a layer before the next is read: a checkpoint of 28 GB is read once, and a layer of it is in
    memory. Layers, norms and rotary tables are transformers'; the loop over them and the mask are written here. They
    have the precision that the lowering's layers have.
    """
    dtype, device = place_of(lowering)
    with transformers_faults(folder):
        config = transformers.AutoConfig.from_pretrained(model_folder(folder))
    if getattr(config, "attn_logit_softcapping", None):
        config._attn_implementation = "eager"  # noqa: SLF001 - fused attention has no soft cap; transformers 4 would take it
    with transformers_faults(folder), torch.device("meta"):
        model = transformers.AutoModel.from_config(config, dtype=dtype).eval()  # type: ignore[no-untyped-call]
    weights = Weights.open(folder, prefix=PREFIX)

    def read(name: str, rows: slice = ALL) -> Array:
        array = weights.read(name, rows=rows)
        return lowering.weights(name, array) if lowering and lowering.weights else array

    rotary = type(model.rotary_emb)(config).to(device)
    scale = torch.tensor(_embedding_scale(model), dtype=dtype, device=device)
    states = [_rows(read, ids).to(device, dtype) * scale for ids in token_ids]
    places = [torch.arange(len(ids), device=device)[None] for ids in token_ids]
    layers = tqdm(model.layers, desc="PyTorch", unit="layer", disable=not progress)
    with torch.inference_mode():
        for number, layer in enumerate(layers):
            _load(layer, f"layers.{number}", read, dtype, device)
            if lowering and lowering.inputs:
                round_inputs(layer, lowering.inputs)
            window = _window(config, number)
            found = [
                layer(
                    state,
                    attention_mask=_mask(state.shape[1], window).to(device, dtype),
                    position_ids=position,
                    position_embeddings=rotary(state, position),
                )
                for state, position in zip(states, places, strict=True)
            ]
            states = [output[0] if isinstance(output, tuple) else output for output in found]  # transformers 4
            layer.to_empty(device="meta")
        _load(model.norm, "norm", read, dtype, device)
        return np.stack([model.norm(state[:, -1])[0].float().cpu().numpy() for state in states])


def _embedding_scale(model: Any) -> float:
    """What the word table's rows are multiplied with: transformers 5 has it in the table, 4 in Gemma's own forward."""
    gemma = model.config.hidden_size**0.5 if model.config.model_type.startswith("gemma") else 1.0
    return float(getattr(model.embed_tokens, "scalar_embed_scale", gemma))


def place_of(lowering: Lowering | None) -> tuple[torch.dtype, str]:
    """The precision of PyTorch's layers, and where they run: below float32 on a GPU, if there is one."""
    precision = lowering.precision if lowering else "float32"
    on_gpu = precision != "float32" and torch.cuda.is_available()
    return getattr(torch, precision), "cuda" if on_gpu else "cpu"


def free_device() -> None:
    """Give back the GPU's memory that PyTorch keeps for itself."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def round_inputs(module: torch.nn.Module, rounding: Rounding) -> None:
    """Round what linear layers in `module` are given, from now on."""

    def hook(name: str) -> Callable[..., tuple[torch.Tensor]]:
        def round_rows(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).numpy()
            return (torch.from_numpy(rounding(name, rows)).reshape(inputs[0].shape),)

        return round_rows

    for name, linear in module.named_modules():
        if isinstance(linear, torch.nn.Linear):
            linear.register_forward_pre_hook(hook(name))


def _rows(read: Read, token_ids: NDArray[np.int64]) -> torch.Tensor:
    """The word table's rows of a text, (1, T, D), read one by one: the table may not fit into memory."""
    name = "embed_tokens.weight"
    distinct, places = np.unique(token_ids, return_inverse=True)
    rows = np.concatenate([read(name, slice(row, row + 1)) for row in distinct.tolist()])
    return torch.from_numpy(rows[places][None])


def _load(module: torch.nn.Module, name: str, read: Read, dtype: torch.dtype, device: str) -> None:
    state = {key: torch.from_numpy(read(f"{name}.{key}")).to(device, dtype) for key in module.state_dict()}
    module.load_state_dict(state, assign=True)


def _window(config: Any, number: int) -> int | None:
    types: Sequence[str] | None = getattr(config, "layer_types", None)
    return None if types and types[number] == "full_attention" else getattr(config, "sliding_window", None)


def _mask(tokens: int, window: int | None) -> torch.Tensor:
    """What is added to the scores (1, 1, T, T): a token sees the last `window` tokens up to itself."""
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    visible = (distance >= 0) & (distance < (window or tokens + 1))
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
