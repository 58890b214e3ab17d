"""FlagEmbedding's FlagModel: dense vectors of an encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bge_onnx.flag.abs_embedder import DEFAULT_TOKENS, AbsEmbedder, Devices, first_set, handed_on, refuse, require_numpy
from bge_onnx.vectors.embeddings import Vectors


class DenseEmbedder(AbsEmbedder):
    """The methods of the classes that give dense vectors alone."""

    def encode_queries(
        self,
        queries: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        **kwargs: Any,
    ) -> Vectors:
        """Vectors (N, D) of queries with their instruction, or (D,) of one string; cut at `query_max_length` tokens."""
        limit = first_set("max_length", max_length, self.query_max_length)
        instruction = (self.query_instruction_for_retrieval, self.query_instruction_format)
        return self.encode(queries, batch_size, limit, convert_to_numpy, *instruction, **kwargs)

    def encode_corpus(
        self,
        corpus: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        **kwargs: Any,
    ) -> Vectors:
        """Vectors (N, D) of passages with their instruction, or (D,) of one string."""
        instruction = (self.passage_instruction_for_retrieval, self.passage_instruction_format)
        return self.encode(corpus, batch_size, max_length, convert_to_numpy, *instruction, **kwargs)

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,  # noqa: ARG002 - batches are planned by tokens, and change no vector
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        instruction: str | None = None,
        instruction_format: str | None = None,
        **kwargs: Any,
    ) -> Vectors:
        """Vectors (N, D) float32 of texts, or (D,) of one string; cut at `passage_max_length` tokens.

        Raises InputError: things that are no texts (their index is named), a length over the model's limit.
        """
        refuse(kwargs)
        require_numpy(convert_to_numpy)
        texts, single = self._instructed(sentences, instruction, instruction_format)
        texts, limit = self._cut(texts, first_set("max_length", max_length, self.passage_max_length))
        found = self.embedder.embed(
            texts,
            max_tokens=limit,
            normalize=self.normalize_embeddings,
            truncate_dim=self._truncate_dim(("dense",)),
        )
        dense: Vectors = self._typed(found.dense)
        return dense[0] if single else dense

    def encode_single_device(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int = DEFAULT_TOKENS,
        convert_to_numpy: bool = True,
        device: str | None = None,
        **kwargs: Any,
    ) -> Vectors:
        """As `encode` without an instruction, on the bundle's devices: `device` chooses nothing."""
        del device
        refuse(kwargs)
        return self.encode(sentences, batch_size, self._length(max_length), convert_to_numpy)


class FlagModel(DenseEmbedder):
    """Dense vectors with FlagEmbedding's arguments; `model_name_or_path` is a bundle or a Hub repository with one.

    Mirrors https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/inference/embedder/encoder_only/base.py
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
        batch_size: int = 256,
        query_max_length: int = 512,
        passage_max_length: int = 512,
        convert_to_numpy: bool = True,
        truncate_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        del trust_remote_code  # a bundle holds no code
        require_numpy(convert_to_numpy)
        super().__init__(**handed_on(locals()))
