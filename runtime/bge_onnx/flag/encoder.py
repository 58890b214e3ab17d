"""FlagEmbedding's FlagModel: dense vectors of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bge_onnx.embeddings import Vectors
from bge_onnx.errors import InputError
from bge_onnx.flag.arguments import Arguments, Devices, refuse, texts_of


class FlagModel:
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
        **more: Any,
    ) -> None:
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
            convert_to_numpy=convert_to_numpy,
            truncate_dim=truncate_dim,
            more=more,
        )
        self.embedder = self.arguments.open(model_name_or_path)

    def encode_queries(
        self,
        queries: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        **keywords: Any,
    ) -> Vectors:
        """Vectors (N, D) of queries with their instruction, or (D,) of one string."""
        texts, single = texts_of(queries)
        prompted = [self.arguments.query_text(text) for text in texts]
        limit = max_length or self.arguments.query_max_length
        return self.encode(prompted[0] if single else prompted, batch_size, limit, convert_to_numpy, **keywords)

    def encode_corpus(
        self,
        corpus: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        **keywords: Any,
    ) -> Vectors:
        """Vectors (N, D) of passages with their instruction, or (D,) of one string."""
        texts, single = texts_of(corpus)
        prompted = [self.arguments.passage_text(text) for text in texts]
        return self.encode(prompted[0] if single else prompted, batch_size, max_length, convert_to_numpy, **keywords)

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,  # noqa: ARG002 - batches are planned by tokens, and change no vector
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        **keywords: Any,
    ) -> Vectors:
        """Vectors (N, D) float32 of texts as they are, or (D,) of one string; cut at `passage_max_length` tokens."""
        refuse(keywords)
        if convert_to_numpy is False:
            raise InputError("convert_to_numpy=False: expected True; there is no PyTorch here. Use torch.from_numpy.")
        texts, single = texts_of(sentences)
        dense = self.embedder.embed(
            texts,
            max_tokens=max_length or self.arguments.passage_max_length,
            normalize=self.arguments.normalize_embeddings,
            truncate_dim=self.arguments.dimension(self.embedder.bundle.dims["dense"]),
        ).dense
        return dense[0] if single else dense
