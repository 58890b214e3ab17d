"""FlagEmbedding's FlagAutoModel: the class that fits a bundle."""

from __future__ import annotations

from typing import Any, NoReturn

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.hub import find_bundle
from bge_onnx.bundle.prompts import TASK
from bge_onnx.errors import InputError
from bge_onnx.flag.abs_embedder import Devices
from bge_onnx.flag.decoder import FlagICLModel, FlagLLMModel
from bge_onnx.flag.encoder import FlagModel
from bge_onnx.flag.m3 import BGEM3FlagModel
from bge_onnx.text.examples import QUERY_FORMAT

WITH_TASKS = ("BAAI/bge-en-icl", "BAAI/bge-multilingual-gemma2")
Model = FlagModel | BGEM3FlagModel | FlagLLMModel | FlagICLModel
CLASSES: dict[str, type[Model]] = {
    "encoder-only-base": FlagModel,
    "encoder-only-m3": BGEM3FlagModel,
    "decoder-only-base": FlagLLMModel,
    "decoder-only-icl": FlagICLModel,
}


class FlagAutoModel:
    """Opens a bundle with the class that fits: BGEM3FlagModel for bge-m3 and others with its heads, FlagICLModel for
    bge-en-icl, FlagLLMModel for other decoders, else FlagModel.

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
    ) -> Model:
        """A model with FlagEmbedding's arguments.

        model_class  "encoder-only-base", "encoder-only-m3", "decoder-only-base", "decoder-only-icl", or FlagEmbedding's
                     enumeration; None: the bundle decides, and queries have their model's template
        Raises InputError, a ValueError: another class. BundleError: no such bundle.
        """
        name = getattr(model_class, "value", model_class)
        if name is not None and name not in CLASSES:
            raise InputError(f"model_class: expected one of {', '.join(CLASSES)}, found {model_class!r}.")
        bundle = Bundle.open(find_bundle(model_name_or_path, cache_dir=more.get("cache_dir")))
        template = "{}{}"
        if name is None:
            known = QUERY_FORMAT if bundle.model in WITH_TASKS else "" if bundle.causal else template
            template = bundle.prompts.get(TASK) or known
            if not template and query_instruction_format is None:
                raise InputError(
                    f"query_instruction_format: expected the template of {bundle.model}'s queries, found none.\n"
                    "    It is known of the models that `bge-export list` names."
                )
        return CLASSES[name or _fitting(bundle)](
            model_name_or_path,
            normalize_embeddings=normalize_embeddings,
            use_fp16=use_fp16,
            use_bf16=use_bf16,
            query_instruction_for_retrieval=query_instruction_for_retrieval,
            query_instruction_format=query_instruction_format or template,
            devices=devices,
            pooling_method=pooling_method or ("last_token" if bundle.causal else bundle.pooling),
            trust_remote_code=bool(trust_remote_code),
            truncate_dim=truncate_dim,
            **more,
        )


def _fitting(bundle: Bundle) -> str:
    if bundle.causal:
        return "decoder-only-icl" if bundle.model == "BAAI/bge-en-icl" else "decoder-only-base"
    return "encoder-only-m3" if len(bundle.outputs) > 1 or bundle.model == "BAAI/bge-m3" else "encoder-only-base"
