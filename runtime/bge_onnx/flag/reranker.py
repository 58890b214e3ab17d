"""FlagEmbedding's FlagReranker: scores of pairs, by a cross-encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from bge_onnx.errors import InputError, ProviderError
from bge_onnx.flag.abs_embedder import DEFAULT_TOKENS, Devices, refuse
from bge_onnx.flag.flag_tokenizer import FlagTokenizer
from bge_onnx.reranker import Reranker

Pair = tuple[str, str] | list[str]


class FlagReranker:
    """Scores with FlagEmbedding's arguments; `model_name_or_path` is a bundle or a Hub repository with one.

    Mirrors https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/inference/reranker/encoder_only/base.py
    Arguments are attributes that each call reads anew: they may be assigned to. `use_fp16` changes nothing, as a bundle
    has one precision. Raises ProviderError: devices of another provider. BundleError: no such bundle, or no reranker.
    """

    def __init__(
        self,
        model_name_or_path: str,
        use_fp16: bool = False,
        query_instruction_for_rerank: str | None = None,
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = None,
        passage_instruction_format: str = "{}{}",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        devices: Devices = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = 512,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        del trust_remote_code  # a bundle holds no code
        refuse(kwargs)
        self.reranker = Reranker.open(model_name_or_path, cache_dir=cache_dir)
        self.model_name_or_path = model_name_or_path
        self.use_fp16 = use_fp16
        self.query_instruction_for_rerank = query_instruction_for_rerank
        self.query_instruction_format = query_instruction_format
        self.passage_instruction_for_rerank = passage_instruction_for_rerank
        self.passage_instruction_format = passage_instruction_format
        self.batch_size = batch_size
        self.query_max_length = query_max_length
        # a default is no wish: models for shorter texts take what they can
        self.max_length = (
            min(max_length, self.reranker.bundle.max_tokens) if max_length == DEFAULT_TOKENS else max_length
        )
        self.normalize = normalize
        self.kwargs = kwargs
        self.target_devices = self._target_devices(devices)

    @property
    def model(self) -> Reranker:
        """The Reranker, where FlagEmbedding has a PyTorch module."""
        return self.reranker

    @property
    def tokenizer(self) -> FlagTokenizer:
        """The bundle's tokenizer, with the methods of transformers' that FlagEmbedding's users call."""
        return FlagTokenizer(self.reranker.tokenizer)

    def compute_score(self, sentence_pairs: Sequence[Pair] | Pair, **kwargs: Any) -> list[float]:
        """A score of each pair, or of one pair in a list, with the instructions in front.

        kwargs  batch_size, which changes no score; query_max_length, max_length, normalize: None as the constructor has
                them
        Raises InputError: no pairs of strings (their index is named), a length over the model's limit.
        """
        pairs = [sentence_pairs] if sentence_pairs and isinstance(sentence_pairs[0], str) else list(sentence_pairs)
        return self.compute_score_single_gpu(self.get_detailed_inputs(pairs), **kwargs)

    def compute_score_single_gpu(
        self,
        sentence_pairs: Sequence[Pair] | Pair,
        batch_size: int | None = None,  # noqa: ARG002 - batches are planned by tokens, and change no score
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """As `compute_score`, without instructions. The bundle runs on its own devices: `device` chooses nothing."""
        del device
        refuse(kwargs)
        pairs: Any = [sentence_pairs] if sentence_pairs and isinstance(sentence_pairs[0], str) else sentence_pairs
        scores: list[float] = self.reranker.score(
            [tuple(pair) if isinstance(pair, list) else pair for pair in pairs],
            normalize=self.normalize if normalize is None else normalize,
            max_tokens=self.max_length if max_length is None else max_length,
            query_max_tokens=self.query_max_length if query_max_length is None else query_max_length,
        ).tolist()
        return scores

    def get_detailed_inputs(self, sentence_pairs: Sequence[Any]) -> list[Any]:
        """The pairs with the instructions in front; a literal \\n in a template is a newline."""
        around = (
            (self.query_instruction_format, self.query_instruction_for_rerank),
            (self.passage_instruction_format, self.passage_instruction_for_rerank),
        )
        return [
            [
                text if instruction is None else self.get_detailed_instruct(template, instruction, text)
                for text, (template, instruction) in zip(pair, around, strict=True)
            ]
            if isinstance(pair, tuple | list) and len(pair) == 2
            else pair
            for pair in sentence_pairs
        ]

    @staticmethod
    def get_detailed_instruct(instruction_format: str, instruction: str, sentence: str) -> str:
        r"""Instruction and text in the template; a literal \n in it is a newline."""
        return instruction_format.replace("\\n", "\n").format(instruction, sentence)

    def stop_self_pool(self) -> None:
        """Let go of loaded graphs; they load again when used."""
        self.reranker.session.close()

    def _target_devices(self, devices: Devices) -> list[str]:
        runs_on = "cpu" if self.reranker.bundle.provider == "CPUExecutionProvider" else "cuda"
        asked = devices if isinstance(devices, list) else [runs_on if devices is None else devices]
        names = [f"cuda:{device}" if isinstance(device, int) else str(device) for device in asked]
        if {name.split(":")[0] for name in names} != {runs_on}:
            raise ProviderError(
                f"devices: expected {runs_on!r}, for which the bundle {self.reranker.bundle.name} is lowered, found "
                f"{devices!r}.\n    Leave devices out, or export a bundle for that target."
            )
        return names


CLASSES = {"encoder-only-base": FlagReranker}


class FlagAutoReranker:
    """Opens a reranker's bundle with FlagEmbedding's arguments. A bundle knows what it is, whatever its name."""

    def __init__(self) -> NoReturn:
        """Raise OSError, as FlagEmbedding does."""
        raise OSError("expected FlagAutoReranker.from_finetuned(model_name_or_path), found a call of the constructor.")

    @classmethod
    def from_finetuned(
        cls,
        model_name_or_path: str,
        model_class: Any = None,
        use_fp16: bool = False,
        trust_remote_code: bool | None = None,
        **kwargs: Any,
    ) -> FlagReranker:
        """A reranker. Raises InputError: a class other than "encoder-only-base". BundleError: no reranker's bundle."""
        name = getattr(model_class, "value", model_class)
        if name is not None and name not in CLASSES:
            raise InputError(f"model_class: expected one of {', '.join(CLASSES)}, found {model_class!r}.")
        return CLASSES[name or "encoder-only-base"](
            model_name_or_path, use_fp16=use_fp16, trust_remote_code=bool(trust_remote_code), **kwargs
        )
