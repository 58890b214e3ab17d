"""FlagEmbedding's BGEM3FlagModel: dense, sparse and ColBERT vectors, and the scores between texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bge_onnx.errors import InputError
from bge_onnx.flag.abs_embedder import DEFAULT_TOKENS, AbsEmbedder, Devices, first_set, handed_on, refuse
from bge_onnx.vectors.embeddings import Embeddings, Vectors
from bge_onnx.vectors.pairs import SCORED, check_pairs, chunks_of_pairs, distinct, score_pairs
from bge_onnx.vectors.scores import check_weights, colbert_scores, lexical_score

Weights = Mapping[str, float]


class BGEM3FlagModel(AbsEmbedder):
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
        **kwargs: Any,
    ) -> None:
        del trust_remote_code  # a bundle holds no code
        kwargs.pop("convert_to_numpy", None)  # always numpy, in FlagEmbedding too
        super().__init__(**handed_on(locals()))
        self.return_dense = return_dense
        self.return_sparse = return_sparse
        self.return_colbert_vecs = return_colbert_vecs
        width = self.embedder.bundle.dims.get("colbert", colbert_dim)
        if colbert_dim > 0 and colbert_dim != width:
            name = self.embedder.bundle.name
            raise InputError(f"colbert_dim: expected {width}, as {name} has it, or -1; found {colbert_dim}.")

    def encode_queries(
        self,
        queries: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As `encode`, of queries with their instruction, cut at `query_max_length` tokens."""
        limit = first_set("max_length", max_length, self.query_max_length)
        heads = (return_dense, return_sparse, return_colbert_vecs)
        instruction = (self.query_instruction_for_retrieval, self.query_instruction_format)
        return self.encode(queries, batch_size, limit, *heads, *instruction, **kwargs)

    def encode_corpus(
        self,
        corpus: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As `encode`, of passages with their instruction."""
        heads = (return_dense, return_sparse, return_colbert_vecs)
        instruction = (self.passage_instruction_for_retrieval, self.passage_instruction_format)
        return self.encode(corpus, batch_size, max_length, *heads, *instruction, **kwargs)

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,  # noqa: ARG002 - batches are planned by tokens, and change no vector
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        instruction: str | None = None,
        instruction_format: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The vectors of texts, in a dict of three keys; None where a head is not returned.

        dense_vecs       (N, D) float32
        lexical_weights  N defaultdicts, token id as a string to its weight
        colbert_vecs     N arrays (tokens - 1, C) float32
        Of one string, each without its list.
        Raises InputError: things that are no texts (their index is named), a head that the bundle has not, a length
        over the model's limit. AssertionError, as FlagEmbedding: no head.
        """
        kwargs.pop("convert_to_numpy", None)
        refuse(kwargs)
        asked = {
            "dense": self.return_dense if return_dense is None else return_dense,
            "sparse": self.return_sparse if return_sparse is None else return_sparse,
            "colbert": self.return_colbert_vecs if return_colbert_vecs is None else return_colbert_vecs,
        }
        heads = tuple(head for head, one in asked.items() if one)
        if not heads:
            raise AssertionError("expected one of return_dense, return_sparse and return_colbert_vecs, found none")
        texts, single = self._instructed(sentences, instruction, instruction_format)
        limit = first_set("max_length", max_length, self.passage_max_length)
        found = self._embed(texts, heads, limit, truncate_dim=self._truncate_dim(heads))
        result: dict[str, Any] = {
            "dense_vecs": self._typed(found.dense) if "dense" in heads else None,
            "lexical_weights": [self._weights(row) for row in found.sparse] if "sparse" in heads else None,
            "colbert_vecs": [self._typed(rows) for rows in found.colbert] if "colbert" in heads else None,
        }
        return {key: value[0] if single and value is not None else value for key, value in result.items()}

    def encode_single_device(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int = DEFAULT_TOKENS,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        device: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As `encode` without an instruction, on the bundle's devices: `device` chooses nothing."""
        del device
        kwargs.pop("convert_to_numpy", None)
        refuse(kwargs)
        limit = self._length(max_length)
        return self.encode(sentences, batch_size, limit, return_dense, return_sparse, return_colbert_vecs)

    def _weights(self, row: Mapping[int, float]) -> defaultdict[str, Any]:
        numbers = {str(token): self._number_type(weight) for token, weight in row.items()}
        return defaultdict(int, {token: weight for token, weight in numbers.items() if weight})

    def convert_id_to_token(self, lexical_weights: Weights | Sequence[Weights]) -> Any:
        """The same weights by token text: a dict of one, a list of several. Raises InputError: ids of no token."""
        rows = [lexical_weights] if isinstance(lexical_weights, Mapping) else lexical_weights
        named = [{self._token(token): weight for token, weight in row.items()} for row in rows]
        return named[0] if len(named) == 1 else named

    def _token(self, token_id: str) -> str:
        backend = self.embedder.tokenizer.backend
        if not str(token_id).isdecimal() or int(token_id) >= backend.get_vocab_size():
            raise InputError(
                f"lexical_weights: expected token ids from 0 to {backend.get_vocab_size() - 1}, found {token_id!r}"
            )
        token: str = backend.decode([int(token_id)], skip_special_tokens=False)
        return token

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
        **kwargs: Any,
    ) -> dict[str, Any] | list[Any]:
        """Scores of pairs by five modes, lists of floats; of one pair, floats.

        Scores are exactly FlagEmbedding's. It cuts the pairs into batches, in order. In a batch, a passage that is
        shorter than the longest is padded with rows of zeros, which win over negative token scores. So a ColBERT score
        depends on the batch; the scores of `Embedder.score` do not.
        """
        refuse(kwargs)
        single = isinstance(sentence_pairs, tuple | list) and isinstance(next(iter(sentence_pairs), None), str)
        pairs = check_pairs([sentence_pairs] if single else sentence_pairs)  # type: ignore[list-item,arg-type]
        if not pairs:
            return []
        weights = check_weights((1.0, 1.0, 1.0) if weights_for_different_modes is None else weights_for_different_modes)
        limits = (
            first_set("max_query_length", max_query_length, self.query_max_length),
            first_set("max_passage_length", max_passage_length, self.passage_max_length),
        )
        size = first_set("batch_size", batch_size, self.batch_size)
        if size < 1:
            raise InputError(f"batch_size: expected at least 1, found {size}.")
        batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        scored = [self._score_batch(batch, limits, weights) for batch in batches]
        scores = {mode: np.concatenate([part[mode] for part in scored]).tolist() for mode in scored[0]}
        return {mode: values[0] for mode, values in scores.items()} if single else scores

    def _score_batch(
        self, pairs: Sequence[tuple[str, str]], limits: tuple[int, int], weights: tuple[float, float, float]
    ) -> dict[str, Vectors]:
        """The scores of pairs that FlagEmbedding pads together; rows in memory are bounded, whatever their number."""
        passages, max_tokens = self._cut([passage for _, passage in pairs], limits[1])
        tokenizer = self.embedder.tokenizer
        tokenizer = tokenizer if max_tokens is None else tokenizer.with_max_tokens(max_tokens)
        longest = max(len(ids) for ids in tokenizer.encode(distinct(passages)[0])) - 1  # rows, without the first
        width = self.embedder.bundle.dims.get("colbert", 1)
        parts = chunks_of_pairs(pairs, max_tokens=max(limits), width=width)
        scored = [self._score_part(part, limits, weights, longest) for part in parts]
        return {mode: np.concatenate([part[mode] for part in scored]) for mode in scored[0]}

    def _score_part(
        self,
        pairs: Sequence[tuple[str, str]],
        limits: tuple[int, int],
        weights: tuple[float, float, float],
        longest: int,
    ) -> dict[str, Vectors]:
        """Scores of some of a batch's pairs. A passage that FlagEmbedding pads has no token score below 0."""
        queries, query_of = distinct([query for query, _ in pairs])
        passages, passage_of = distinct([passage for _, passage in pairs])
        of_passages = self._embed(passages, SCORED, limits[1])
        floors = [0.0 if len(rows) < longest else -np.inf for rows in of_passages.colbert]
        places = list(zip(query_of, passage_of, strict=True))
        return score_pairs(self._embed(queries, SCORED, limits[0]), of_passages, places, weights, floors=floors)

    def _embed(
        self, texts: list[str], heads: Sequence[str], max_tokens: int, *, truncate_dim: int | None = None
    ) -> Embeddings:
        """`compute_score` does not cut to `truncate_dim`, `encode` does."""
        normalize = self.normalize_embeddings
        texts, limit = self._cut(texts, max_tokens)
        return self.embedder.embed(texts, heads=heads, max_tokens=limit, normalize=normalize, truncate_dim=truncate_dim)
