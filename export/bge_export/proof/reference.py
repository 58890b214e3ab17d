"""The oracle: the same vectors from PyTorch and transformers, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tqdm import tqdm

from bge_export.checkpoint.config import read_json
from bge_export.checkpoint.files import model_folder
from bge_export.checkpoint.heads import FILES
from bge_export.checkpoint.modules import Dense, WordLogit, width_of
from bge_export.checkpoint.pytorch import encoder
from bge_export.checkpoint.recipe import Recipe
from bge_export.checkpoint.tokenizer import load_tokenizer
from bge_export.checkpoint.weights import Rounding, Weights
from bge_export.lowering.lower import Lowering
from bge_export.models.families import MODELS
from bge_export.proof import layerwise
from bge_onnx import Embeddings
from bge_onnx.bundle.graph_names import SECOND
from bge_onnx.bundle.heads import HEADS, of_pooled
from bge_onnx.run.batches import plan_batches

GROUP_TOKENS = 32768


def embed(
    folder: Path,
    recipe: Recipe,
    token_ids: Sequence[NDArray[np.int64]],
    *,
    budget_tokens: int = 1,
    lowering: Lowering | None = None,
    progress: bool = False,
) -> Embeddings:
    """The vectors of texts that are token ids, by every head of the recipe.

    budget_tokens  1 runs every text alone, without padding: the plainest reference. More pads, and is faster.
    lowering       PyTorch rounds as this does, so what is left is the graph's error. If its layers are below float32,
                   PyTorch's are too, on a GPU if there is one; vectors are normalised in float32
    """
    if MODELS[read_json(model_folder(folder) / "config.json")["model_type"]].causal:
        states = [
            layerwise.last_states(folder, group, lowering=lowering, progress=progress) for group in _groups(token_ids)
        ]
        layerwise.free_device()  # for the bundle, which is another process's
        steps = _steps(folder, recipe, None)  # of language models no target rounds these
        with torch.inference_mode():
            dense = _unit(steps(torch.from_numpy(np.concatenate(states))), recipe).numpy()
        return Embeddings(count=len(token_ids), by_head=_by_pooled(recipe, dense))
    tokenizer = load_tokenizer(folder)
    dtype, device = layerwise.place_of(lowering)
    model = encoder(folder, dtype).to(device)
    rounding = lowering.weights if lowering else None
    if rounding:
        _round(model, rounding, typed=max((int(ids.max()) for ids in token_ids), default=0) >= SECOND)
    if lowering and lowering.inputs:
        layerwise.round_inputs(model, lowering.inputs)
    files = {head: folder / FILES[head] for head in recipe.heads if head in FILES}
    linears = {head: _linear(file, rounding).to(device, dtype) for head, file in files.items()}
    batches = plan_batches(token_ids, budget_tokens=budget_tokens, layout="padded", pad_id=tokenizer.pad_token_id)
    steps = _steps(folder, recipe, rounding).to(device)
    width = width_of(model.config.hidden_size, recipe.pooling, recipe.steps)
    dense = np.empty((len(token_ids), width), dtype=np.float32)
    of_tokens: dict[str, list[Any]] = {head: [None] * len(token_ids) for head in linears}
    with torch.inference_mode(), tqdm(total=len(token_ids), desc="PyTorch", unit="text", disable=not progress) as bar:
        for batch in batches:
            ids, mask = (torch.from_numpy(array).to(device) for array in (batch.input_ids, batch.attention_mask))
            types = {} if batch.types is None else {"token_type_ids": torch.from_numpy(batch.types).to(device)}
            hidden = model(input_ids=ids, attention_mask=mask, **types).last_hidden_state
            dense[batch.rows] = _unit(steps(_pool(hidden.float(), mask, recipe)), recipe).cpu()
            for line, row in enumerate(batch.rows):
                tokens = int(mask[line].sum())
                for head, linear in linears.items():
                    outputs = linear(hidden[line, :tokens]).float()
                    if HEADS[head].gives == "weights":
                        weights = torch.relu(outputs).squeeze(-1).tolist()
                        of_tokens[head][row] = _largest(ids[line, :tokens].tolist(), weights, tokenizer)
                    else:
                        of_tokens[head][row] = _unit(outputs[1:], recipe).cpu().numpy()
            bar.update(len(batch.rows))
    return Embeddings(count=len(token_ids), by_head={**_by_pooled(recipe, dense), **of_tokens})


def _by_pooled(recipe: Recipe, pooled: NDArray[np.float32]) -> dict[str, Any]:
    """The head that is made of the pooled vectors (N, D), or scores (N, 1)."""
    head = of_pooled(recipe.heads)
    return {head: pooled[:, 0] if HEADS[head].gives == "score" else pooled}


def _round(model: Any, rounding: Rounding, *, typed: bool) -> None:
    """Round an encoder's weights as we do. Without types of tokens one row counts, added to the word table first."""
    types = model.embeddings.token_type_embeddings.weight
    with torch.no_grad():
        if not typed:
            model.embeddings.word_embeddings.weight += types[0]
            types.zero_()
        for name, weight in model.named_parameters():
            if not (typed and weight is types):
                weight.copy_(torch.from_numpy(rounding(name, weight.numpy())))


