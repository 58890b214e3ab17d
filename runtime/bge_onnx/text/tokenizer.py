"""Texts to token ids, with the tokenizers library and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from bge_onnx.errors import BundleError, InputError
from bge_onnx.files.json_file import HALF_CHARACTER, shortened

PANIC = "PanicException"

CLIP_CHARS_PER_TOKEN = 32
"""A text is read this many characters per wanted token at first; more only where that gave too few tokens."""

CLIP_MARGIN_WORDS = 8
"""A cut changes the word that it falls into, or the few pieces of a special token's name ("<pa|d>"). Earlier words stay
the same: models split word by word. Within a word the end can change the beginning (31 dashes are "-", "--", ...)."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A bundle's tokenizer: special tokens added, texts cut to `max_tokens` with those at the end kept.

    The cut is made here: ids are what `enable_truncation` gives, and a limit needs no copy of the vocabulary.
    """

    backend: tokenizers.Tokenizer
    max_tokens: int

    @classmethod
    def open(cls, path: str | Path, *, max_tokens: int) -> Tokenizer:
        """Read a `tokenizer.json`. Raises BundleError: the file cannot be read as one."""
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:  # tokenizers raises Exception itself, and a panic of Rust that is none
            if not isinstance(error, Exception) and type(error).__name__ != PANIC:
                raise
            raise BundleError(
                f"{path}: expected a tokenizer.json, found {shortened(str(error))}.\n    Export the bundle again."
            ) from None
        backend.no_padding()
        backend.no_truncation()
        special = backend.num_special_tokens_to_add(is_pair=False)
        if max_tokens <= special:
            raise BundleError(
                f"{path}: expected room for a word beside {special} special tokens, found max_tokens {max_tokens}.\n"
                "    Export the bundle again."
            )
        return cls(backend, max_tokens)

    def with_max_tokens(self, max_tokens: int) -> Tokenizer:
        """The same tokenizer, cutting earlier. Raises InputError: more than the model allows, or no room for a word."""
        special = self.backend.num_special_tokens_to_add(is_pair=False)
        if type(max_tokens) is not int or not special < max_tokens <= self.max_tokens:
            raise InputError(
                f"max_tokens: expected {special + 1} to {self.max_tokens} (this model's limit), found "
                f"{max_tokens!r:.60}"
            )
        return Tokenizer(self.backend, max_tokens)

    def encode(self, texts: Iterable[str], *, prompt: str = "") -> list[NDArray[np.int64]]:
        """Token ids (T,) int64 of each text with `prompt` in front; T from the special tokens to `max_tokens`.

        Texts of any size: only as much is read as can matter for the first `max_tokens` tokens.
        Raises InputError: something that is not a string, or holds half a surrogate pair (its index is named).
        """
        if fault := string_fault(prompt):
            raise InputError(f"prompt: expected a string, which may be empty, found {fault}")
        prompted = [prompt + text for text in check_texts(texts)]
        clipped = [text if len(text) <= self._clip_chars else self._clip(text) for text in prompted]
        return [self._cut(encoding) for encoding in self.backend.encode_batch_fast(clipped)]

    def first_tokens(self, texts: Sequence[str], tokens: int) -> list[NDArray[np.int64]]:
        """The first `tokens` token ids of each text, without special tokens. Only what can matter is read."""
        short = Tokenizer(self.backend, tokens)
        clipped = [text if len(text) <= short._clip_chars else short._clip(text) for text in texts]
        encodings = self.backend.encode_batch_fast(clipped, add_special_tokens=False)
        return [np.array(encoding.ids[:tokens], dtype=np.int64) for encoding in encodings]

    def untruncated(self, texts: Iterable[str], *, special: bool = True) -> list[NDArray[np.int64]]:
        """All token ids (T,) int64 of each text, however many, with the special tokens or without.

        Raises InputError: like `encode`.
        """
        encodings = self.backend.encode_batch_fast(check_texts(texts), add_special_tokens=special)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def decode(self, token_ids: NDArray[np.int64]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self.backend.decode(token_ids.tolist(), skip_special_tokens=False)
        return text

    def _cut(self, encoding: tokenizers.Encoding) -> NDArray[np.int64]:
        """The ids, the text's own cut so that there are at most `max_tokens`."""
        ids = np.array(encoding.ids, dtype=np.int64)
        if len(ids) <= self.max_tokens:
            return ids
        end = encoding.special_tokens_mask[::-1].index(0)  # special tokens behind the text
        kept: NDArray[np.int64] = np.delete(ids, np.s_[self.max_tokens - end : len(ids) - end])
        return kept

    @property
    def _clip_chars(self) -> int:
        return CLIP_CHARS_PER_TOKEN * self.max_tokens

    def _clip(self, text: str) -> str:
        """A beginning of `text` with the same first `max_tokens` tokens; the whole text if no shorter one is sure."""
        chars = self._clip_chars
        while chars < len(text):
            words = [word for word in self.backend.encode(text[:chars]).word_ids if word is not None]
            if len(words) > self.max_tokens and words[-1] >= words[self.max_tokens] + CLIP_MARGIN_WORDS:
                return text[:chars]
            chars *= 8
        return text


