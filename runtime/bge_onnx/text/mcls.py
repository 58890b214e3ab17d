"""Multiple CLS: long texts as the mean over a CLS token every 256 tokens (BGE-M3, arXiv 2402.03216, appendix B.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

EVERY_TOKENS = 256


def insert_cls(token_ids: NDArray[np.int64], *, max_tokens: int) -> NDArray[np.int64]:
    """Token ids (T,) with the first id, CLS, again before each further 256 of the text's own tokens.

    The end token stays last, and what does not fit into `max_tokens` any more is cut before it. A text of up to 256
    tokens is unchanged.
    """
    cls, words, end = token_ids[0], token_ids[1:-1], token_ids[-1:]
    words = words[: (max_tokens - 1) * EVERY_TOKENS // (EVERY_TOKENS + 1)]
    return np.concatenate([np.insert(words, range(0, max(1, len(words)), EVERY_TOKENS), cls), end])


def mean_of_cls(texts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean state of each text's CLS tokens, where `insert_cls` put them.

    texts    B arrays (T, D) of the last layer
    returns  (B, D)
    """
    return np.stack([states[: -1 : EVERY_TOKENS + 1].mean(axis=0) for states in texts])
