"""Prefixes that many texts share: their keys and values are computed once, as causal models never change them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.heads import HEADS
from bge_onnx.errors import InputError
from bge_onnx.run.session import KeysValues, Session
from bge_onnx.text.tokenizer import Tokenizer
from bge_onnx.vectors.embeddings import Embeddings, VectorOptions

Ids = NDArray[np.int64]

LONG_TOKENS = 1024
"""A text with more tokens of its own is computed whole."""


class Runner(Protocol):
    """What a beginning needs of an Embedder."""

    @property
    def bundle(self) -> Bundle: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def session(self) -> Session: ...

    def run(
        self,
        token_ids: Sequence[Ids],
        wanted: VectorOptions,
        *,
        past: KeysValues | None = None,
        budget_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """Token ids (T,) to vectors, behind the keys and values of `past`."""


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A text's beginning with its keys and values; `Embedder.with_prefix` makes one.

    text       the beginning
    token_ids  (P,) int64 of it, the begin token included
    past       keys and values of all layers, `past.nbytes` bytes, freed with this object; None for bundles that compute
               texts whole, as those for GPUs do

    >>> examples = bge.with_prefix("<instruct>… <query>… <response>… ")
    >>> examples.embed(["<instruct>… <query>what is BM25? <response>"]).dense.shape
    (1, 4096)
    """

    embedder: Runner
    text: str
    token_ids: Ids
    past: KeysValues | None

    @classmethod
    def make(cls, embedder: Runner, text: str) -> Prefix:
        """As `Embedder.with_prefix`."""
        if not embedder.bundle.causal:
            raise InputError(
                f"prefix: expected a bundle of a causal model (Mistral, Gemma2), found {embedder.bundle.name} "
                f"({embedder.bundle.model_type}).\n    In others a text's end changes its beginning: give texts whole."
            )
        (whole,) = embedder.tokenizer.untruncated([text])
        return cls.of_token_ids(embedder, text, whole[:-1])  # the end token is the text's

    @classmethod
    def of_token_ids(cls, embedder: Runner, text: str, token_ids: Ids) -> Prefix:
        """As `make`, of token ids (P,), the begin token included."""
        limit = embedder.bundle.max_tokens - 2
        if len(token_ids) > limit:
            raise InputError(f"prefix: expected at most {limit} tokens, found {len(token_ids)}")
        return cls(embedder, text, token_ids, embedder.session.past_of(token_ids))

    def embed(
        self,
        texts: Iterable[str],
        *,
        max_tokens: int | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        budget_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """Dense vectors of the texts with this prefix in front: those of `embed` on the whole texts, to rounding.

        max_tokens  of prefix and text together
        The other arguments and the errors are those of `Embedder.embed`.
        """
        embedder = self.embedder
        wanted = VectorOptions(normalize=normalize, truncate_dim=truncate_dim)
        wanted.check(embedder.bundle)
        tokenizer = embedder.tokenizer if max_tokens is None else embedder.tokenizer.with_max_tokens(max_tokens)
        token_ids = tokenizer.encode(texts, prompt=self.text)
        return self.embed_whole(token_ids, wanted, budget_tokens=budget_tokens, progress=progress)

    def embed_whole(
        self,
        token_ids: Sequence[Ids],
        wanted: VectorOptions,
        *,
        budget_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """Vectors of texts that are token ids (T,), the prefix included.

        What a text has in common with the prefix is not computed again. That may end before the prefix does: a
        tokenizer can merge its last letters with the text's first.
        """
        shared = np.array([self._shared(ids) for ids in token_ids], dtype=np.int64)
        dense = np.empty((len(token_ids), wanted.width(self.embedder.bundle)), dtype=np.float32)
        for length in np.unique(shared):
            rows = np.flatnonzero(shared == length)
            own = [token_ids[row][length:] for row in rows.tolist()]
            past = self.past.first(int(length)) if self.past else None
            dense[rows] = self.embedder.run(
                own, wanted, past=past, budget_tokens=budget_tokens, progress=progress
            ).dense
        return Embeddings(count=len(token_ids), by_head={**dict.fromkeys(HEADS), "dense": dense})

    def _shared(self, token_ids: Ids) -> int:
        """How many tokens to take from the prefix. A long text takes none: behind a prefix, its attention needs a
        matrix of tokens by tokens, which it does not need when the text is computed whole.
        """
        if self.past is None:
            return 0
        shared = shared_length(self.token_ids, token_ids)
        return shared if len(token_ids) - shared <= LONG_TOKENS else 0


def shared_length(prefix: Ids, token_ids: Ids) -> int:
    """How many first tokens `token_ids` has in common with `prefix`. The last one of `token_ids` never counts."""
    longest = min(len(prefix), len(token_ids) - 1)
    differing = np.flatnonzero(prefix[:longest] != token_ids[:longest])
    return int(differing[0]) if len(differing) else longest
