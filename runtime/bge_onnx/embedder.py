"""Texts to vectors: the way through the other modules, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.heads import SCORE
from bge_onnx.bundle.prompts import TASK
from bge_onnx.embed.few_shot import FewShot
from bge_onnx.embed.opening import Opened, open_parts, reopen
from bge_onnx.embed.prefix import Prefix
from bge_onnx.embed.vectors_of import vectors_of
from bge_onnx.errors import BundleError, InputError
from bge_onnx.run.session import KeysValues, Session
from bge_onnx.text.examples import QUERY, QUERY_FORMAT, QUERY_TOKENS, RESPONSE, Prompt, examples_text
from bge_onnx.text.mcls import insert_cls
from bge_onnx.text.tokenizer import Tokenizer, check_token_ids, windows
from bge_onnx.vectors.embeddings import Embeddings, VectorOptions, Vectors, heads_of
from bge_onnx.vectors.pairs import SCORED, check_pairs, chunks_of_pairs, score_texts
from bge_onnx.vectors.scores import EQUAL, check_weights, similarity

DENSE = ("dense",)

STREAM_TEXTS = 4096
"""Texts that a stream holds at a time: enough for batches of one length, a few MB of text."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Embedder:
    """A bundle, ready to embed: one model from `open` to the end. Safe to use from several threads.

    A pickle holds how the bundle was opened and its hash. Where it is read, in another process or on another machine
    with the same bundle at the same place, the bundle is opened again.

    >>> bge = Embedder.open("bge-small-en-v1.5-cpu-fp32")
    >>> bge.embed(["BM25 is a ranking function.", "Tea is a drink."]).dense.shape
    (2, 384)
    """

    bundle: Bundle
    tokenizer: Tokenizer
    session: Session
    opened: Opened

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
    ) -> Embedder:
        """Open a bundle: a local folder, or a Hub repository that holds one (downloaded once).

        threads   cores to use; None for all that the scheduler and the container allow
        devices   GPU numbers, for bundles that run on GPUs; None for the first. Several GPUs: one process each
        device_memory  most bytes of each GPU for weights and activations, not counting CUDA's own; None for all
        revision  branch, tag or commit of the Hub repository
        cache_dir  where downloads are kept; None for huggingface_hub's own cache
        verify    also compare the hash of every file (sizes always are)

        Raises BundleError, ProviderError, InputError.
        """
        parts = open_parts(
            bundle,
            threads=threads,
            devices=devices,
            device_memory=device_memory,
            revision=revision,
            cache_dir=cache_dir,
            verify=verify,
        )
        if SCORE in parts[0].outputs:
            raise BundleError(
                f"{parts[0].folder}: expected a bundle that gives vectors, found a reranker, which scores pairs.\n"
                "    Use Reranker.open(bundle).score([(query, passage)]), or bge rank."
            )
        return cls(*parts)

    def __reduce__(self) -> tuple[Any, ...]:
        """How the bundle was opened, and which it is."""
        return reopen, (Embedder, self.opened, self.bundle.identity)

    def embed(
        self,
        texts: Iterable[str],
        *,
        heads: Sequence[str] = DENSE,
        prompt: str = "",
        max_tokens: int | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        mcls: bool = False,
        budget_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """Vectors of `texts`, in order; an empty list gives empty arrays, an empty text is a text.

        heads          what to give, out of those that the bundle has: dense, sparse, colbert; others cost nothing
        prompt         put in front of every text, as it is
        max_tokens     cut texts here; None for the model's own limit
        normalize      True: dense and ColBERT vectors of length 1; False: as they are; None: as the model was published
        truncate_dim   keep so many leading components of dense and ColBERT vectors, before normalising
        mcls           long texts as the mean over a CLS token every 256 tokens (`bge_onnx.text.mcls`); dense only
        budget_tokens  most tokens in a batch (None: 256 on a CPU, 512 where bundles pad, 16384 on a GPU); changes the
                       memory, not the vectors
        progress       a bar on stderr; None for one only on a terminal and when it takes seconds

        Raises InputError: texts that are no strings (their index is named), a head that the bundle has not, a limit out
        of range.
        """
        wanted = VectorOptions(heads=heads_of(heads), normalize=normalize, truncate_dim=truncate_dim, mcls=mcls)
        wanted.check(self.bundle)
        tokenizer = self.tokenizer if max_tokens is None else self.tokenizer.with_max_tokens(max_tokens)
        token_ids = tokenizer.encode(texts, prompt=prompt)
        if mcls:
            token_ids = [insert_cls(ids, max_tokens=tokenizer.max_tokens) for ids in token_ids]
        return self.run(token_ids, wanted, budget_tokens=budget_tokens, progress=progress)

    def embed_token_ids(
        self,
        token_ids: Iterable[Sequence[int] | NDArray[np.integer[Any]]],
        *,
        heads: Sequence[str] = DENSE,
        budget_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """Vectors of texts that are token ids (T,) already, special tokens included.

        Raises InputError: an empty sequence, one longer than the model's limit, or ids outside the vocabulary.
        """
        wanted = VectorOptions(heads=heads_of(heads))
        wanted.check(self.bundle)
        vocabulary = self.tokenizer.backend.get_vocab_size()
        checked = check_token_ids(token_ids, limit=self.bundle.max_tokens, vocabulary=vocabulary)
        return self.run(checked, wanted, budget_tokens=budget_tokens, progress=progress)

    def embed_queries(
        self,
        queries: Iterable[str],
        *,
        heads: Sequence[str] = DENSE,
        max_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """Vectors of search queries, with the model's own query instruction in front; of bge-en-icl without a task."""
        if self.takes_examples:
            wanted = VectorOptions(heads=heads_of(heads))
            wanted.check(self.bundle)
            limit = QUERY_TOKENS if max_tokens is None else max_tokens
            token_ids = Prompt().token_ids(self.tokenizer, queries, max_tokens=limit)
            return self.run(token_ids, wanted, progress=progress)
        prompt = self.bundle.prompts.get("query", "")
        return self.embed(queries, heads=heads, prompt=prompt, max_tokens=max_tokens, progress=progress)

    def embed_passages(
        self,
        passages: Iterable[str],
        *,
        heads: Sequence[str] = DENSE,
        max_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """Vectors of the passages that queries look for, with the model's passage instruction if it has one."""
        prompt = self.bundle.prompts.get("passage", "")
        return self.embed(passages, heads=heads, prompt=prompt, max_tokens=max_tokens, progress=progress)

    def stream(
        self,
        texts: Iterable[str],
        *,
        heads: Sequence[str] = DENSE,
        prompt: str = "",
        max_tokens: int | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        mcls: bool = False,
        budget_tokens: int | None = None,
        window: int = STREAM_TEXTS,
    ) -> Iterator[Embeddings]:
        """Vectors of any number of texts, in order, `window` texts at a time: neither texts nor vectors pile up.

        Raises InputError like `embed`; an index named there counts from the window's first text.
        """
        for chunk in windows(texts, window):
            yield self.embed(
                chunk,
                heads=heads,
                prompt=prompt,
                max_tokens=max_tokens,
                normalize=normalize,
                truncate_dim=truncate_dim,
                mcls=mcls,
                budget_tokens=budget_tokens,
                progress=False,
            )

    def similarity(self, queries: Sequence[str], passages: Sequence[str]) -> Vectors:
        """Scores (Q, P) float32 of every query with every passage, instructions applied.

        Cosines, or what the model was published with (`bundle.similarity`). More is more alike.
        """
        return similarity(self.embed_queries(queries), self.embed_passages(passages), by=self.bundle.similarity)

    def score(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        weights: Sequence[float] = EQUAL,
        max_tokens: int | None = None,
        progress: bool | None = None,
    ) -> dict[str, Vectors]:
        """Scores of (query, passage) pairs by every head and by their weighted means, instructions applied.

        weights  of dense, sparse and colbert, in FlagEmbedding's order
        returns  arrays (N,) float32 under "colbert", "sparse", "dense", "sparse+dense" and "colbert+sparse+dense"

        Pairs are scored in groups, which bounds the ColBERT rows in memory; in a group each distinct text is embedded
        once. The other pairs change a pair's scores by rounding at most. In FlagEmbedding and in `bge_onnx.flag` they
        change them further, as the padding of a batch counts in ColBERT scores.
        Raises InputError: a bundle without these heads, weights that are no three numbers or have the sum 0.
        """
        check_weights(weights)
        pairs = check_pairs(pairs)
        tokenizer = self.tokenizer if max_tokens is None else self.tokenizer.with_max_tokens(max_tokens)
        chunks = chunks_of_pairs(pairs, max_tokens=tokenizer.max_tokens, width=self.bundle.dims.get("colbert", 1))
        queries = partial(self.embed_queries, heads=SCORED, max_tokens=max_tokens, progress=progress)
        passages = partial(self.embed_passages, heads=SCORED, max_tokens=max_tokens, progress=progress)
        scored = [score_texts(chunk, queries, passages, weights) for chunk in chunks]
        return {mode: np.concatenate([part[mode] for part in scored]) for mode in scored[0]}

    def with_prefix(self, prefix: str) -> Prefix:
        """A beginning that many texts share, computed once: an instruction, few-shot examples. Decoders only.

        The result holds the prefix's keys and values in memory, `result.past.nbytes` bytes. Bundles for GPUs hold none:
        they compute each text whole.
        Raises InputError: a bidirectional model, no string, a prefix that leaves no room for a text.
        """
        return Prefix.make(self, prefix)

    def with_examples(self, examples: Sequence[Mapping[str, str]] = (), *, instruction: str | None = None) -> FewShot:
        """Queries behind a task and few-shot examples, which are computed once (on GPUs with each); for bge-en-icl.

        examples     mappings of instruct, query and response; without `instruct` it is `instruction`
        instruction  of the task, in front of each query

        >>> examples = [{"query": "capital of France", "response": "Paris is the capital of France."}]
        >>> few_shot = bge.with_examples(examples, instruction="Given a question, retrieve passages that answer it.")
        >>> few_shot.embed(["capital of Mongolia"]).dense.shape
        (1, 4096)

        Raises InputError: a model that takes no examples, examples that are no mappings of strings, or too long.
        """
        if not self.takes_examples:
            raise InputError(
                f"examples: expected a bundle of bge-en-icl or its kin, whose tokenizer has {RESPONSE}, found "
                f"{self.bundle.name}.\n    Give other models a task with prompt= or `with_prefix`."
            )
        rendered = examples_text(examples, instruction) if examples else ""
        return FewShot.make(self, Prompt(examples=rendered, instruction=instruction))

    @property
    def takes_examples(self) -> bool:
        """Whether queries stand behind few-shot examples and in front of a response mark, as in bge-en-icl."""
        return self.bundle.causal and self.tokenizer.backend.token_to_id(RESPONSE) is not None

    def task_prompt(self, instruction: str) -> str:
        """The task as text in front of a query, in the model's own format: the `prompt` for `embed`.

        Raises InputError: a model that takes no task.
        """
        marked = self.bundle.causal and self.tokenizer.backend.token_to_id(QUERY) is not None
        template = self.bundle.prompts.get(TASK) or (QUERY_FORMAT if marked else None)
        if template is None:
            raise InputError(
                f"instruction: expected a bundle of a model with tasks, known by its name or by {QUERY} in its "
                f"tokenizer, found {self.bundle.name}.\n    Others have an instruction of their own: bge embed --query."
            )
        return template.format(instruction, "")

    def warm_up(self) -> None:
        """Load the graph and run it once, on GPUs in each size that is replayed: later dense vectors need not wait."""
        self.session.warm_up()

    def run(
        self,
        token_ids: Sequence[NDArray[np.int64]],
        wanted: VectorOptions,
        *,
        past: KeysValues | None = None,
        budget_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """The last step of `embed`: checked token ids (T,) to vectors, behind the keys and values of a prefix."""
        return vectors_of(self.bundle, self.session, token_ids, wanted, past, budget_tokens, progress=progress)
