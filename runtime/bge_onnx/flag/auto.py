"""FlagEmbedding's FlagAutoModel: the class that fits a bundle."""

from __future__ import annotations

from typing import Any, NoReturn

from bge_onnx.bundle import Bundle
from bge_onnx.errors import InputError
from bge_onnx.flag.base import Devices
from bge_onnx.flag.encoder import FlagModel
from bge_onnx.flag.m3 import BGEM3FlagModel
from bge_onnx.hub import find_bundle

CLASSES: dict[str, type[FlagModel | BGEM3FlagModel]] = {
    "encoder-only-base": FlagModel,
    "encoder-only-m3": BGEM3FlagModel,
}


class FlagAutoModel:
    """Opens a bundle with the class that fits: BGEM3FlagModel for bge-m3 and others with its heads, else FlagModel.

    FlagEmbedding decides by the folder's name and refuses names it does not know; a bundle knows what it is.
    """

    def __init__(self) -> NoReturn:
        """Raise OSError, as FlagEmbedding does."""
        raise OSError("expected FlagAutoModel.from_finetuned(model_name_or_path), found a call of the constructor.")

    @classmethod
    def from_finetuned(
        cls,
        model_name_or_path: str,
        model_class: Any = None,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        devices: Devices = None,
        pooling_method: str | None = None,
        trust_remote_code: bool | None = None,
        query_instruction_format: str | None = None,
        truncate_dim: int | None = None,
        **more: Any,
    ) -> FlagModel | BGEM3FlagModel:
        """A FlagModel or BGEM3FlagModel with FlagEmbedding's arguments.

        model_class  "encoder-only-base" or "encoder-only-m3", or FlagEmbedding's enumeration; None: the bundle decides
        Raises InputError, a ValueError: another class. BundleError: no such bundle.
        """
        name = getattr(model_class, "value", model_class)
        if name is not None and name not in CLASSES:
            raise InputError(f"model_class: expected one of {', '.join(CLASSES)}, found {model_class!r}.")
        bundle = Bundle.open(find_bundle(model_name_or_path, cache_dir=more.get("cache_dir")))
        is_m3 = len(bundle.outputs) > 1 or bundle.model == "BAAI/bge-m3"
        return CLASSES[name or ("encoder-only-m3" if is_m3 else "encoder-only-base")](
            model_name_or_path,
            normalize_embeddings=normalize_embeddings,
            use_fp16=use_fp16,
            use_bf16=use_bf16,
            query_instruction_for_retrieval=query_instruction_for_retrieval,
            query_instruction_format=query_instruction_format or "{}{}",
            devices=devices,
            pooling_method=pooling_method or bundle.pooling,
            trust_remote_code=bool(trust_remote_code),
            truncate_dim=truncate_dim,
            **more,
        )
