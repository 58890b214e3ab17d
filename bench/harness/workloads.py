"""Seeded texts whose lengths are known: what every system of a benchmark embeds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

SCIFACT_PASSAGES = 5183


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Texts to embed in one call. `single` means one call per text, timed one by one."""

    name: str
    texts: Sequence[str]
    tokens: int  # special tokens included, no padding
    single: bool = False
    callers: int = 1  # threads that share one model, each with a text at a time
    squares: int = 0  # sum of each text's tokens squared, which attention takes

    @property
    def facts(self) -> dict[str, Any]:
        """What results files keep of it: all but the texts, and how many these are."""
        return {**asdict(self), "texts": len(self.texts)}


def workloads(
    tokenizer: Tokenizer, scifact: Path | None, *, scale: float, max_tokens: int, prompt: str = ""
) -> list[Workload]:
    """Short queries (4 to 32 tokens), SciFact abstracts, a log-normal mix, and texts of 128 and 16 tokens.

    Eight of 128 tokens and two of 512 go in one call; "one 128" and "one 16" are single texts; "16 callers" are threads
    with a query at a time.

    scale       multiplies the number of texts: less for larger models
    scifact     corpus.jsonl.gz; None leaves abstracts out
    max_tokens  where every system cuts a text
    prompt      stands in front of every text, beyond these lengths
    """
    rng = np.random.default_rng(0)
    words = words_of(tokenizer)
    mix = lognormal(rng, int(256 * scale))
    chosen = rng.choice(SCIFACT_PASSAGES, int(64 * scale), replace=False)
    plain = [
        ("queries", texts(rng, words, rng.integers(4, 33, int(512 * scale))), False),
        *([("scifact", abstracts(scifact, chosen), False)] if scifact else []),
        ("mix", texts(rng, words, mix), False),
        ("8x128", texts(rng, words, [128] * 8), False),
        ("2x512", texts(rng, words, [512] * 2), False),
        ("16 callers", texts(rng, words, rng.integers(4, 33, max(64, int(256 * scale)))), False),
        ("one 16", texts(rng, words, [16] * max(8, int(48 * scale))), True),
        ("one 128", texts(rng, words, [128] * max(8, int(48 * scale))), True),
    ]
    plain = [(name, [prompt + row for row in rows], single) for name, rows, single in plain]
    return measured(tokenizer, plain, max_tokens=max_tokens)


def abstracts(scifact: Path, chosen: Iterable[int]) -> list[str]:
    """Titles and abstracts at some places of SciFact's corpus."""
    with gzip.open(scifact, "rt", encoding="utf-8") as file:
        passages = [f"{row['title']} {row['text']}" for row in map(json.loads, file)]
    return [passages[row] for row in chosen]


def mixed_texts(tokenizer: Tokenizer, count: int) -> list[str]:
    """So many texts of a log-normal mix of lengths."""
    rng = np.random.default_rng(1)
    return texts(rng, words_of(tokenizer), lognormal(rng, count))


def gpu_workloads(tokenizer: Tokenizer, *, scale: float, max_tokens: int) -> list[Workload]:
    """As `workloads`, in the numbers that a GPU needs: queries, a log-normal mix, full texts, and single ones."""
    rng = np.random.default_rng(0)
    words = words_of(tokenizer)
    plain = [
        ("queries", texts(rng, words, rng.integers(4, 33, int(8192 * scale))), False),
        ("mix", texts(rng, words, lognormal(rng, int(4096 * scale))), False),
        ("512", texts(rng, words, [512] * int(1024 * scale)), False),
        ("one 16", texts(rng, words, [16] * 50), True),
        ("one 128", texts(rng, words, [128] * 50), True),
    ]
    if max_tokens > 512:
        plain.append((str(max_tokens), texts(rng, words, [max_tokens] * int(64 * scale)), False))
    return measured(tokenizer, plain, max_tokens=max_tokens)


def words_of(tokenizer: Tokenizer) -> list[str]:
    """Words that are a token each."""
    vocabulary = sorted({word.removeprefix("▁") for word in tokenizer.get_vocab()})
    words = [word for word in vocabulary if word.isalpha() and word.isascii() and len(word) > 2]
    tokens = tokenizer.encode_batch(words, add_special_tokens=False)
    return [word for word, found in zip(words, tokens, strict=True) if sum(found.attention_mask) == 1]


def texts(rng: np.random.Generator, words: Sequence[str], lengths: Iterable[int]) -> list[str]:
    """Texts of so many tokens, the two special ones included."""
    return [" ".join(rng.choice(words, length - 2)) for length in lengths]


def lognormal(rng: np.random.Generator, count: int) -> list[int]:
    """Lengths of a mix: 92 tokens on average, 4 to 512."""
    lengths: list[int] = np.clip(np.exp(rng.normal(4.2, 0.8, count)), 4, 512).astype(int).tolist()
    return lengths


def measured(
    tokenizer: Tokenizer, plain: Iterable[tuple[str, Sequence[str], bool]], *, max_tokens: int
) -> list[Workload]:
    """Workloads of names, texts and whether they are single, with their tokens counted."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    found = []
    for name, rows, single in plain:
        lengths = [len(row.ids) for row in tokenizer.encode_batch(list(rows))]
        squares = sum(length**2 for length in lengths)
        callers = int(name.partition(" ")[0]) if name.endswith("callers") else 1
        found.append(
            Workload(name=name, texts=rows, single=single, callers=callers, tokens=sum(lengths), squares=squares)
        )
    return found
