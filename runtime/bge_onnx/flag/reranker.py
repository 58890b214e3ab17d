"""FlagEmbedding's FlagReranker and FlagLLMReranker: scores of pairs, by a cross-encoder or a language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.hub import find_bundle
from bge_onnx.bundle.prompts import BEHIND
from bge_onnx.errors import BundleError, InputError, ProviderError
from bge_onnx.flag.abs_embedder import DEFAULT_TOKENS, Devices, refuse
from bge_onnx.flag.flag_tokenizer import FlagTokenizer
from bge_onnx.reranker import Reranker
from bge_onnx.text.pair_tokens import PairTokens

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
        self.reranker = self._open(model_name_or_path, cache_dir)
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

    def _open(self, name: str, cache_dir: str | None) -> Reranker:
        return _of_kind(Reranker.open(name, cache_dir=cache_dir), causal=False)

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
        return self._scores(self.reranker, sentence_pairs, query_max_length, max_length, normalize)

    def _scores(
        self,
        reranker: Reranker,
        sentence_pairs: Sequence[Pair] | Pair,
        query_max_length: int | None,
        max_length: int | None,
        normalize: bool | None,
    ) -> list[float]:
        pairs: Any = [sentence_pairs] if sentence_pairs and isinstance(sentence_pairs[0], str) else sentence_pairs
        scores: list[float] = reranker.score(
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


class FlagLLMReranker(FlagReranker):
    """Scores of a language model, with FlagEmbedding's arguments.

    Mirrors https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/inference/reranker/decoder_only/base.py
    `prompt` stands behind each pair; None for the bundle's. `use_fp16` and `use_bf16` change nothing, as a bundle has
    one precision. Raises like FlagReranker. InputError: `peft_path`, which has to be merged before an export.
    """

    def __init__(
        self,
        model_name_or_path: str,
        peft_path: str | None = None,
        use_fp16: bool = False,
        use_bf16: bool = False,
        query_instruction_for_rerank: str = "A: ",
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str = "B: ",
        passage_instruction_format: str = "{}{}",
        cache_dir: str | None = None,
        trust_remote_code: bool = False,
        devices: Devices = None,
        prompt: str | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = 512,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        if peft_path is not None:
            raise InputError(
                "peft_path: expected None, as a bundle's weights are fixed, found a path.\n"
                "    Merge the adapter into its model and export that."
            )
        super().__init__(
            model_name_or_path=model_name_or_path,
            use_fp16=use_fp16,
            query_instruction_for_rerank=query_instruction_for_rerank,
            query_instruction_format=query_instruction_format,
            passage_instruction_for_rerank=passage_instruction_for_rerank,
            passage_instruction_format=passage_instruction_format,
            trust_remote_code=trust_remote_code,
            cache_dir=cache_dir,
            devices=devices,
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            normalize=normalize,
            **kwargs,
        )
        self.use_bf16 = use_bf16
        self.prompt = prompt

    def _open(self, name: str, cache_dir: str | None) -> Reranker:
        return _of_kind(Reranker.open(name, cache_dir=cache_dir), causal=True)

    def compute_score_single_gpu(
        self,
        sentence_pairs: Sequence[Pair] | Pair,
        batch_size: int | None = None,  # noqa: ARG002 - as FlagReranker's
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        device: str | None = None,
        prompt: str | None = None,
        use_dataloader: bool = False,  # noqa: ARG002 - batches are made by threads
        num_workers: int | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> list[float]:
        """As `compute_score`, without instructions; `prompt` stands behind each pair."""
        del device
        refuse(kwargs)
        bundle, tokenizer = self.reranker.bundle, self.reranker.tokenizer
        asked = self.prompt if prompt is None else prompt
        prompts = {**bundle.prompts, "query": "", "passage": ""} | ({} if asked is None else {BEHIND: asked})
        pairs = PairTokens.prompted(tokenizer, bundle.special_ids, prompts)
        asking = dataclasses.replace(self.reranker, pairs=pairs)
        return self._scores(asking, sentence_pairs, query_max_length, max_length, normalize)


def _of_kind(reranker: Reranker, *, causal: bool) -> Reranker:
    """The reranker. Raises BundleError: it is of the other class."""
    if reranker.bundle.causal != causal:
        kinds = {False: ("a cross-encoder", "FlagReranker"), True: ("a language model", "FlagLLMReranker")}
        raise BundleError(
            f"{reranker.bundle.folder}: expected {kinds[causal][0]}, found {kinds[not causal][0]}.\n"
            f"    Use {kinds[not causal][1]}, or FlagAutoReranker.from_finetuned, which finds out."
        )
    return reranker


CLASSES: dict[str, type[FlagReranker]] = {"encoder-only-base": FlagReranker, "decoder-only-base": FlagLLMReranker}


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
        """A reranker. Raises InputError: a class that we do not have. BundleError: no reranker's bundle."""
        name = getattr(model_class, "value", model_class)
        if name is not None and name not in CLASSES:
            raise InputError(f"model_class: expected one of {', '.join(CLASSES)}, found {model_class!r}.")
        if name is None:
            cache_dir = kwargs.get("cache_dir")
            causal = Bundle.open(find_bundle(model_name_or_path, revision=None, cache_dir=cache_dir)).causal
            name = "decoder-only-base" if causal else "encoder-only-base"
        return CLASSES[name](model_name_or_path, use_fp16=use_fp16, trust_remote_code=bool(trust_remote_code), **kwargs)
