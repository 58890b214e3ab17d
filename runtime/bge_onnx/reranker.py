"""Pairs of a query and a passage to scores: a cross-encoder or a language model, which reads both texts together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.heads import SCORE
from bge_onnx.embed.opening import Opened, open_parts, reopen
from bge_onnx.embed.prefix import LONG_TOKENS
from bge_onnx.embed.vectors_of import vectors_of
from bge_onnx.errors import BundleError, InputError
from bge_onnx.run.session import KeysValues, Session
from bge_onnx.text.pair_tokens import Ids, PairTokens
from bge_onnx.text.tokenizer import Tokenizer, check_texts, string_fault
from bge_onnx.vectors.embeddings import VectorOptions, Vectors
from bge_onnx.vectors.pairs import check_pairs

WINDOW_PAIRS = 4096
"""Pairs whose token ids are held at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One passage's place in a ranking: its index among those given, and its score."""

    index: int
    score: float


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Reranker:
    """A reranker's bundle, ready to score: one model from `open` to the end. Safe to use from several threads.

    >>> reranker = Reranker.open("bge-reranker-v2-m3-cpu-int8")
    >>> reranker.score([("what is BM25?", "BM25 is a ranking function."), ("what is BM25?", "Tea is a drink.")]).shape
    (2,)
    """

    bundle: Bundle
    tokenizer: Tokenizer
    session: Session
    opened: Opened
    pairs: PairTokens

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        threads: int | None = None,
        devices: Sequence[int] | None = None,
        device_memory: int | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        verify: bool = False,
    ) -> Reranker:
        """Open a bundle: a local folder, or a Hub repository that holds one. Arguments as `Embedder.open` has them.

        Raises BundleError: also a bundle that gives vectors. ProviderError, InputError.
        """
        found, tokenizer, session, opened = open_parts(
            bundle,
            threads=threads,
            devices=devices,
            device_memory=device_memory,
            revision=revision,
            cache_dir=cache_dir,
            verify=verify,
        )
        if SCORE not in found.outputs:
            raise BundleError(
                f"{found.folder}: expected a reranker, found a bundle that gives {', '.join(found.outputs)}.\n"
                "    Use Embedder.open(bundle), whose `similarity` and `score` rank by vectors."
            )
        if found.causal:
            pairs = PairTokens.prompted(tokenizer, found.special_ids, found.prompts)
        else:
            pairs = PairTokens.of(tokenizer)
        return cls(found, tokenizer, session, opened, pairs)

    def __reduce__(self) -> tuple[Any, ...]:
        """How the bundle was opened, and which it is."""
        return reopen, (Reranker, self.opened, self.bundle.identity)

    def score(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        normalize: bool = False,
        max_tokens: int | None = None,
        query_max_tokens: int | None = None,
        budget_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Vectors:
        """Scores (N,) float32 of (query, passage) pairs, in order: more is better.

        normalize         through the sigmoid, to 0 to 1; else the model's logits
        max_tokens        of a pair, special tokens included: passages are cut to fit; None for the model's own limit
        query_max_tokens  of a query, without special tokens; None for three quarters of `max_tokens`
        budget_tokens     of a batch: memory grows with it, scores stay
        progress          a bar on stderr; None for one only on a terminal and when it takes seconds

        On a CPU a pair gets bit for bit the same score, alone or in any batch.
        Raises InputError: no pairs of strings (their index is named), a limit out of range.
        """
        checked = check_pairs(pairs)
        limit = self.bundle.max_tokens if max_tokens is None else max_tokens
        parts = [np.empty(0, dtype=np.float32)]
        for start in range(0, len(checked), WINDOW_PAIRS):
            window = checked[start : start + WINDOW_PAIRS]
            apart = self.pairs.encode_apart(window, max_tokens=limit, query_max_tokens=query_max_tokens)
            if self.bundle.causal and self.bundle.layout == "equal":
                parts.append(self._behind_queries(apart, budget_tokens, progress=progress))
            else:
                whole = [np.concatenate(pair) for pair in apart]
                parts.append(self._scores(whole, None, budget_tokens, progress=progress))
        scores: Vectors = np.concatenate(parts)
        return sigmoid(scores) if normalize else scores

    def _behind_queries(
        self, apart: Sequence[tuple[Ids, Ids]], budget_tokens: int | None, *, progress: bool | None
    ) -> Vectors:
        """Scores of pairs whose beginnings are computed once for each query, alone or with any number of passages.

        A long passage is computed whole, as `Prefix` does it.
        """
        from tqdm import tqdm  # noqa: PLC0415 - a sixth of the package's import time

        groups: dict[bytes, list[int]] = {}
        for place, (beginning, rest) in enumerate(apart):
            groups.setdefault(b"" if len(rest) > LONG_TOKENS else beginning.tobytes(), []).append(place)
        scores = np.empty(len(apart), dtype=np.float32)
        silent = None if progress is None else not progress
        with tqdm(total=len(apart), unit="pair", disable=silent, delay=2, leave=False) as bar:
            for shared, places in groups.items():
                past = self.session.past_of(apart[places[0]][0]) if shared else None
                own = [apart[place][1] if shared else np.concatenate(apart[place]) for place in places]
                scores[places] = self._scores(own, past, budget_tokens, progress=False)
                bar.update(len(places))
        return scores

    def _scores(
        self, ids: Sequence[Ids], past: KeysValues | None, budget_tokens: int | None, *, progress: bool | None
    ) -> Vectors:
        """Of token ids (T,) behind the keys and values of `past`."""
        wanted = VectorOptions(heads=(SCORE,))
        found = vectors_of(self.bundle, self.session, ids, wanted, past, budget_tokens, progress=progress)
        scores: Vectors = found.by_head[SCORE]
        return scores

    def rank(self, query: str, passages: Iterable[str], *, top_k: int | None = None, **options: Any) -> list[Ranked]:
        """The passages' places and scores, best first; equal scores in the order given.

        top_k    so many of them; None for all
        options  those of `score`

        Raises InputError: no string, no list of strings, a top_k below 1.
        """
        if fault := string_fault(query):
            raise InputError(f"query: expected a string, found {fault}")
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise InputError(f"top_k: expected a whole number, at least 1, or None, found {top_k!r:.60}")
        scores = self.score([(query, passage) for passage in check_texts(passages)], **options)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Ranked(index=int(place), score=float(scores[place])) for place in order]

    def stream(self, pairs: Iterable[tuple[str, str]], *, window: int = 1024, **options: Any) -> Iterator[Vectors]:
        """Scores of any number of pairs, in order, `window` at a time. Raises InputError like `score`."""
        if isinstance(pairs, str | bytes | Mapping) or not isinstance(pairs, Iterable):
            raise InputError(f"pairs: expected pairs (query, passage), found {type(pairs).__name__}")
        if type(window) is not int or window < 1:
            raise InputError(f"window: expected a whole number of pairs, at least 1, found {window!r:.60}")
        left = iter(pairs)
        while chunk := list(itertools.islice(left, window)):
            yield self.score(chunk, progress=False, **options)

    def warm_up(self) -> None:
        """Load the graph and run it once: later scores need not wait."""
        self.session.warm_up()


def sigmoid(scores: Vectors) -> Vectors:
    """1 / (1 + exp(-x)) of each score, without overflow."""
    small = np.exp(-np.abs(scores))
    shares: Vectors = np.where(scores >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
    return shares
