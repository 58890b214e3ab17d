"""`RotateQuantize` in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 64


def rotate_quantize(
    x: NDArray[np.float32], *, rotated: bool, levels: float, zero: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Bytes (..., K) and steps (..., 1) of rows (..., K), rotated in blocks of 64 by Sylvester's matrix where asked."""
    rows: NDArray[Any] = x
    if rotated:
        matrix = np.ones((1, 1))
        while len(matrix) < BLOCK:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        rows = (x.reshape(-1, BLOCK) @ (matrix / np.sqrt(BLOCK))).reshape(x.shape).astype(np.float32)
    largest = np.maximum(np.abs(rows).max(axis=-1, keepdims=True), np.float32(1e-30))
    per_step = np.float32(levels) / largest
    return (np.rint(rows * per_step) + zero).astype(np.uint8), largest / np.float32(levels)
