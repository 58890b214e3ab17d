"""Seeded texts whose lengths are known: what every system of a benchmark embeds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Texts to embed in one call. `single` means one call per text, timed one by one."""

    name: str
    texts: Sequence[str]
    tokens: int  # special tokens included, no padding
    single: bool = False


def workloads(tokenizer: Tokenizer, scifact: Path, *, scale: float, max_tokens: int) -> list[Workload]:
    """Short queries (4 to 32 tokens), SciFact abstracts, a log-normal mix, and texts of 128 and 16 tokens.

    Eight of 128 tokens go in one call; "one 128" and "one 16" are single texts.

    scale       multiplies the number of texts: less for larger models
    scifact     corpus.jsonl.gz
    max_tokens  where every system cuts a text
    """
    rng = np.random.default_rng(0)
    words = [
        word for word, _ in sorted(tokenizer.get_vocab().items()) if word.isalpha() and word.isascii() and len(word) > 2
    ]

    def texts(lengths: Sequence[int]) -> list[str]:
        return [" ".join(rng.choice(words, length - 2)) for length in lengths]

    with gzip.open(scifact, "rt", encoding="utf-8") as file:
        passages = [f"{row['title']} {row['text']}" for row in map(json.loads, file)]
    lognormal = np.clip(np.exp(rng.normal(4.2, 0.8, int(256 * scale))), 4, 512).astype(int)
    chosen = rng.choice(len(passages), int(64 * scale), replace=False)
    plain = [
        ("queries", texts(rng.integers(4, 33, int(512 * scale)).tolist()), False),
        ("scifact", [passages[row] for row in chosen], False),
        ("mix", texts(lognormal.tolist()), False),
        ("8x128", texts([128] * 8), False),
        ("one 16", texts([16] * max(8, int(48 * scale))), True),
        ("one 128", texts([128] * max(8, int(48 * scale))), True),
    ]
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return [
        Workload(name=name, texts=rows, single=single, tokens=sum(len(row.ids) for row in tokenizer.encode_batch(rows)))
        for name, rows, single in plain
    ]
