"""What FlagEmbedding's classes share: the constructor's arguments, instructions and lengths."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bge_onnx.embedder import Embedder
from bge_onnx.errors import InputError, ProviderError
from bge_onnx.flag.flag_tokenizer import FlagTokenizer
from bge_onnx.run.cuda import CUDA, device_count
from bge_onnx.run.session import devices_of
from bge_onnx.text.tokenizer import check_texts
from bge_onnx.vectors.embeddings import Vectors

Devices = str | int | list[str] | list[int] | None

DEFAULT_TOKENS = 512
"""FlagEmbedding's default length of queries and passages, whatever the model's limit is."""


class AbsEmbedder(ABC):
    """Arguments with FlagEmbedding's names, as attributes that each call reads anew: they may be assigned to.

    Mirrors https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/abc/inference/AbsEmbedder.py
    Raises InputError, ProviderError: an argument that the bundle cannot honour. BundleError: no such bundle.
    """

    kwargs: dict[str, Any]

    def __init__(
        self,
        model_name_or_path: str,
        *,
        normalize_embeddings: bool,
        use_fp16: bool,
        use_bf16: bool,
        query_instruction_for_retrieval: str | None,
        query_instruction_format: str,
        devices: Devices,
        pooling_method: str,
        cache_dir: str | None,
        batch_size: int,
        query_max_length: int,
        passage_max_length: int,
        truncate_dim: int | None,
        kwargs: dict[str, Any],
    ) -> None:
        _keep(self, kwargs)
        self.embedder = Embedder.open(model_name_or_path, cache_dir=cache_dir)
        self.model_name_or_path = model_name_or_path
        self.normalize_embeddings = normalize_embeddings
        self.use_fp16 = use_fp16
        self.use_bf16 = use_bf16
        self.query_instruction_for_retrieval = query_instruction_for_retrieval
        self.query_instruction_format = query_instruction_format
        self.passage_instruction_for_retrieval = kwargs.get("passage_instruction_for_retrieval")
        self.passage_instruction_format = kwargs.get("passage_instruction_format", "{}{}")
        self.pooling_method = pooling_method
        self.batch_size = batch_size
        self.query_max_length = self._length(query_max_length)
        self.passage_max_length = self._length(passage_max_length)
        self.truncate_dim = truncate_dim
        self._check_pooling()
        self.pool: dict[str, Any] | None = None
        self.target_devices = self._target_devices(devices)
        if self.embedder.bundle.provider == CUDA:
            numbers = devices_of(self.embedder.bundle, _numbers(self.target_devices), None)
            session = dataclasses.replace(self.embedder.session, devices=numbers)
            opened = self.embedder.opened
            opened = dataclasses.replace(opened, options={**opened.options, "devices": numbers})
            self.embedder = dataclasses.replace(self.embedder, session=session, opened=opened)

    @property
    def model(self) -> Embedder:
        """The Embedder, where FlagEmbedding has a PyTorch module."""
        return self.embedder

    @property
    def tokenizer(self) -> FlagTokenizer:
        """The bundle's tokenizer, with the methods of transformers' that FlagEmbedding's users call."""
        return FlagTokenizer(self.embedder.tokenizer)

    @staticmethod
    def get_detailed_instruct(instruction_format: str, instruction: str, sentence: str) -> str:
        r"""Instruction and text in the template; a literal \n in it is a newline."""
        return instruction_format.replace("\\n", "\n").format(instruction, sentence)

    def stop_self_pool(self) -> None:
        """End the processes of several devices and let go of loaded graphs; they load again when used."""
        self.embedder.session.close()

    def start_multi_process_pool(self, process_target_func: Callable[..., Any] | None = None) -> dict[str, Any]:
        """A pool for `encode_multi_process`, of this process alone.

        On CPUs a call keeps all cores busy, and bundles for several GPUs have a process on each already.
        process_target_func  `_encode_multi_process_worker`, as None, or FlagICLModel's other one for queries
        Raises InputError: another function, which would not run.
        """
        work = process_target_func or self._encode_multi_process_worker
        if getattr(self, getattr(work, "__name__", ""), None) is not work:
            raise InputError(
                f"process_target_func: expected None or {type(self).__name__}._encode_multi_process_worker, found "
                f"{work!r:.80}.\n    There are no processes that would run it: call `encode`."
            )
        return {"input": None, "output": None, "processes": list(self.target_devices), "work": work}

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """Forget the pool's devices: it has no processes of its own."""
        pool["processes"] = []

    def encode_multi_process(self, sentences: list[str], pool: dict[str, Any], **kwargs: Any) -> Any:
        """As `encode_single_device`: with its lengths and heads, not with the constructor's.

        Raises InputError: the pool was stopped, or is none.
        """
        if not isinstance(pool, Mapping) or "work" not in pool or not pool.get("processes"):
            raise InputError(
                "pool: expected one of start_multi_process_pool(), found none, or one that was stopped.\n"
                "    Start another."
            )
        return pool["work"](self, check_texts(sentences), **kwargs)

    @staticmethod
    def _encode_multi_process_worker(model: AbsEmbedder, sentences: list[str], **kwargs: Any) -> Any:
        """What a pool does with its texts."""
        return model.encode_single_device(sentences, **kwargs)

    @abstractmethod
    def encode_single_device(self, sentences: str | list[str], *arguments: Any, **kwargs: Any) -> Any:
        """The vectors of texts without an instruction, with FlagEmbedding's defaults; each class has its own."""

    def _length(self, tokens: int) -> int:
        """The limit that `tokens` means. The default is no request: a model with a lower limit keeps its own."""
        return min(tokens, self.embedder.bundle.max_tokens) if tokens == DEFAULT_TOKENS else tokens

    @property
    def _number_type(self) -> type[np.floating[Any]]:
        """As FlagEmbedding's: float16 from a GPU where `use_fp16` says so, else float32."""
        half = self.embedder.bundle.provider == CUDA and self.use_fp16 and not self.use_bf16
        return np.float16 if half else np.float32

    def _typed(self, dense: Vectors) -> Any:
        return dense.astype(self._number_type, copy=False)

    def _cut(self, texts: list[str], max_length: int) -> tuple[list[str], int | None]:
        """The texts and their limit. If the limit has no room for a word, all texts are made empty, as FlagEmbedding
        then embeds the special tokens alone.
        """
        special = self.embedder.tokenizer.backend.num_special_tokens_to_add(is_pair=False)
        return ([""] * len(texts), None) if max_length == special else (texts, max_length)

    def _instructed(
        self, sentences: str | Iterable[str], instruction: str | None, instruction_format: str | None
    ) -> tuple[list[str], bool]:
        """The texts with their instruction, and whether they were one string. Raises InputError: they are no texts."""
        texts = check_texts([sentences] if isinstance(sentences, str) else sentences)
        if instruction is not None:
            template = "{}{}" if instruction_format is None else instruction_format
            texts = [self.get_detailed_instruct(template, instruction, text) for text in texts]
        return texts, isinstance(sentences, str)

    def _truncate_dim(self, heads: Sequence[str]) -> int | None:
        """How many components are kept. As in a slice, `truncate_dim` may be larger than the vectors. The checkpoint's
        own `truncate_dim` is not read, as in FlagEmbedding.
        """
        widths = [width for head, width in self.embedder.bundle.dims.items() if head in heads and head != "sparse"]
        widest = max(widths, default=None)
        if widest is None or self.truncate_dim is None:
            return widest
        return min(first_set("truncate_dim", self.truncate_dim, widest), widest)

    def _check_pooling(self) -> None:
        bundle = self.embedder.bundle
        if self.pooling_method.removesuffix("_token") != bundle.pooling:
            raise InputError(
                f"pooling_method: expected {bundle.pooling!r}, with which {bundle.name} was exported, found "
                f"{self.pooling_method!r}.\n    Pass that, or export another bundle with --pooling."
            )

    def _target_devices(self, devices: Devices) -> list[str]:
        """Devices of the bundle's provider, all GPUs where none is named. A GPU that is named twice counts once.

        Raises ProviderError: another kind, or none, is asked for.
        """
        runs_on = "cpu" if self.embedder.bundle.provider == "CPUExecutionProvider" else "cuda"
        every = [f"cuda:{number}" for number in range(device_count())] if runs_on == "cuda" else ["cpu"]
        asked = devices if isinstance(devices, list) else every if devices is None else [devices]
        names = [f"cuda:{device}" if isinstance(device, int) else str(device) for device in asked]
        if runs_on == "cuda":
            names = list(dict.fromkeys("cuda:0" if name == "cuda" else name for name in names))
        if {name.split(":")[0] for name in names} != {runs_on}:
            raise ProviderError(
                f"devices: expected {runs_on!r}, for which the bundle {self.embedder.bundle.name} is lowered, found "
                f"{devices!r}.\n    Leave devices out, or export a bundle for that target."
            )
        return names