def _groups(token_ids: Sequence[NDArray[np.int64]]) -> Iterator[Sequence[NDArray[np.int64]]]:
    """Groups of texts. One layer's states of a group fit into memory; each group reads the whole checkpoint."""
    ends = np.cumsum([len(ids) for ids in token_ids]) // GROUP_TOKENS
    for group in np.unique(ends):
        yield [token_ids[place] for place in np.flatnonzero(ends == group).tolist()]


def _linear(path: Path, rounding: Rounding | None) -> torch.nn.Linear:
    """The linear layer of a head's file, in float32."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if rounding:
        weight = state["weight"].to(torch.float32).numpy()
        state["weight"] = torch.from_numpy(rounding(f"{path.stem}.weight", weight))
    linear = torch.nn.Linear(*reversed(state["weight"].shape))
    linear.load_state_dict(state)
    return linear.eval()


def _largest(
    token_ids: list[int], weights: list[float], tokenizer: transformers.PreTrainedTokenizerBase
) -> dict[int, float]:
    """Token by token as FlagEmbedding does it: the largest weight of each id, special tokens and zeros left out."""
    unused = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    found: dict[int, float] = {}
    for token, weight in zip(token_ids, weights, strict=True):
        if token not in unused and weight > found.get(token, 0):
            found[token] = weight
    return found


def _unit(vectors: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1) if recipe.normalize else vectors


def _pool(hidden: torch.Tensor, mask: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Vectors (B, n D) of states (B, T, D), by each of n modes, as sentence-transformers' Pooling module has them."""
    return torch.cat([_pool_by(mode, hidden, mask) for mode in recipe.pooling.split("+")], dim=-1)


def _pool_by(mode: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    lengths, column = mask.sum(dim=1), mask.unsqueeze(-1).to(hidden.dtype)
    if mode == "cls":
        return hidden[:, 0]
    if mode == "last":
        return hidden[torch.arange(len(hidden)), lengths - 1]
    if mode == "max":
        return hidden.masked_fill(column == 0, -torch.inf).amax(dim=1)
    if mode == "weightedmean":
        column = column * torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype, device=hidden.device)[:, None]
    total, weight = (hidden * column).sum(dim=1), column.sum(dim=1)
    return total / (weight.sqrt() if mode == "mean_sqrt_len" else weight)


ACTIVATIONS: dict[str, torch.nn.Module] = {
    "identity": torch.nn.Identity(),
    "tanh": torch.nn.Tanh(),
    "relu": torch.nn.ReLU(),
    "gelu": torch.nn.GELU(),
    "sigmoid": torch.nn.Sigmoid(),
    "silu": torch.nn.SiLU(),
}


def _steps(folder: Path, recipe: Recipe, rounding: Rounding | None) -> torch.nn.Sequential:
    """The modules behind the pooling, in float32."""
    modules = [step.path for step in recipe.steps if isinstance(step, Dense) and step.file]
    prefix = MODELS[read_json(model_folder(folder) / "config.json")["model_type"]].prefix
    weights = Weights.open(folder, prefix=prefix, modules=modules)
    layers: list[torch.nn.Module] = []
    for step in recipe.steps:
        if isinstance(step, Dense):
            linear = torch.nn.Linear(step.inputs, step.outputs, bias=step.bias)
            names = [f"{step.linear}.{name}" for name in ("weight", "bias")[: 1 + step.bias]]
            state = {name.rsplit(".")[-1]: torch.from_numpy(weights.read(name)) for name in names}
            if rounding:
                state["weight"] = torch.from_numpy(rounding(names[0], state["weight"].numpy()))
            linear.load_state_dict(state)
            layers += [linear, ACTIVATIONS[step.activation]]
        elif isinstance(step, WordLogit):
            row = torch.nn.Linear(step.inputs, 1, bias=False)
            values = weights.read(step.table, rows=slice(step.token, step.token + 1))
            row.load_state_dict({"weight": torch.from_numpy(values)})
            layers.append(row)
        else:
            layers.append(UnitLength())
    return torch.nn.Sequential(*layers).eval()


class UnitLength(torch.nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """The vectors (B, D), each divided by its length."""
        return torch.nn.functional.normalize(vectors, dim=-1)
