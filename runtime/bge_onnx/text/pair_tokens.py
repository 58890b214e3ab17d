"""Pairs of a query and a passage to token ids, as FlagEmbedding's rerankers make them.

Mirrors FlagEmbedding 1.4.2's BaseReranker and BaseLLMReranker, and transformers' prepare_for_model with "only_second":
https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/inference/reranker/encoder_only/base.py
https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/inference/reranker/decoder_only/base.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.graph_names import SECOND
from bge_onnx.bundle.prompts import BEHIND, BETWEEN
from bge_onnx.errors import BundleError, InputError
from bge_onnx.text.tokenizer import Tokenizer

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PairTokens:
    """How a tokenizer joins two texts: token ids in front, between and behind.

    typed    whether the second text's tokens are of type 1: SECOND is added to their ids, until a batch is made
    counted  of `max_tokens`, what these ids take: all of them; or less than none, where a prompt may go beyond it
    query, passage  texts in front of the two
    """

    tokenizer: Tokenizer
    front: Ids
    between: Ids
    behind: Ids
    typed: bool
    counted: int
    query: str = ""
    passage: str = ""

    @classmethod
    def prompted(cls, tokenizer: Tokenizer, special_ids: Mapping[str, int], prompts: Mapping[str, str]) -> PairTokens:
        """For a language model that is asked: the begin token, the query, `between`, the passage, `between`, `behind`.

        Query and passage may be longer than `max_tokens` by as much as the last two take, and these come on top.
        """
        between, question = tokenizer.untruncated([prompts[BETWEEN], prompts[BEHIND]], special=False)
        begin = special_ids.get("bos")
        front = np.array([] if begin is None or begin == special_ids["pad"] else [begin], dtype=np.int64)
        behind = np.concatenate([between, question])
        counted = len(front) + len(between) - len(behind)
        return cls(tokenizer, front, between, behind, False, counted, prompts["query"], prompts["passage"])

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PairTokens:
        """Read off how the tokenizer joins a pair. Raises BundleError: it does not."""
        found = tokenizer.backend.encode("a", "a")
        texts, ids = found.sequence_ids, np.array(found.ids, dtype=np.int64)
        if 0 not in texts or 1 not in texts:
            raise BundleError("tokenizer.json: expected a template for pairs of texts, found none.\n    Export again.")
        first, second = texts.index(0), texts.index(1)
        last = len(texts) - 1 - texts[::-1].index(1)
        end_of_first = second - 1 - texts[second - 1 :: -1].index(0)
        types = np.array(found.type_ids, dtype=np.int64)
        ids += types * SECOND
        parts = (ids[:first], ids[end_of_first + 1 : second], ids[last + 1 :])
        return cls(tokenizer, *parts, bool(types[second]), sum(map(len, parts)))

    def encode(self, pairs: Sequence[tuple[str, str]], *, max_tokens: int, query_max_tokens: int | None) -> list[Ids]:
        """Token ids (T,) of each pair; arguments as `encode_apart` has them."""
        apart = self.encode_apart(pairs, max_tokens=max_tokens, query_max_tokens=query_max_tokens)
        return [np.concatenate(parts) for parts in apart]

    def encode_apart(
        self, pairs: Sequence[tuple[str, str]], *, max_tokens: int, query_max_tokens: int | None
    ) -> list[tuple[Ids, Ids]]:
        """Token ids of each pair as two parts: up to the passage, which all passages of a query share, and from it on.

        max_tokens        of a pair, special tokens included: the passage is cut to fit
        query_max_tokens  of the query, without special tokens; None for three quarters of `max_tokens`

        Raises InputError: a limit out of range, or a query that leaves no room for its passage.
        """
        special = max(0, self.counted)
        limit = self.tokenizer.max_tokens
        if type(max_tokens) is not int or not special < max_tokens <= limit:
            raise InputError(
                f"max_tokens: expected {special + 1} to {limit} (this model's limit), found {max_tokens!r:.60}"
            )
        query_limit = max_tokens * 3 // 4 if query_max_tokens is None else query_max_tokens
        if type(query_limit) is not int or not 1 <= query_limit <= max_tokens - special:
            raise InputError(
                f"query_max_tokens: expected 1 to {max_tokens - special}, room for the special tokens beside it, found "
                f"{query_limit!r:.60}"
            )
        queries = self._cut(self.query, {query for query, _ in pairs}, query_limit)
        passages = self._cut(self.passage, {passage for _, passage in pairs}, max_tokens)
        shift = SECOND if self.typed else 0
        apart = []
        for query, passage in pairs:
            first, second = queries[query], passages[passage] + shift
            room = max_tokens - self.counted - len(first)
            beginning = np.concatenate([self.front, first, self.between])
            apart.append((beginning, np.concatenate([second[:room], self.behind])))
        return apart

    def _cut(self, prompt: str, texts: set[str], tokens: int) -> dict[str, Ids]:
        """The first tokens of each text with the prompt in front, without special ones."""
        ordered = list(texts)
        found = self.tokenizer.first_tokens([prompt + text for text in ordered], tokens)
        return dict(zip(ordered, found, strict=True))
