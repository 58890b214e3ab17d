"""FlagEmbedding's BGEM3FlagModel: dense, sparse and ColBERT vectors, and the scores between texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bge_onnx.embeddings import HEADS, Embeddings, Vectors
from bge_onnx.errors import InputError
from bge_onnx.flag.arguments import Arguments, Devices, refuse, texts_of
from bge_onnx.scores import check_pairs, check_weights, colbert_scores, lexical_score, score_pairs

Weights = Mapping[str, float]
MODES = ("colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense")


class BGEM3FlagModel:
    """All heads with FlagEmbedding's arguments; `model_name_or_path` is a bundle or a Hub repository with one.

    Mirrors https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/inference/embedder/encoder_only/m3.py
    Raises InputError, ProviderError: an argument that the bundle cannot honour. BundleError: no such bundle.
    """

    DEFAULT_POOLING_METHOD = "cls"

    def __init__(
        self,
        model_name_or_path: str,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "{}{}",
        devices: Devices = None,
        pooling_method: str = "cls",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        colbert_dim: int = -1,
        batch_size: int = 256,
        query_max_length: int = 512,
        passage_max_length: int = 512,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        truncate_dim: int | None = None,
        **more: Any,
    ) -> None:
        more.pop("convert_to_numpy", None)  # always numpy, in FlagEmbedding too
        self.arguments = Arguments(
            normalize_embeddings=normalize_embeddings,
            use_fp16=use_fp16,
            use_bf16=use_bf16,
            query_instruction_for_retrieval=query_instruction_for_retrieval,
            query_instruction_format=query_instruction_format,
            devices=devices,
            pooling_method=pooling_method,
            trust_remote_code=trust_remote_code,
            cache_dir=cache_dir,
            batch_size=batch_size,
            query_max_length=query_max_length,
            passage_max_length=passage_max_length,
            truncate_dim=truncate_dim,
            more=more,
        )
        self.returned = {"dense": return_dense, "sparse": return_sparse, "colbert": return_colbert_vecs}
        self.embedder = self.arguments.open(model_name_or_path)
        width = self.embedder.bundle.dims.get("colbert", colbert_dim)
        if colbert_dim > 0 and colbert_dim != width:
            name = self.embedder.bundle.name
            raise InputError(f"colbert_dim: expected {width}, as {name} has it, or -1; found {colbert_dim}.")

    def encode_queries(
        self,
        queries: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **keywords: Any,
    ) -> dict[str, Any]:
        """As `encode`, of queries with their instruction, cut at `query_max_length` tokens."""
        texts, single = texts_of(queries)
        prompted = [self.arguments.query_text(text) for text in texts]
        limit = max_length or self.arguments.query_max_length
        heads = (return_dense, return_sparse, return_colbert_vecs)
        return self.encode(prompted[0] if single else prompted, batch_size, limit, *heads, **keywords)

    def encode_corpus(
        self,
        corpus: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **keywords: Any,
    ) -> dict[str, Any]:
        """As `encode`, of passages with their instruction."""
        texts, single = texts_of(corpus)
        prompted = [self.arguments.passage_text(text) for text in texts]
        heads = (return_dense, return_sparse, return_colbert_vecs)
        return self.encode(prompted[0] if single else prompted, batch_size, max_length, *heads, **keywords)

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,  # noqa: ARG002 - batches are planned by tokens, and change no vector
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **keywords: Any,
    ) -> dict[str, Any]:
        """The vectors of texts as they are, in a dict of three keys; None where a head is not returned.

        dense_vecs       (N, D) float32
        lexical_weights  N defaultdicts, token id as a string to its weight
        colbert_vecs     N arrays (tokens - 1, C) float32
        Of one string, each without its list.
        """
        keywords.pop("convert_to_numpy", None)
        refuse(keywords)
        asked = {"dense": return_dense, "sparse": return_sparse, "colbert": return_colbert_vecs}
        heads = tuple(head for head, one in asked.items() if (self.returned[head] if one is None else one))
        if not heads:
            raise AssertionError("expected one of return_dense, return_sparse and return_colbert_vecs, found none")
        texts, single = texts_of(sentences)
        found = self._embed(texts, heads, max_length or self.arguments.passage_max_length, cut=True)
        result: dict[str, Any] = {
            "dense_vecs": found.dense if "dense" in heads else None,
            "lexical_weights": [_weights(row) for row in found.sparse] if "sparse" in heads else None,
            "colbert_vecs": found.colbert if "colbert" in heads else None,
        }
        return {key: value[0] if single and value is not None else value for key, value in result.items()}

    def convert_id_to_token(self, lexical_weights: Weights | Sequence[Weights]) -> Any:
        """The same weights by token text: a dict of one, a list of several."""
        rows = [lexical_weights] if isinstance(lexical_weights, Mapping) else lexical_weights
        decode = self.embedder.tokenizer.backend.decode
        named = [
            {decode([int(token)], skip_special_tokens=False): weight for token, weight in row.items()} for row in rows
        ]
        return named[0] if len(named) == 1 else named

    def compute_lexical_matching_score(
        self, lexical_weights_1: Weights | Sequence[Weights], lexical_weights_2: Weights | Sequence[Weights]
    ) -> Any:
        """Lexical match of two dicts, or an array (N, M) of two lists. Raises ValueError: one of each."""
        first, second = lexical_weights_1, lexical_weights_2
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            return lexical_score(first, second)
        if isinstance(first, list) and isinstance(second, list):
            return np.array([[lexical_score(left, right) for right in second] for left in first])
        raise ValueError(
            f"lexical_weights: expected two dicts or two lists of dicts, found {type(first).__name__} and "
            f"{type(second).__name__}"
        )

    def colbert_score(self, q_reps: Vectors, p_reps: Vectors) -> np.float32:
        """Late interaction of a query's and a passage's rows; a number where FlagEmbedding gives a torch scalar."""
        score: np.float32 = colbert_scores(q_reps, [p_reps])[0]
        return score

    def compute_score(
        self,
        sentence_pairs: Sequence[tuple[str, str]] | tuple[str, str],
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
        **keywords: Any,
    ) -> dict[str, Any] | list[Any]:
        """Scores of pairs by five modes, lists of floats; of one pair, floats.

        Exactly as FlagEmbedding scores: in its batches, taken in the pairs' order, a passage that is shorter than the
        longest has rows of zeros, which win over negative token scores. So a ColBERT score depends on the batch;
        `Embedder.score` gives those that do not.
        """
        refuse(keywords)
        if isinstance(sentence_pairs, list) and not sentence_pairs:
            return []
        single = isinstance(sentence_pairs[0], str)
        pairs: list[Any] = [sentence_pairs] if single else list(sentence_pairs)
        check_pairs(pairs)
        weights = check_weights((1.0, 1.0, 1.0) if weights_for_different_modes is None else weights_for_different_modes)
        query_limit = max_query_length or self.arguments.query_max_length
        passage_limit = max_passage_length or self.arguments.passage_max_length
        queries = self._embed([query for query, _ in pairs], HEADS, query_limit)
        passages = self._embed([passage for _, passage in pairs], HEADS, passage_limit)
        size = batch_size or self.arguments.batch_size
        longest = [max(len(passages.colbert[row]) for row in range(start, min(start + size, len(pairs))))
                   for start in range(0, len(pairs), size)]  # fmt: skip
        floors = [0.0 if len(rows) < longest[row // size] else -np.inf for row, rows in enumerate(passages.colbert)]
        found = score_pairs(queries, passages, [(row, row) for row in range(len(pairs))], weights, floors=floors)
        scores = {mode: found[mode].tolist() for mode in MODES}
        return {mode: values[0] for mode, values in scores.items()} if single else scores

    def _embed(self, texts: list[str], heads: Sequence[str], max_tokens: int, *, cut: bool = False) -> Embeddings:
        """`compute_score` does not cut to `truncate_dim`, `encode` does."""
        bundle = self.embedder.bundle
        cuts = cut and any(head != "sparse" for head in heads)
        return self.embedder.embed(
            texts,
            heads=heads,
            max_tokens=max_tokens,
            normalize=self.arguments.normalize_embeddings,
            truncate_dim=self.arguments.dimension(bundle.dims["dense"]) if cuts else None,
        )


def _weights(row: Mapping[int, float]) -> defaultdict[str, Any]:
    weights: defaultdict[str, Any] = defaultdict(int)
    weights.update({str(token): np.float32(weight) for token, weight in row.items()})
    return weights
