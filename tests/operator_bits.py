"""What the operators give on one instruction set (BGE_KERNELS_ISA): operator_bits.py FILE writes it, for comparing.

Linear layers without GELU are compared with NumPy's here.
"""

from __future__ import annotations

import sys

import numpy as np

from one_operator import BUDGETS, EXTREMES, floats, linear, run

for added in BUDGETS:
    shapes = [(rows, inputs) for rows in (*range(1, 8), 33) for inputs in (1, 4, 8, 12, 384, 388)]
    pairs = [linear(*shape, 65, added=added) for shape in shapes]
    bytes_ = np.full((7, 388), BUDGETS[added][0], dtype=np.uint8)
    extremes = [np.tile(np.array(pair, dtype=np.int8), (70, 194)) for pair in EXTREMES[added]]
    pairs += [linear(7, 388, 70, weight=weight, bytes_=bytes_, added=added) for weight in extremes]
    assert all(np.array_equal(found, wanted) for found, wanted in pairs), added
x = floats((33, 384))
found = [*run("RotateQuantize", [x], outputs=2, rotated=1, levels=109.0, zero=110)]
found += run("DequantizeBiasGelu", [x, floats((33, 1), 1), floats(384, 2)], gelu=1)
found += run("ResidualLayerNorm", [x, floats(x.shape, 1), floats(384, 2), floats(384, 3)], epsilon=1e-12)
found += [linear(33, 384, 129, gelu=1)[0]]
np.savez(sys.argv[1], *found)
