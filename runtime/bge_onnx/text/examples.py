"""Few-shot queries as bge-en-icl takes them: task, examples and query in one text. Queries share its beginning.

Mirrors FlagEmbedding's ICLLLMEmbedder:
https://github.com/FlagOpen/FlagEmbedding/blob/7ed43d67ec03fbe5c31c0992dbfa941fb1860549/FlagEmbedding/inference/embedder/decoder_only/icl.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_onnx.errors import InputError
from bge_onnx.text.tokenizer import Tokenizer, check_texts

QUERY_FORMAT = "<instruct>{}\n<query>{}"
EXAMPLE_FORMAT = "<instruct>{}\n<query>{}\n<response>{}"
SUFFIX = "\n<response>"
RESPONSE, QUERY = "<response>", "<query>"
"""Special tokens: models with the first take examples, models with the second a task."""
QUERY_TOKENS = 512
"""FlagEmbedding's default length of a query; examples are never cut."""


def examples_text(
    examples: Sequence[Mapping[str, str]], instruction: str | None, example_format: str = EXAMPLE_FORMAT
) -> str:
    """Examples of instruct, query and response one after another, a blank line behind each.

    A missing `instruct` is the query's own instruction, a missing `query` or `response` is empty, as in FlagEmbedding.
    Raises InputError: no mappings of strings, or neither the example nor the query has an instruction.
    """
    rendered = []
    for index, example in enumerate(examples):
        values = _values(index, example, instruction)
        rendered.append(example_format.replace("\\n", "\n").format(*values))
    return "\n\n".join(rendered) + "\n\n"


def _values(index: int, example: Any, instruction: str | None) -> list[str]:
    if not isinstance(example, Mapping):
        raise InputError(
            f"examples[{index}]: expected a mapping with instruct, query and response, found {example!r:.60}"
        )
    values = [example.get("instruct", instruction), example.get("query", ""), example.get("response", "")]
    for name, value in zip(("instruct", "query", "response"), values, strict=True):
        if not isinstance(value, str):
            advice = "Add it, or give the query an instruction" if value is None else "Make it a string"
            raise InputError(f"examples[{index}]: expected a string as {name}, found {value!r:.40}.\n    {advice}.")
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What stands around a query.

    examples      rendered, as `examples_text` gives them
    instruction   of the task; None leaves queries bare
    query_format  of instruction and query
    suffix        behind the query
    """

    examples: str = ""
    instruction: str | None = None
    query_format: str = QUERY_FORMAT
    suffix: str = SUFFIX

    def token_ids(self, tokenizer: Tokenizer, queries: Iterable[str], *, max_tokens: int) -> list[NDArray[np.int64]]:
        """Token ids (T,) of the whole texts, as FlagEmbedding makes them.

        The query is cut as tokens, decoded, and tokenised again within the whole text: a Llama tokenizer decodes
        "<query>what" to "<query> what", which has another piece.
        Raises InputError: no strings, no room for a query, texts longer than the tokenizer's limit.
        """
        texts = check_texts(queries)
        if type(max_tokens) is not int:
            raise InputError(f"max_tokens: expected a whole number of tokens, found {max_tokens!r:.60}")
        if self.instruction is not None:
            texts = [self.query_format.format(self.instruction, text) for text in texts]
        around = tokenizer.untruncated(["<s>", f"{self.suffix}</s>", self.suffix, self.examples], special=False)
        begin, end, suffix, examples = (len(ids) for ids in around)
        room = max_tokens - begin - end
        if room < 1:
            raise InputError(f"max_tokens: expected at least {begin + end + 1}, room for a query, found {max_tokens}")
        cut = [ids[:room] for ids in tokenizer.untruncated(texts, special=False)]
        whole = [self.examples + tokenizer.decode(ids) + self.suffix for ids in cut]
        limit = (examples + suffix + max_tokens + 8) // 8 * 8 + 8
        found = Tokenizer(tokenizer.backend, limit).encode(whole)
        longest = max((len(ids) for ids in found), default=0)
        if longest > tokenizer.max_tokens:
            raise InputError(
                f"queries: expected at most {tokenizer.max_tokens} tokens (this model's limit) with their examples, "
                f"found {longest}.\n    Give fewer or shorter examples, or a lower max_tokens."
            )
        return found
