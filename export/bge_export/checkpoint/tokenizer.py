"""A checkpoint's own tokenizer, as FlagEmbedding and sentence-transformers load it: with transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sentencepiece
import tokenizers
import transformers
from tokenizers import normalizers, processors

from bge_export.checkpoint.files import model_folder
from bge_onnx.errors import CheckpointError, first_line
from bge_onnx.files.json_file import shortened

READERS: dict[str, Callable[[str], object]] = {
    "tokenizer.json": tokenizers.Tokenizer.from_file,
    "sentencepiece.bpe.model": sentencepiece.SentencePieceProcessor,
    "tokenizer.model": sentencepiece.SentencePieceProcessor,
    "spiece.model": sentencepiece.SentencePieceProcessor,
    "vocab.txt": Path,
    "vocab.json": Path,
}
"""The files that a tokenizer may be in, best first, and what reads them."""


PROBES = ("", "a", "Ünïcode 中文 😀 [MASK] <mask>", "\u0378\ufffd")
"""Texts that a tokenizer must have ids for: empty, plain, of other scripts, unknown."""


def load_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, padding on the right.

    Raises CheckpointError: there is none, its file is damaged, or the tokenizers library has none of its kind.
    """
    folder = model_folder(folder)
    file = next((folder / name for name in READERS if (folder / name).is_file()), None)
    if not file:  # transformers makes one up
        raise CheckpointError(
            f"{folder}: expected a tokenizer ({', '.join(READERS)}), found none of them.\n"
            "    Give the folder that holds config.json, the weights and the tokenizer."
        )
    with _faults(file):  # transformers' own complaint about a damaged file is that tiktoken is missing
        READERS[file.name](str(file))
    with _faults(folder / "tokenizer_config.json"):
        tokenizer: transformers.PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{folder}: expected a tokenizer that the tokenizers library has too, found {type(tokenizer).__name__}.\n"
            "    It runs in Python alone, and a bundle holds no Python: this model is not supported."
        )
    tokenizer.padding_side = "right"
    with _faults(file):
        _frame(tokenizer, file)
    return tokenizer


@contextmanager
def _faults(file: Path) -> Iterator[None]:
    """What the tokenizers library and transformers raise of a damaged file, as one short CheckpointError."""
    try:
        yield
    except (CheckpointError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of the tokenizers library is no Exception
        raise CheckpointError(
            f"{file}: expected a tokenizer, found {shortened(first_line(error))}.\n"
            "    Damaged, or of a kind that is not supported: download the checkpoint again."
        ) from None


def text_ends(tokenizer: transformers.PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids that every text begins and ends with: [CLS] and [SEP], or the begin and end tokens of a decoder."""
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    if begin is None:
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return begin, end  # `load` has refused a tokenizer without them


def _frame(tokenizer: transformers.PreTrainedTokenizerBase, file: Path) -> None:
    """Put begin and end tokens around a decoder's texts, where the tokenizer does not.

    The vector is the end token's state. transformers 5 drops `add_eos_token` of tokenizer_config.json where there is a
    tokenizer.json, and the last word would be pooled instead.
    Raises CheckpointError: a tokenizer without such tokens.
    """
    begin, end = text_ends(tokenizer)
    if begin is None or end is None:
        raise CheckpointError(
            f"{file}: expected a token that begins every text and one that ends it, found {begin} and {end}.\n"
            "    Add bos_token and eos_token (or cls_token and sep_token) to tokenizer_config.json."
        )
    backend = tokenizer.backend_tokenizer
    if tokenizer.cls_token_id is None and backend.encode("").ids != [begin, end]:
        names = tokenizer.bos_token, tokenizer.eos_token
        backend.post_processor = processors.TemplateProcessing(
            single=f"{names[0]} $A {names[1]}",
            pair=f"{names[0]} $A {names[1]} $B {names[1]}",
            special_tokens=[(names[0], begin), (names[1], end)],
        )


def prepend_lower_case(backend: tokenizers.Tokenizer) -> None:
    """Lower-case texts before the tokenizer sees them, special tokens excepted.

    As sentence-transformers 6.2 does for `do_lower_case`, base/modules/transformer.py.
    """
    inner = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *inner])


def keeps_case(folder: Path) -> bool:
    """Whether capitals make a difference to the tokenizer.

    The loaded tokenizer is asked, because its files can contradict each other. transformers 5 makes a BertTokenizer's
    normaliser from `do_lower_case` in tokenizer_config.json, or from true if that key is missing. It ignores what
    tokenizer.json says.
    """
    normalizer = load_tokenizer(folder).backend_tokenizer.normalizer
    return normalizer is None or bool(normalizer.normalize_str("A") == "A")


def require_tokens(folder: Path, vocab_size: int) -> None:
    """Raise CheckpointError: the tokenizer has ids beyond the model's word table, or none for some texts."""
    tokenizer = load_tokenizer(folder)
    with _faults(model_folder(folder)):
        ids: list[list[int]] = tokenizer([*PROBES])["input_ids"]
    if tokenizer.pad_token_id is None and tokenizer.cls_token_id is not None:
        raise CheckpointError(
            "the tokenizer: expected a token that fills batches up, found none.\n"
            "    Add pad_token to tokenizer_config.json."
        )
    highest = max(*tokenizer.get_vocab().values(), *(max(of_text, default=0) for of_text in ids))
    if highest >= vocab_size:
        raise CheckpointError(
            f"the tokenizer: expected ids below {vocab_size}, the rows of the word table, found {highest}.\n"
            "    Are tokenizer and weights of the same model?"
        )
    if ids[0] != [*text_ends(tokenizer)]:
        raise CheckpointError(
            f"the tokenizer: expected an empty text to become its first and last token {text_ends(tokenizer)}, found "
            f"{shortened(str(ids[0]))}.\n"
            "    Its tokenizer.json lacks the template; save it again with the tokenizer's own library."
        )
