"""FlagEmbedding's FlagLLMModel and FlagICLModel: dense vectors of a decoder, and few-shot queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bge_onnx.embed.few_shot import FewShot
from bge_onnx.errors import InputError
from bge_onnx.flag.abs_embedder import DEFAULT_TOKENS, AbsEmbedder, Devices, first_set, handed_on, refuse, require_numpy
from bge_onnx.flag.encoder import DenseEmbedder
from bge_onnx.text.examples import EXAMPLE_FORMAT, QUERY_FORMAT, SUFFIX, Prompt, examples_text
from bge_onnx.text.tokenizer import check_texts
from bge_onnx.vectors.embeddings import Vectors


class LastTokenEmbedder(DenseEmbedder):
    """What both classes share: the state of the last token, and no other pooling."""

    DEFAULT_POOLING_METHOD = "last_token"

    def __init__(self, *, convert_to_numpy: bool, **arguments: Any) -> None:
        kwargs = arguments["kwargs"]
        if kwargs.pop("pooling_method", "last_token") != "last_token":
            raise ValueError("pooling_method: expected 'last_token' for a decoder")
        require_numpy(convert_to_numpy)
        super().__init__(pooling_method="last_token", **arguments)
        if not self.embedder.bundle.causal:
            raise InputError(
                f"{self.model_name_or_path}: expected a bundle of a decoder, found one of "
                f"{self.embedder.bundle.model_type}."
            )


class FlagLLMModel(LastTokenEmbedder):
    """Dense vectors of a decoder; `model_name_or_path` is a bundle or a Hub repository with one.

    The default template is not bge-multilingual-gemma2's, in FlagEmbedding neither: FlagAutoModel sets that.
    Mirrors https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/inference/embedder/decoder_only/base.py
    Raises InputError, ProviderError: an argument that the bundle cannot honour. BundleError: no such bundle.
    """

    def __init__(
        self,
        model_name_or_path: str,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "Instruct: {}\nQuery: {}",
        devices: Devices = None,
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
        super().__init__(convert_to_numpy=convert_to_numpy, **handed_on(locals()))


class FlagICLModel(LastTokenEmbedder):
    """Queries behind a task and few-shot examples; `model_name_or_path` is a bundle or a Hub repository with one.

    Task and examples are computed once, and again when they change.
    Mirrors https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/inference/embedder/decoder_only/icl.py
    Raises InputError, ProviderError: an argument that the bundle cannot honour. BundleError: no such bundle.
    """

    def __init__(
        self,
        model_name_or_path: str,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = QUERY_FORMAT,
        suffix: str = SUFFIX,
        devices: Devices = None,
        examples_for_task: Sequence[Mapping[str, str]] | None = None,
        examples_instruction_format: str = EXAMPLE_FORMAT,
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
        super().__init__(convert_to_numpy=convert_to_numpy, **handed_on(locals()))
        self.suffix = suffix
        self.examples_for_task = examples_for_task
        self.examples_instruction_format = examples_instruction_format
        self._few_shot: FewShot | None = None
        self.set_examples()

    def set_examples(self, examples_for_task: Sequence[Mapping[str, str]] | None = None) -> None:
        """Take other examples; None takes the constructor's."""
        examples = self.examples_for_task if examples_for_task is None else examples_for_task
        instruction = self.query_instruction_for_retrieval
        # An empty list gives a blank line, in FlagEmbedding too. One assignment: another thread may be reading.
        template = self.examples_instruction_format
        self.prefix = "" if examples is None else examples_text(examples, instruction, template)

    @staticmethod
    def get_detailed_example(instruction_format: str, instruction: str, query: str, response: str) -> str:
        r"""An example in the template; a literal \n in it is a newline."""
        return instruction_format.replace("\\n", "\n").format(instruction, query, response)

    def stop_self_query_pool(self) -> None:
        """Do nothing: there are no processes to stop."""

    def encode_queries(
        self,
        queries: str | Iterable[str],
        batch_size: int | None = None,  # noqa: ARG002 - batches are planned by tokens, and change no vector
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        **kwargs: Any,
    ) -> Vectors:
        """Vectors (N, D) of queries behind task and examples, or (D,) of one string.

        A query is cut at `query_max_length` tokens with its task; examples are never cut.
        """
        refuse(kwargs)
        require_numpy(convert_to_numpy)
        texts = check_texts([queries] if isinstance(queries, str) else queries)
        dense = (
            self._shared()
            .embed(
                texts,
                max_tokens=first_set("max_length", max_length, self.query_max_length),
                normalize=self.normalize_embeddings,
                truncate_dim=self._truncate_dim(("dense",)),
            )
            .dense
        )
        typed: Vectors = self._typed(dense)
        return typed[0] if isinstance(queries, str) else typed

    def encode_queries_single_device(
        self,
        queries: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int = DEFAULT_TOKENS,
        convert_to_numpy: bool = True,
        device: str | None = None,
        **kwargs: Any,
    ) -> Vectors:
        """As `encode_queries`, on the bundle's devices: `device` chooses nothing."""
        del device
        return self.encode_queries(queries, batch_size, self._length(max_length), convert_to_numpy, **kwargs)

    @staticmethod
    def _encode_queries_multi_process_worker(model: AbsEmbedder, sentences: list[str], **kwargs: Any) -> Vectors:
        """What a pool for queries does with its texts."""
        assert isinstance(model, FlagICLModel)
        return model.encode_queries_single_device(sentences, **kwargs)

    def _shared(self) -> FewShot:
        """What all queries share, computed anew where one of its attributes was assigned to."""
        prompt = Prompt(
            examples=self.prefix,
            instruction=self.query_instruction_for_retrieval,
            query_format=self.query_instruction_format.replace("\\n", "\n"),
            suffix=self.suffix,
        )
        few_shot = self._few_shot  # read once: another thread may put other examples there
        if few_shot is None or few_shot.prompt != prompt:
            few_shot = self._few_shot = FewShot.make(self.embedder, prompt)
        return few_shot
