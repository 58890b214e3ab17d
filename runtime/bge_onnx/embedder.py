"""Texts to vectors: the way through the other modules, in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bge_onnx.batches import plan_batches
from bge_onnx.bundle import Bundle
from bge_onnx.embeddings import Embeddings, Vectors, collect
from bge_onnx.errors import InputError
from bge_onnx.hub import find_bundle
from bge_onnx.scores import similarity
from bge_onnx.session import Session
from bge_onnx.threads import resolve_threads
from bge_onnx.tokenizer import Tokenizer

BUDGET_TOKENS = 512
"""Tokens of a batch: with one core a batch, as fast as 1024 and faster than a text at a time (BERT small and base)."""

STREAM_TEXTS = 4096
"""Texts that a stream holds at a time: enough for batches of one length, a few MB of text."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """A bundle, ready to embed. Safe to use from several threads.

    >>> bge = Embedder.open("bge-small-en-v1.5-cpu-fp32")
    >>> bge.embed(["BM25 is a ranking function.", "Tea is a drink."]).dense.shape
    (2, 384)
    """

    bundle: Bundle
    tokenizer: Tokenizer
    session: Session

    @classmethod
    def open(
        cls, bundle: str | Path, *, threads: int | None = None, revision: str | None = None, verify: bool = False
    ) -> Embedder:
        """Open a bundle: a local folder, or a Hub repository that holds one (downloaded once).

        threads   cores to use; None for all that the scheduler and the container allow
        revision  branch, tag or commit of the Hub repository
        verify    also compare the hash of every file (sizes always are)

        Raises BundleError, ProviderError, InputError.
        """
        opened = Bundle.open(find_bundle(bundle, revision=revision), verify=verify)
        tokenizer = Tokenizer.open(opened.folder / opened.tokenizer, max_tokens=opened.max_tokens)
        return cls(opened, tokenizer, Session(opened, resolve_threads(threads)))

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        max_tokens: int | None = None,
        budget_tokens: int = BUDGET_TOKENS,
        progress: bool | None = None,
    ) -> Embeddings:
        """Vectors of `texts`, in order; an empty list gives an empty array, an empty text is a text.

        prompt         put in front of every text, as it is
        max_tokens     cut texts here; None for the model's own limit
        budget_tokens  of a batch: memory grows with it, the vectors do not change
        progress       a bar on stderr; None for one only on a terminal and when it takes seconds

        Raises InputError: texts that are no strings (their index is named), a limit out of range.
        """
        tokenizer = self.tokenizer if max_tokens is None else self.tokenizer.with_max_tokens(max_tokens)
        token_ids = tokenizer.encode(texts, prompt=prompt)
        return self._run(token_ids, budget_tokens=budget_tokens, progress=progress)

    def embed_token_ids(
        self,
        token_ids: Sequence[NDArray[np.int64]],
        *,
        budget_tokens: int = BUDGET_TOKENS,
        progress: bool | None = None,
    ) -> Embeddings:
        """Vectors of texts that are token ids (T,) already, special tokens included.

        Raises InputError: an empty sequence, one longer than the model's limit, or ids outside the vocabulary.
        """
        self._check_token_ids(token_ids)
        return self._run(token_ids, budget_tokens=budget_tokens, progress=progress)

    def embed_queries(self, queries: Sequence[str], *, progress: bool | None = None) -> Embeddings:
        """Vectors of search queries, with the model's own query instruction in front."""
        return self.embed(queries, prompt=self.bundle.prompts.get("query", ""), progress=progress)

    def embed_passages(self, passages: Sequence[str], *, progress: bool | None = None) -> Embeddings:
        """Vectors of the passages that queries look for, with the model's passage instruction if it has one."""
        return self.embed(passages, prompt=self.bundle.prompts.get("passage", ""), progress=progress)

    def stream(self, texts: Iterable[str], *, prompt: str = "", window: int = STREAM_TEXTS) -> Iterator[Embeddings]:
        """Vectors of any number of texts, in order, `window` texts at a time: neither texts nor vectors pile up.

        Raises InputError like `embed`; an index named there counts from the window's first text.
        """
        if isinstance(texts, str | bytes):
            raise InputError("texts: expected an iterable of strings, found one string. Put it in a list: [text]")
        iterator = iter(texts)
        while chunk := list(itertools.islice(iterator, window)):
            yield self.embed(chunk, prompt=prompt, progress=False)

    def similarity(self, queries: Sequence[str], passages: Sequence[str]) -> Vectors:
        """Scores (Q, P) float32 of every query with every passage, instructions applied."""
        return similarity(self.embed_queries(queries), self.embed_passages(passages))

    def _run(self, token_ids: Sequence[NDArray[np.int64]], *, budget_tokens: int, progress: bool | None) -> Embeddings:
        bundle = self.bundle
        batches = plan_batches(token_ids, budget_tokens=budget_tokens, layout=bundle.layout, pad_id=bundle.pad_id)
        silent = None if progress is None else not progress
        with tqdm(total=len(token_ids), unit="text", disable=silent, delay=2, leave=False) as bar:
            outputs = (
                (batch, heads) for batch, heads in self.session.run(batches) if bar.update(len(batch.rows)) or True
            )
            return collect(outputs, count=len(token_ids), dims=bundle.dims["dense"])

    def _check_token_ids(self, token_ids: Sequence[NDArray[np.int64]]) -> None:
        limit, vocabulary = self.bundle.max_tokens, self.tokenizer.backend.get_vocab_size()
        for index, ids in enumerate(token_ids):
            if not 0 < len(ids) <= limit:
                raise InputError(f"token_ids[{index}]: expected 1 to {limit} token ids, found {len(ids)}")
            if ids.min() < 0 or ids.max() >= vocabulary:
                raise InputError(
                    f"token_ids[{index}]: expected ids from 0 to {vocabulary - 1}, found {ids.min()} to {ids.max()}"
                )
