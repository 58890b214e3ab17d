"""`ResidualLayerNorm` in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def residual_layer_norm(x: Floats, residual: Floats, scale: Floats, bias: Floats, *, epsilon: float) -> Floats:
    """The sum of two rows (..., D), normalised over D in float64, times a scale (D,) plus a bias (D,)."""
    total = (x + residual).astype(np.float64)
    centred = total - total.mean(axis=-1, keepdims=True)
    found: Floats = (centred / np.sqrt(total.var(axis=-1, keepdims=True) + epsilon) * scale + bias).astype(np.float32)
    return found
