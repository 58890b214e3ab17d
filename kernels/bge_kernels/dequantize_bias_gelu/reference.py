"""`DequantizeBiasGelu` in NumPy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def dequantize_bias_gelu(sums: Floats, steps: Floats, bias: Floats, *, gelu: bool) -> Floats:
    """Sums (..., N) times their rows' steps (..., 1) plus a bias (N,), through GELU where asked; its erf in float64."""
    values: Floats = sums * steps + bias
    if not gelu:
        return values
    exact = values.astype(np.float64)
    erf = np.array([math.erf(value) for value in exact.ravel() / math.sqrt(2)]).reshape(exact.shape)
    found: Floats = (exact / 2 * (1 + erf)).astype(np.float32)
    return found
