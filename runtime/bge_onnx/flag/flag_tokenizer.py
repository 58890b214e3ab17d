"""What FlagEmbedding's users do with `model.tokenizer`, on a bundle's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bge_onnx.errors import InputError
from bge_onnx.tokenizer import Tokenizer


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
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> dict[str, Any]:
        """`input_ids` and `attention_mask` of one text, lists of them of several.

        Raises InputError: no texts, or a `max_length` beyond the model's.
        """
        texts = [text] if isinstance(text, str) else text
        if truncation and add_special_tokens:
            tokenizer = self.own if max_length is None else self.own.with_max_tokens(max_length)
            ids = [row.tolist() for row in tokenizer.encode(texts)]
        elif truncation:
            raise InputError("truncation: expected special tokens with it, found add_special_tokens=False.")
        else:
            ids = [row.tolist() for row in self.own.untruncated(texts, special=add_special_tokens)]
        masks = [[1] * len(row) for row in ids]
        first = isinstance(text, str)
        return {"input_ids": ids[0] if first else ids, "attention_mask": masks[0] if first else masks}

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

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        text: str = self.backend.decode([int(token) for token in token_ids], skip_special_tokens=skip_special_tokens)
        return text

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> Any:
        """The token of an id, or a list of several."""
        if isinstance(ids, int):
            return self.backend.id_to_token(ids)
        return [self.backend.id_to_token(int(token)) for token in ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or a list of several; None for a token that there is not."""
        if isinstance(tokens, str):
            return self.backend.token_to_id(tokens)
        return [self.backend.token_to_id(token) for token in tokens]

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids."""
        vocabulary: dict[str, int] = self.backend.get_vocab()
        return vocabulary
