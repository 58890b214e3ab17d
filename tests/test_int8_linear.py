"""Int8Linear: NumPy's bits where tails break and sums are largest, and the same on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bge_kernels
from one_operator import BUDGETS, EXTREMES, ROWS, built, linear


@built
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 15), (64, 64), (67, 65), (130, 63), (384, 129), (768, 17)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("added", BUDGETS)
def test_int8_linear(rows, inputs, outputs, threads, added):
    """The same bits as NumPy's, for tails of rows, inputs and outputs."""
    found, wanted = linear(rows, inputs, outputs, threads=threads, added=added)
    np.testing.assert_array_equal(found, wanted)


@built
@pytest.mark.parametrize("rows", [1, 7])
def test_int8_linear_with_gelu(rows):
    """Within 2e-6 of the exact one, relative to the largest."""
    found, wanted = linear(rows, 384, 129, gelu=1)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * max(1, np.abs(wanted).max()))


@built
@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize(("added", "pair"), [(added, pair) for added in EXTREMES for pair in EXTREMES[added]])
def test_extreme_operands_do_not_saturate(low, added, pair):
    """All bytes at their end and all weights at the budget: the sums are exact."""
    weight = np.tile(np.array(pair, dtype=np.int8), (70, 194))
    bytes_ = np.full((7, 388), 1 if low else BUDGETS[added][0], dtype=np.uint8)
    found, wanted = linear(7, 388, 70, weight=weight, bytes_=bytes_, added=added)
    np.testing.assert_array_equal(found, wanted)


@built
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 300), st.integers(1, 200), st.integers(1, 3), st.integers(1, 2))
def test_any_shape(rows, inputs, outputs, threads, added):
    """Fuzzed shapes, no rows among them."""
    found, wanted = linear(rows, inputs, outputs, threads=threads, added=added)
    np.testing.assert_array_equal(found, wanted)


def bits_of(isa, file):
    """Outputs of all operators on one instruction set, in a process of its own; skips where this CPU lacks it."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("operator_bits.py"), file],
        env={**os.environ, "BGE_KERNELS_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if f"found {isa}" in done.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert not done.returncode, done.stderr
    return list(np.load(file).values())


@built
@pytest.mark.parametrize("isa", ["avx512_vnni", "avx_vnni", "avx2"])
def test_every_instruction_set_gives_the_same_bits(isa, tmp_path):
    """Those that any CPU has give them, too; linear layers without GELU have NumPy's, for all tails and extremes."""
    found, wanted = bits_of(isa, tmp_path / "found.npz"), bits_of("baseline", tmp_path / "wanted.npz")
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@built
def test_unknown_instruction_sets_are_named(tmp_path):
    code = "import onnxruntime as ort, sys; ort.SessionOptions().register_custom_ops_library(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(bge_kernels.library())],
        env={**os.environ, "BGE_KERNELS_ISA": "sse9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "BGE_KERNELS_ISA: expected one of" in done.stderr
    assert "baseline, found sse9" in done.stderr
