"""Weights of 8 and 4 bits: how they are rounded."""

from __future__ import annotations

import numpy as np
import pytest

from bge_export.lowering import cpu_nbits


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_errs_by_half_a_step(bits):
    """Every weight is off by half a step of its block at most, and a block of zeros stays zeros."""
    rows = np.random.default_rng(0).standard_normal((5, 200)).astype(np.float32)
    rows[3, :128] = 0
    found = cpu_nbits.rounded("x.proj.weight", rows, bits)
    block = cpu_nbits.BLOCK
    blocks = np.pad(np.abs(rows), ((0, 0), (0, -200 % block))).reshape(5, -1, block).max(axis=2) / (1 << (bits - 1))
    steps = np.repeat(blocks, block, axis=1)[:, :200]
    assert (np.abs(found - rows) <= steps * 1.001).all()
    assert (np.abs(found - rows) <= steps / 2 * 1.001).mean() > 0.95
    assert not found[3, :128].any()


def test_inputs_are_rounded_in_blocks():
    """Each block of 64 has its own step, of which its largest value is 127; zeros stay zeros."""
    rows = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    rows[1, :64], rows[2, 70] = 0, 1000
    found = cpu_nbits.rounded_inputs("module", rows)
    assert found.shape == rows.shape
    assert not found[1, :64].any()
    for block in (slice(0, 64), slice(64, 100)):
        steps = np.abs(rows[:, block]).max(axis=1, keepdims=True) / 127
        assert (np.abs(found - rows)[:, block] <= steps / 2 * 1.001).all()