def check_special_ids(tokenizer: Tokenizer, special_ids: Mapping[str, int], path: Path) -> None:
    """Raise BundleError: a special token has one id in the manifest and another in the tokenizer.

    Otherwise special tokens would get weights in sparse vectors, or words would lose theirs.
    """
    backend = tokenizer.backend
    special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    ends = backend.encode("").ids
    wanted = {"begin": (ends[0], ("cls", "bos")), "end": (ends[-1], ("sep", "eos"))} if ends else {}
    faults = [f"{name} {number}" for name, number in special_ids.items() if number not in special]
    for place, (number, names) in wanted.items():
        given = {name: special_ids[name] for name in names if name in special_ids}
        if given and number not in given.values():
            faults.append(f"{' and '.join(given)} other than {number}, with which texts {place}")
    if faults or not ends:
        raise BundleError(
            f"{path}: expected the special tokens of the manifest, found {', '.join(faults) or 'no template'}.\n"
            "    Tokenizer and manifest are of different bundles, or damaged. Export the bundle again."
        )


def require_list(name: str, texts: object) -> None:
    """Raise InputError: one string, whose letters would be taken for texts; a mapping or a table, whose keys would be;
    a set, whose order differs from run to run; or nothing that can be gone through.
    """
    if isinstance(texts, str | bytes):
        raise InputError(f"{name}: expected a list of strings, found one string. Put it in a list: [text]")
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):
        raise InputError(
            f"{name}: expected a list of strings, found a {type(texts).__name__}, whose keys would be taken.\n"
            '    Give its texts: list(table["text"])'
        )
    if isinstance(texts, set | frozenset):
        raise InputError(
            f"{name}: expected a list of strings, found a {type(texts).__name__}, which has no order that vectors "
            "could keep.\n    Put it in one: sorted(texts)"
        )
    if not isinstance(texts, Iterable):
        raise InputError(f"{name}: expected a list of strings, found {type(texts).__name__}")


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list. Raises InputError naming the first few among them that are not usable strings."""
    require_list("texts", texts)
    texts = list(texts)
    faults = [f"texts[{index}]: {fault}" for index, text in enumerate(texts) if (fault := string_fault(text))]
    if faults:
        more = f"\n    and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InputError("expected strings, found\n    " + "\n    ".join(faults[:5]) + more)
    return texts


def check_token_ids(
    token_ids: Iterable[Sequence[int] | NDArray[np.integer[Any]]], *, limit: int, vocabulary: int
) -> list[NDArray[np.int64]]:
    """Texts that are token ids already, each as an array (T,). Raises InputError naming the first that is none."""
    if isinstance(token_ids, str | bytes | Mapping) or not isinstance(token_ids, Iterable):
        raise InputError(f"token_ids: expected a list of lists of token ids, found {type(token_ids).__name__}")
    checked = []
    for index, given in enumerate(token_ids):
        try:
            ids = np.asarray(given)
        except (TypeError, ValueError):
            ids = np.empty((0, 0))
        checked.append(ids)
        if ids.ndim != 1 or not 0 < len(ids) <= limit:
            found = len(ids) if ids.ndim == 1 else ids.shape
            raise InputError(f"token_ids[{index}]: expected 1 to {limit} token ids, found {found}")
        if not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"token_ids[{index}]: expected whole numbers, found {ids.dtype}")
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise InputError(
                f"token_ids[{index}]: expected ids from 0 to {vocabulary - 1}, found {ids.min()} to {ids.max()}"
            )
    return [ids.astype(np.int64, copy=False) for ids in checked]


def windows(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """The texts, `size` at a time; one empty list where there are none, so that a stream says what it would hold.

    Raises InputError: one string, whose letters would be taken for texts; a size below 1.
    """
    require_list("texts", texts)
    if type(size) is not int or size < 1:
        raise InputError(f"window: expected a whole number of texts, at least 1, found {size!r:.60}")
    iterator = iter(texts)
    window = list(itertools.islice(iterator, size))
    yield window
    while window := list(itertools.islice(iterator, size)):
        yield window


def string_fault(text: object) -> str:
    """Why a tokenizer cannot take this as a text; empty where it can."""
    if not isinstance(text, str):
        return f"{type(text).__name__} ({str(text)[:40]!r})" if text is not None else "None"
    half = HALF_CHARACTER.search(text)
    if half:
        return f"a lone surrogate (half a character) at position {half.start()}; was the text cut or misdecoded?"
    return ""
