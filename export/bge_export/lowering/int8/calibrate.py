"""Calibration: what a float32 model's linear layers are given on some texts."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tqdm import tqdm

from bge_export.checkpoint.pytorch import encoder, tokenize
from bge_export.checkpoint.recipe import Recipe
from bge_export.checkpoint.tokenizer import load_tokenizer, text_ends
from bge_export.checkpoint.weights import Array
from bge_export.lowering.int8.gptq import Hessians
from bge_onnx.errors import CheckpointError, InputError
from bge_onnx.files.text_files import records_in
from bge_onnx.run.batches import plan_batches

RANDOM, NONE = "random", "none"
"""In the place of a file: token ids drawn evenly from the vocabulary, or each weight rounded by itself."""

LEAST_TEXTS = 64
RANDOM_TEXTS = 256
RANDOM_TOKENS = 64
BATCH_TOKENS = 4096
MOST_TOKENS = 512
"""Longer texts are cut: calibration needs only the inputs of layers, and attention over long texts costs time."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What to calibrate with: `texts`, or random token ids where that is None; the manifest says `described`."""

    described: str
    texts: tuple[str, ...] | None = None


RANDOM_IDS = Texts(f"{RANDOM_TEXTS} texts of random token ids")
NOTHING = Texts(NONE, ())


def read(source: str) -> Texts:
    """The texts of a file, in every form that `bge embed` reads, or what "random" or "none" stand for.

    Raises InputError: no such file, records without a text, too few texts. InstallationError: like `read_records`.
    """
    if source in (RANDOM, NONE):
        return RANDOM_IDS if source == RANDOM else NOTHING
    path = Path(source)
    try:
        content = path.read_bytes()  # once: it may be a pipe
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or error
        raise InputError(f"{source}: expected a file of texts, random or none; found {found}.") from None
    records = records_in(io.BufferedReader(cast("Any", io.BytesIO(content))), path)
    texts = tuple(record.text for record in records if record.text.strip())
    if len(texts) < LEAST_TEXTS:
        raise InputError(
            f"{source}: expected at least {LEAST_TEXTS} texts, found {len(texts)}.\n"
            "    Some hundred sentences and passages like those to embed are enough; --calibrate random needs none."
        )
    return Texts(f"texts with sha256 {hashlib.sha256(content).hexdigest()}", texts)


def hessians(folder: Path, recipe: Recipe, texts: Texts, *, progress: bool = False) -> Hessians:
    """X'X of the inputs X of each linear module in the encoder's layers, by its name; empty for `NOTHING`.

    Raises CheckpointError: weights that give no finite numbers.
    """
    if texts == NOTHING:
        return {}
    tokenizer = load_tokenizer(folder)
    if texts.texts is None:
        token_ids = _random(tokenizer, recipe)
    else:
        ids = tokenize(tokenizer, recipe, texts.texts)
        token_ids = [np.array(row[:MOST_TOKENS], dtype=np.int64) for row in ids]
    model: Any = encoder(folder, torch.float32)
    sums: dict[str, torch.Tensor] = {}
    kept = torch.empty(0, dtype=torch.bool)

    def watch(name: str) -> Any:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])[kept]
            found = rows.T @ rows
            sums[name] = sums[name] + found if name in sums else found

        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith((".key", ".value")):  # these share query's input
            module.register_forward_pre_hook(watch(name))
    batches = plan_batches(token_ids, budget_tokens=BATCH_TOKENS, layout="padded", pad_id=tokenizer.pad_token_id)
    with torch.inference_mode():
        for batch in tqdm(batches, desc="calibration", unit="batch", disable=not progress):
            mask = torch.from_numpy(batch.attention_mask)
            kept = mask.reshape(-1).bool()
            model(input_ids=torch.from_numpy(batch.input_ids), attention_mask=mask)
    return _by_module(folder, {name: matrix.numpy() for name, matrix in sums.items()})


def _by_module(folder: Path, sums: dict[str, Array]) -> Hessians:
    """Finite sums, those of queries for keys and values too."""
    found = dict(sums)
    for name, matrix in sums.items():
        if not np.isfinite(matrix).all():
            raise CheckpointError(
                f"{folder}: expected finite inputs of {name} on the calibration texts, found NaN or infinity.\n"
                "    The checkpoint is damaged, or its training diverged: take another."
            )
        if name.endswith(".query"):
            stem = name.removesuffix("query")
            found |= {f"{stem}key": matrix, f"{stem}value": matrix}
    return found


def _random(tokenizer: transformers.PreTrainedTokenizerBase, recipe: Recipe) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    length = min(RANDOM_TOKENS, recipe.max_tokens)
    ids = rng.integers(0, len(tokenizer), (RANDOM_TEXTS, length))
    ids[:, 0], ids[:, -1] = text_ends(tokenizer)
    return list(ids)
