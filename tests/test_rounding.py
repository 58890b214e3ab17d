"""Rounding to bytes: rotation, and the budget of sums that have 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_export.lowering.int8 import rounding as int8
from tiny import summed, sums_of_one_sign

EIGHT, SEVEN = int8.EIGHT_BITS, int8.SEVEN_BITS


@pytest.mark.parametrize("size", [1, 2, 32, 64, 128])
def test_the_rotation_is_its_own_inverse(size):
    """Rotating twice gives the rows back, and lengths stay."""
    rows = np.random.default_rng(size).standard_normal((5, 256)).astype(np.float32)
    rotated = int8.rotate(rows, size)
    np.testing.assert_allclose(int8.rotate(rotated, size), rows, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5)


def test_no_power_of_two_is_no_rotation():
    with pytest.raises(ValueError, match="expected a power of two, found 48"):
        int8.hadamard(48)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["normal", "heavy", "extreme"]), st.sampled_from([EIGHT, SEVEN]))
def test_weights_stay_within_the_budget(seed, kind, grid):
    """No sum can overflow 16 bits; the error is that of rounding where no sum was over."""
    rng = np.random.default_rng(seed)
    weight = {
        "normal": lambda: rng.standard_normal((7, 64)),
        "heavy": lambda: rng.standard_t(2, (7, 64)),
        "extreme": lambda: rng.choice([-1.0, 1.0, 0.0], (7, 64)),
    }[kind]().astype(np.float32)
    integers, scales = int8.quantize(weight, grid)
    assert np.abs(integers.astype(int)).max() <= 127
    sums = sums_of_one_sign(integers, grid.added)
    assert sums.max() * (grid.levels + grid.zero) <= np.iinfo(np.int16).max
    errors = np.abs(integers * scales[:, None] - weight)[:, summed(64, grid.added)].max(axis=2)
    free = sums < grid.most - 1
    assert (errors <= scales[:, None] * 0.5001)[free].all()


@pytest.mark.parametrize(
    ("grid", "row", "wanted"),
    [
        (EIGHT, [100, 90, -100, 60], [79, 70, -100, 60]),
        (EIGHT, [127, 127, 127, 22], [74, 75, 127, 22]),
        (SEVEN, [100, 90, 9, 9, 50, 50, 9, 9], [92, 82, 9, 9, 42, 42, 9, 9]),
        (SEVEN, [127, 127, 9, -120, 127, 3, 120, -120], [85, 86, 9, -120, 87, 0, 120, -120]),
        (SEVEN, [127, 127, 9, 9, 127, 127, -9, 9], [64, 64, 9, 9, 65, 65, -9, 9]),
    ],
)
def test_what_is_over_the_budget_is_given_in_equal_shares(grid, row, wanted):
    """By those of one sign that are summed; none gives more than it has, the others as they are."""
    found = grid.within(np.array([row], dtype=np.float32))
    assert sums_of_one_sign(found, grid.added).max() <= grid.most
    np.testing.assert_array_equal(found, [wanted])


def test_a_row_of_zeros_is_zeros():
    integers, scales = int8.quantize(np.zeros((2, 64), dtype=np.float32), EIGHT)
    assert not integers.any()
    assert np.isfinite(scales).all()
