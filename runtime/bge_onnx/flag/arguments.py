"""The arguments that FlagEmbedding's classes share, and what a bundle makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bge_onnx.embedder import Embedder
from bge_onnx.errors import InputError, ProviderError

Devices = str | int | list[str] | list[int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """Constructor arguments with FlagEmbedding's names and defaults (AbsEmbedder)."""

    normalize_embeddings: bool = True
    use_fp16: bool = True
    use_bf16: bool = False
    query_instruction_for_retrieval: str | None = None
    query_instruction_format: str = "{}{}"
    devices: Devices = None
    pooling_method: str = "cls"
    trust_remote_code: bool = False
    cache_dir: str | None = None
    batch_size: int = 256
    query_max_length: int = 512
    passage_max_length: int = 512
    convert_to_numpy: bool = True
    truncate_dim: int | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def open(self, model_name_or_path: str) -> Embedder:
        """The bundle, where it can do what these arguments ask for.

        Raises InputError, ProviderError: it cannot. BundleError: there is no bundle of that name.
        """
        unknown = set(self.more) - {"passage_instruction_for_retrieval", "passage_instruction_format"}
        if unknown:
            raise InputError(
                f"expected FlagEmbedding's arguments, found {', '.join(sorted(unknown))}.\n"
                "    They do nothing here: leave them out."
            )
        if not self.convert_to_numpy:
            raise InputError("convert_to_numpy=False: expected True; there is no PyTorch here. Use torch.from_numpy.")
        embedder = Embedder.open(model_name_or_path, cache_dir=self.cache_dir)
        bundle = embedder.bundle
        if self.pooling_method.removesuffix("_token") != bundle.pooling:
            raise InputError(
                f"pooling_method: expected {bundle.pooling!r}, with which {bundle.name} was exported, found "
                f"{self.pooling_method!r}.\n    Pass that, or export another bundle with --pooling."
            )
        self._check_devices(embedder)
        return embedder

    def dimension(self, width: int) -> int | None:
        """`truncate_dim` where it cuts anything of vectors of `width`."""
        return self.truncate_dim if self.truncate_dim is not None and self.truncate_dim < width else None

    def _check_devices(self, embedder: Embedder) -> None:
        """A bundle runs on one provider: a device of another kind, or several, are refused."""
        if self.devices is None:
            return
        asked = self.devices if isinstance(self.devices, list) else [self.devices]
        kinds = {"cuda" if isinstance(device, int) else str(device).split(":")[0] for device in asked}
        runs_on = "cpu" if embedder.bundle.provider == "CPUExecutionProvider" else "cuda"
        if kinds != {runs_on} or len(asked) > 1:
            raise ProviderError(
                f"devices: expected {runs_on!r}, for which the bundle {embedder.bundle.name} is lowered, found "
                f"{self.devices!r}.\n    Export a bundle for that target; for several devices start a process on each."
            )

    def query_text(self, text: str) -> str:
        """A query with its instruction."""
        return instruct(self.query_instruction_format, self.query_instruction_for_retrieval, text)

    def passage_text(self, text: str) -> str:
        """A passage with its instruction."""
        template = self.more.get("passage_instruction_format", "{}{}")
        return instruct(template, self.more.get("passage_instruction_for_retrieval"), text)


def instruct(template: str, instruction: str | None, text: str) -> str:
    r"""Instruction and text in the template, as FlagEmbedding's get_detailed_instruct: a literal \n is a newline."""
    return text if instruction is None else template.replace("\\n", "\n").format(instruction, text)


def texts_of(sentences: str | Sequence[str]) -> tuple[list[str], bool]:
    """The texts as a list, and whether it was one string."""
    return ([sentences], True) if isinstance(sentences, str) else (list(sentences), False)


def refuse(keywords: dict[str, Any]) -> None:
    """FlagEmbedding hands further keywords to its tokenizer; here they would do nothing. Raises InputError."""
    if keywords:
        raise InputError(
            f"expected FlagEmbedding's own arguments, found {', '.join(sorted(keywords))}.\n"
            "    Keywords for a transformers tokenizer have no meaning here: leave them out."
        )
