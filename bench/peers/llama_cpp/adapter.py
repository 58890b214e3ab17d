"""llama.cpp by llama-cpp-python, whose source distribution is compiled here: `variant` F16 or Q8_0."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

TOKENS = 512
"""Of a context and of a batch: attention without a cache takes a whole batch as one, and the model's limit is this."""


def prepare(checkpoint: Path, folder: Path) -> None:
    """Convert with the script that llama.cpp's own source has, from the distribution that was compiled."""
    import subprocess
    import sys

    script = Path(sys.prefix) / "llama.cpp/convert_hf_to_gguf.py"
    for kind in ("f16", "q8_0"):
        out = folder / f"{kind.upper()}.gguf"
        subprocess.run([sys.executable, str(script), str(checkpoint), "--outtype", kind, "--outfile", out], check=True)


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    import llama_cpp

    model = llama_cpp.Llama(
        str(folder / f"{variant}.gguf"),
        embedding=True,
        n_ctx=TOKENS,
        n_batch=TOKENS,
        n_ubatch=TOKENS,
        n_threads=threads,
        n_threads_batch=threads,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_CLS,
        verbose=False,
    )
    lock = threading.Lock()  # one context, which embed() changes

    def embed(texts: Sequence[str]) -> np.ndarray:
        with lock:
            return np.array(model.embed(list(texts), normalize=True), dtype=np.float32)

    return embed
