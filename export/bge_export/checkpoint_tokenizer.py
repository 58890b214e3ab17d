"""A checkpoint's own tokenizer, as FlagEmbedding and sentence-transformers load it: with transformers."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import transformers

from bge_onnx.errors import CheckpointError


def load(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer, padding on the right. Raises CheckpointError: there is none, or its file is damaged."""
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model")
    ):  # transformers makes one up
        raise CheckpointError(
            f"{folder}: expected a tokenizer (tokenizer.json or vocab.txt), found none.\n"
            "    Give the folder that holds config.json, the weights and the tokenizer."
        )
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise CheckpointError(
            f"{path}: expected a tokenizer, found {error}.\n    Download the checkpoint again."
        ) from None
    tokenizer: transformers.PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "right"
    return tokenizer


def keeps_case(folder: Path) -> bool:
    """Whether capitals make a difference to the tokenizer.

    Asked of the loaded tokenizer, because its files can differ: transformers 5 makes a BertTokenizer's normaliser from
    `do_lower_case` in tokenizer_config.json, true where it is missing, whatever tokenizer.json says.
    """
    normalizer = load(folder).backend_tokenizer.normalizer
    return normalizer is None or bool(normalizer.normalize_str("A") == "A")


def require_tokens(folder: Path, vocab_size: int) -> None:
    """Raise CheckpointError: the tokenizer has ids beyond the model's word table."""
    highest = max(load(folder).get_vocab().values())
    if highest >= vocab_size:
        raise CheckpointError(
            f"the tokenizer: expected ids below {vocab_size}, the rows of the word table, found {highest}.\n"
            "    Are tokenizer and weights of the same model?"
        )
