"""A checkpoint's own tokenizer, as FlagEmbedding and sentence-transformers load it: with transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sentencepiece
import tokenizers
import transformers

from bge_onnx.errors import CheckpointError

JSON, SENTENCEPIECE, WORDPIECE = "tokenizer.json", "sentencepiece.bpe.model", "vocab.txt"
READERS: dict[str, Callable[[str], object]] = {
    JSON: tokenizers.Tokenizer.from_file,
    SENTENCEPIECE: sentencepiece.SentencePieceProcessor,
}


def load(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer, padding on the right. Raises CheckpointError: there is none, or its file is damaged."""
    file = next((folder / name for name in (JSON, SENTENCEPIECE, WORDPIECE) if (folder / name).is_file()), None)
    if not file:  # transformers makes one up
        raise CheckpointError(
            f"{folder}: expected a tokenizer ({JSON}, {SENTENCEPIECE} or {WORDPIECE}), found none.\n"
            "    Give the folder that holds config.json, the weights and the tokenizer."
        )
    try:  # transformers' own complaint about a damaged file is that tiktoken is missing
        if file.name in READERS:
            READERS[file.name](str(file))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise CheckpointError(
            f"{file}: expected a tokenizer, found {error}.\n    Download the checkpoint again."
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
