"""What FlagEmbedding's users do with `model.tokenizer`, on a bundle's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_onnx.errors import InputError
from bge_onnx.text.tokenizer import Tokenizer, check_texts


@dataclass(frozen=True, slots=True)
class FlagTokenizer:
    """Texts to token ids and back, under the names that transformers' tokenizers have.

    There are no tensors and no padding: ids come as lists. `backend` is the tokenizers library's own object.
    """

    own: Tokenizer

    @property
    def backend(self) -> Any:
        """The `tokenizers.Tokenizer`."""
        return self.own.backend

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        truncation: bool | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        **others: Any,
    ) -> dict[str, Any]:
        """`input_ids` and `attention_mask` of one text, lists of them of several.

        truncation  to `max_length`, or the model's limit; None where a `max_length` is given, as in transformers
        Raises InputError: no texts, a `max_length` beyond the model's, other keywords.
        """
        if others:
            raise InputError(
                "tokenizer: expected truncation, max_length or add_special_tokens, found "
                f"{', '.join(sorted(others))}.\n"
                "    Ids come as lists, without tensors and padding; `backend` has all that the tokenizers library has."
            )
        texts = check_texts([text] if isinstance(text, str) else text)
        if truncation is False or (truncation is None and max_length is None):
            rows = self.own.untruncated(texts, special=add_special_tokens)
        else:
            rows = self._truncated(texts, self.own.max_tokens if max_length is None else max_length, add_special_tokens)
        ids = [row.tolist() for row in rows]
        masks = [[1] * len(row) for row in ids]
        first = isinstance(text, str)
        return {"input_ids": ids[0] if first else ids, "attention_mask": masks[0] if first else masks}

    def _truncated(self, texts: Sequence[str], limit: int, special: bool) -> list[NDArray[np.int64]]:
        if not special:
            return [row[: max(0, limit)] for row in self.own.untruncated(texts, special=False)]
        if limit == self.backend.num_special_tokens_to_add(is_pair=False):  # no room for a word
            return self.own.untruncated([""] * len(texts))
        return self.own.with_max_tokens(limit).encode(texts)

    def __len__(self) -> int:
        """Tokens in the vocabulary."""
        size: int = self.backend.get_vocab_size()
        return size

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of one text."""
        ids: list[int] = self(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def tokenize(self, text: str) -> list[str]:
        """The tokens of one text, without special ones."""
        tokens: list[str] = self.backend.encode(text, add_special_tokens=False).tokens
        return tokens

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        """The text of an id, or of several. Raises InputError: something else."""
        text: str = self.backend.decode(_ids(token_ids)[0], skip_special_tokens=skip_special_tokens)
        return text

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The token of an id, or a list of several. Raises InputError: something else."""
        numbers, single = _ids(ids)
        tokens = [self.backend.id_to_token(number) for number in numbers]
        return tokens[0] if single else tokens

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or a list of several; None for a token that there is not.

        Raises InputError: no strings.
        """
        if isinstance(tokens, str):
            return self.backend.token_to_id(tokens)
        tokens = check_texts(tokens)
        return [self.backend.token_to_id(token) for token in tokens]

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids."""
        vocabulary: dict[str, int] = self.backend.get_vocab()
        return vocabulary


def _ids(ids: Any) -> tuple[list[int], bool]:
    """Token ids as a list, and whether they were one number. Raises InputError: no numbers from 0 on."""
    try:
        numbers = np.asarray(ids)
    except ValueError:  # lists of several lengths
        numbers = np.empty((0, 0))
    whole = not numbers.size or (numbers.dtype.kind in "iu" and numbers.min() >= 0 and numbers.max() < 1 << 32)
    if numbers.ndim > 1 or not whole:
        raise InputError(f"token ids: expected whole numbers from 0 on, found {ids!r:.60}")
    return [int(number) for number in numbers.ravel()], numbers.ndim == 0
