"""`Int8Linear` in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_kernels.dequantize_bias_gelu.reference import dequantize_bias_gelu

Floats = NDArray[np.float32]
PANEL, QUAD = 64, 4


def packed_shape(inputs: int, outputs: int) -> tuple[int, int, int, int]:
    """Of a weight: panels of 64 outputs, quads of inputs."""
    return -(-outputs // PANEL), -(-inputs // QUAD), PANEL, QUAD


def pack(weight: NDArray[np.int8], zero: int) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    """A weight (N, K) as the operator reads it, and what the rows' zero adds to each output (N,)."""
    outputs, inputs = weight.shape
    panels, quads, _, _ = packed_shape(inputs, outputs)
    padded = np.zeros((panels * PANEL, quads * QUAD), dtype=np.int8)
    padded[:outputs, :inputs] = weight
    ordered = padded.reshape(panels, PANEL, quads, QUAD).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(ordered), zero * weight.sum(axis=1, dtype=np.int32)


def int8_linear(
    rows: NDArray[np.uint8], steps: Floats, weight: NDArray[np.int8], scales: Floats, bias: Floats, **how: Any
) -> Floats:
    """Bytes (..., K) with their rows' steps (..., 1), times a weight (N, K) with scales (N,), plus a bias (N,).

    how  zero, of the bytes; gelu, whether it follows
    """
    sums = (rows.astype(np.int32) - how["zero"]) @ weight.T.astype(np.int32)
    return dequantize_bias_gelu(sums.astype(np.float32) * scales, steps, bias, gelu=how["gelu"])
