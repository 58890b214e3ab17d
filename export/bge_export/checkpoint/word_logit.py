"""Rerankers that are language models: the score is the logit of "Yes" at the last token of a prompt.

Mirrors FlagEmbedding 1.4.2's BaseLLMReranker, its texts and the token that counts:
https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/inference/reranker/decoder_only/base.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bge_export.checkpoint.config import quoted, read_json
from bge_export.checkpoint.files import model_folder
from bge_export.checkpoint.modules import WORD_TABLE, Modules, WordLogit
from bge_export.checkpoint.tokenizer import load_tokenizer
from bge_onnx.bundle.heads import SCORE
from bge_onnx.bundle.prompts import BEHIND, BETWEEN
from bge_onnx.errors import CheckpointError

TASK = "ForCausalLM"
WORD = "Yes"
PROMPTS = {
    "query": "A: ",
    "passage": "B: ",
    BETWEEN: "\n",
    BEHIND: "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
    "providing a prediction of either 'Yes' or 'No'.",
}
"""What stands in front of the texts, between them, and behind them."""
TIED = ("gemma", "gemma2")
"""Model types whose output matrix is the word table where config.json does not say."""


def read(folder: Path) -> Modules:
    """The head of a language model that says "Yes" or not. Raises CheckpointError: it is no language model."""
    path = model_folder(folder) / "config.json"
    config: dict[str, Any] = read_json(path)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not any(str(name).endswith(TASK) for name in architectures):
        raise CheckpointError(
            f"{path}: expected a language model (architectures …{TASK}) for the head score, found "
            f"{quoted(architectures)}.\n    Other rerankers have a head of their own, and need no --heads."
        )
    sizes = [config.get(name) for name in ("vocab_size", "hidden_size")]
    if not all(type(size) is int for size in sizes):
        raise CheckpointError(f"{path}: expected vocab_size and hidden_size, found {quoted(sizes)}.")
    tokenizer = load_tokenizer(folder)
    ids: list[int] = tokenizer(WORD, add_special_tokens=False)["input_ids"]
    tied = config.get("tie_word_embeddings", config.get("model_type") in TIED)
    step = WordLogit(
        token=ids[0],
        table=WORD_TABLE if tied else "lm_head.weight",
        words=int(str(sizes[0])),
        inputs=int(str(sizes[1])),
    )
    behind = tokenizer([PROMPTS[BETWEEN], PROMPTS[BEHIND]], add_special_tokens=False)["input_ids"]
    return Modules(
        pooling="last",
        steps=(step,),
        normalize=False,
        head=SCORE,
        prompts=PROMPTS,
        beyond=2 * sum(map(len, behind)),
    )
