"""Queries behind a task and few-shot examples, as bge-en-icl takes them: what they share is computed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bge_onnx.embed.prefix import Prefix, Runner, shared_length
from bge_onnx.text.examples import QUERY_TOKENS, Prompt
from bge_onnx.text.tokenizer import windows
from bge_onnx.vectors.embeddings import Embeddings, VectorOptions

STREAM_QUERIES = 256
"""Queries that a stream holds at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class FewShot:
    """Queries behind the same task and examples; `Embedder.with_examples` makes one.

    prefix  what all queries begin with, with its keys and values: computed once
    """

    embedder: Runner
    prompt: Prompt
    prefix: Prefix

    @classmethod
    def make(cls, embedder: Runner, prompt: Prompt) -> FewShot:
        """Compute what all queries share: the tokens that an empty query and another one have in common.

        Raises InputError: examples longer than the model's limit.
        """
        empty, other = prompt.token_ids(embedder.tokenizer, ["", "a"], max_tokens=QUERY_TOKENS)
        shared = empty[: shared_length(empty[:-1], other)]
        return cls(embedder, prompt, Prefix.of_token_ids(embedder, prompt.examples, shared))

    def embed(
        self,
        queries: Iterable[str],
        *,
        max_tokens: int = QUERY_TOKENS,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        progress: bool | None = None,
    ) -> Embeddings:
        """Dense vectors of queries behind task and examples.

        max_tokens  of a query with its instruction and the response mark; examples come on top and are never cut
        The other arguments are those of `Embedder.embed`.
        Raises InputError: no strings, no room for a query, examples and query longer than the model's limit.
        """
        wanted = VectorOptions(normalize=normalize, truncate_dim=truncate_dim)
        wanted.check(self.embedder.bundle)
        token_ids = self.prompt.token_ids(self.embedder.tokenizer, queries, max_tokens=max_tokens)
        return self.prefix.embed_whole(token_ids, wanted, progress=progress)

    def stream(self, queries: Iterable[str], *, window: int = STREAM_QUERIES) -> Iterator[Embeddings]:
        """Vectors of any number of queries, in order, `window` at a time. Raises InputError like `embed`."""
        for chunk in windows(queries, window):
            yield self.embed(chunk, progress=False)