def _numbers(names: Sequence[str]) -> list[int]:
    """Of devices like "cuda" and "cuda:1". Raises InputError: others."""
    numbers = [name.partition(":")[2] for name in names]
    if not all(number.isdigit() for number in numbers):
        raise InputError(f"devices: expected names like cuda:0, found {', '.join(names)}")
    return [int(number) for number in numbers]


def _keep(model: AbsEmbedder, keywords: dict[str, Any]) -> None:
    """Keep further keywords as attributes, which is all that FlagEmbedding does with them; those that nobody reads are
    warned of.
    """
    unknown = sorted(set(keywords) - {"passage_instruction_for_retrieval", "passage_instruction_format"})
    if unknown:
        depth = 3 + type(model).__mro__.index(AbsEmbedder)  # the caller of the outermost constructor
        warnings.warn(
            f"{', '.join(unknown)}: these arguments change nothing, here and in FlagEmbedding", stacklevel=depth
        )
    model.kwargs = keywords
    for name in unknown:
        if not hasattr(type(model), name):
            setattr(model, name, keywords[name])


ARGUMENTS = frozenset(inspect.signature(AbsEmbedder.__init__).parameters) - {"self"}


def handed_on(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of a constructor's `locals()` what `AbsEmbedder` takes."""
    return {name: value for name, value in given.items() if name in ARGUMENTS}


def first_set(name: str, value: int | None, default: int) -> int:
    """`value`, or `default` where it is None. Raises InputError: no whole number."""
    found = default if value is None else value
    if not isinstance(found, int):
        raise InputError(f"{name}: expected a whole number, found {found!r:.60}")
    return found


def refuse(keywords: dict[str, Any]) -> None:
    """FlagEmbedding hands further keywords to its tokenizer; here they would do nothing. Raises InputError.

    `pad_to_multiple_of` and `verbose` change no vector there either: they are accepted.
    """
    others = sorted(keywords.keys() - {"pad_to_multiple_of", "verbose"})
    if others:
        raise InputError(
            f"expected FlagEmbedding's own arguments, found {', '.join(others)}.\n"
            "    Keywords for a transformers tokenizer have no meaning here: leave them out."
        )


def require_numpy(convert_to_numpy: bool | None) -> None:
    """Raise InputError: tensors are asked for."""
    if convert_to_numpy is False:
        raise InputError("convert_to_numpy=False: expected True; there is no PyTorch here. Use torch.from_numpy.")
