"""The custom operators: against NumPy where tails break, and the same bits on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import bge_kernels
from bge_kernels.dequantize_bias_gelu.reference import dequantize_bias_gelu
from bge_kernels.int8_linear.reference import int8_linear, pack
from bge_kernels.residual_layer_norm.reference import residual_layer_norm
from bge_kernels.rotate_quantize.reference import rotate_quantize

built = pytest.mark.skipif(not bge_kernels.library(), reason="built with BGE_KERNELS=1 only")

ROWS = [1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 63, 65, 127, 129, 193]
WIDTHS = [1, 3, 15, 16, 17, 63, 65, 130]
LEVELS, ZERO = 109, 110
BUDGETS = {1: (219, 149), 2: (127, 258)}
"""By the quads that are added up in 16 bits: the largest byte, and what the weights of one sign have together."""

TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}


def run(op, inputs, constants=None, *, outputs=1, threads=2, **attributes):
    """Outputs of one operator."""
    constants = constants or {}
    names = [f"x{place}" if isinstance(value, np.ndarray) else value for place, value in enumerate(inputs)]
    given_ = {name: value for name, value in zip(names, inputs, strict=True) if isinstance(value, np.ndarray)}
    node = helper.make_node(op, names, [f"y{n}" for n in range(outputs)], domain=bge_kernels.DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(name, TYPES[value.dtype], None) for name, value in given_.items()],
        [
            helper.make_tensor_value_info(
                f"y{n}", TensorProto.UINT8 if op == "RotateQuantize" and n == 0 else TensorProto.FLOAT, None
            )
            for n in range(outputs)
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(bge_kernels.DOMAIN, 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(bge_kernels.library()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given_)


def floats(shape, seed=0, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def bytes_of(rows, width, added=1, seed=0):
    largest, _ = BUDGETS[added]
    return np.random.default_rng(seed).integers(1, largest + 1, (rows, width)).astype(np.uint8)


def weights(inputs, outputs, added=1, seed=0):
    """Integers (N, K) that stay within the budget, whatever their neighbours."""
    _, most = BUDGETS[added]
    share = most // (2 * added)
    return np.random.default_rng(seed).integers(-share, share + 1, (outputs, inputs)).astype(np.int8)


@built
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("width", "rotated"), [(64, 1), (384, 1), (3072, 1), *[(width, 0) for width in WIDTHS]])
def test_rotate_quantize(rows, width, rotated):
    """Steps are NumPy's to the last bits, and bytes differ where a value lies in the middle of two only."""
    x = floats((rows, width))
    found, steps = run("RotateQuantize", [x], outputs=2, rotated=rotated, levels=float(LEVELS), zero=ZERO)
    wanted, wanted_steps = rotate_quantize(x, rotated=bool(rotated), levels=LEVELS, zero=ZERO)
    np.testing.assert_allclose(steps, wanted_steps, rtol=1e-6 if rotated else 0)
    different = found != wanted
    assert np.abs(found.astype(int) - wanted).max() <= (1 if rotated else 0)
    assert different.mean() < 1e-3


@built
@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-30, 3e38, -3e38])
def test_rows_of_one_value_are_rounded(value):
    """Rows of zeros, of values that no step can tell from zero, and of the largest there are."""
    x = np.full((3, 64), value, dtype=np.float32)
    found, steps = run("RotateQuantize", [x], outputs=2, rotated=0, levels=float(LEVELS), zero=ZERO)
    wanted, wanted_steps = rotate_quantize(x, rotated=False, levels=LEVELS, zero=ZERO)
    assert np.isfinite(steps).all()
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(steps, wanted_steps)


@built
@pytest.mark.parametrize("place", [0, 5, 63, 64, 66])
@pytest.mark.parametrize("rotated", [0, 1])
def test_a_row_with_nan_has_a_step_of_nan(place, rotated):
    """No vector comes of it, and the rows beside it are as they were."""
    x = floats((3, 128 if rotated else 67))
    how = {"outputs": 2, "rotated": rotated, "levels": float(LEVELS), "zero": ZERO}
    clean = run("RotateQuantize", [x], **how)
    x[1, place] = np.nan
    found = run("RotateQuantize", [x], **how)
    assert np.isnan(found[1][1, 0])
    assert all(np.array_equal(a[[0, 2]], b[[0, 2]]) for a, b in zip(found, clean, strict=True))


@built
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [*WIDTHS, 1536])
@pytest.mark.parametrize("gelu", [0, 1])
def test_dequantize_bias_gelu(rows, width, gelu):
    """Without GELU the same bits as NumPy's, with it within 2e-6."""
    sums, steps, bias = floats((rows, width)), np.abs(floats((rows, 1), 1)), floats(width, 2)
    (found,) = run("DequantizeBiasGelu", [sums, steps, bias], gelu=gelu)
    wanted = dequantize_bias_gelu(sums, steps, bias, gelu=bool(gelu))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 if gelu else 0)


@built
@pytest.mark.parametrize("shape", [(64,), (2, 3, 64), (2, 1, 0)])
def test_rows_of_any_rank(shape):
    """The last axis is the row, whatever stands in front of it."""
    x = floats(shape)
    found, steps = run("RotateQuantize", [x], outputs=2, rotated=0, levels=float(LEVELS), zero=ZERO)
    assert found.shape == shape
    assert steps.shape == (*shape[:-1], 1)
    ones = np.ones((*shape[:-1], 1), dtype=np.float32)
    (same,) = run("DequantizeBiasGelu", [x, ones, np.zeros(shape[-1], dtype=np.float32)], gelu=0)
    np.testing.assert_array_equal(same, x)


@built
def test_gelu_is_right_everywhere():
    """Between -12 and 12 within 2e-6 of the exact one, whose erf is within 1e-6."""
    x = np.linspace(-12, 12, 200_001, dtype=np.float32)[None]
    ones, zeros = np.ones((1, 1), dtype=np.float32), np.zeros(x.shape[1], dtype=np.float32)
    (found,) = run("DequantizeBiasGelu", [x, ones, zeros], gelu=1)
    error = np.abs(found - dequantize_bias_gelu(x, ones, zeros, gelu=True))
    assert error.max() < 2e-6
    erf_error = 2 * error[np.abs(x) > 0.1] / np.abs(x[np.abs(x) > 0.1])
    assert erf_error.max() < 1e-6


@built
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [*WIDTHS[1:], 768])
def test_residual_layer_norm(rows, width):
    """Within 1e-5 of float64 for rows far from zero too."""
    x, residual = floats((rows, width)), floats((rows, width), 1) + 5
    scale, bias = floats(width, 2, 1), floats(width, 3, 1)
    (found,) = run("ResidualLayerNorm", [x, residual, scale, bias], epsilon=1e-12)
    wanted = residual_layer_norm(x, residual, scale, bias, epsilon=1e-12)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def linear(rows, inputs, outputs, gelu=0, threads=2, weight=None, bytes_=None, added=1):
    weight = weights(inputs, outputs, added) if weight is None else weight
    bytes_ = bytes_of(rows, inputs, added) if bytes_ is None else bytes_
    steps, scales, bias = np.abs(floats((rows, 1), 1, 0.01)), np.abs(floats(outputs, 2, 0.01)), floats(outputs, 3)
    zero = BUDGETS[added][0] // 2 + 1
    packed, offsets = pack(weight, zero)
    constants = {"w": packed, "o": offsets, "s": scales}
    how = {"threads": threads, "gelu": gelu, "added": added}
    found = run("Int8Linear", [bytes_, steps, *constants, bias], constants, **how)[0]
    return found, int8_linear(bytes_, steps, weight, scales, bias, zero=zero, gelu=bool(gelu))


@built
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 15), (64, 64), (67, 65), (130, 63), (384, 129), (768, 17)])
@pytest.mark.parametrize("threads", [1, 2])
def test_int8_linear(rows, inputs, outputs, threads):
    """The same bits as NumPy's, for tails of rows, inputs and outputs."""
    found, wanted = linear(rows, inputs, outputs, threads=threads)
    np.testing.assert_array_equal(found, wanted)


@built
@pytest.mark.parametrize("rows", [1, 7])
def test_int8_linear_with_gelu(rows):
    """Within 2e-6 of the exact one, relative to the largest."""
    found, wanted = linear(rows, 384, 129, gelu=1)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * max(1, np.abs(wanted).max()))


EXTREMES = {1: [(127, 22), (-127, -22), (75, 74), (127, -127)], 2: [(127, 2), (-2, -127), (65, 64), (127, -127)]}


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


WRONG = [
    ("RotateQuantize", [floats((2, 65))], {}, r"RotateQuantize: expected x .* multiple of 64, found \(2, 65\)"),
    ("DequantizeBiasGelu", [floats((2, 8)), floats((3, 1)), floats(8)], {}, r"expected steps \(2, 1\), found \(3, 1\)"),
    ("DequantizeBiasGelu", [floats((2, 8)), floats((2, 1)), floats(7)], {}, r"expected bias \(8\), found \(7\)"),
    (
        "ResidualLayerNorm",
        [floats((2, 8)), floats((2, 9)), floats(8), floats(8)],
        {},
        r"residual \(2, 8\), found \(2, 9\)",
    ),
    ("ResidualLayerNorm", [floats((2, 8)), floats((2, 8)), floats(8), floats(9)], {}, r"bias \(8\), found \(9\)"),
    (
        "Int8Linear",
        [bytes_of(2, 9), floats((2, 1)), *"wos", floats(4)],
        {},
        r"weight \(1, 3, 64, 4\), found \(1, 2,",
    ),
    ("Int8Linear", [bytes_of(2, 6), floats((2, 2)), *"wos", floats(4)], {}, r"steps \(2, 1\), found \(2, 2\)"),
    ("Int8Linear", [bytes_of(2, 6), floats((2, 1)), *"wos", floats(5)], {}, r"offsets \(5\), found \(4\)"),
    ("Int8Linear", [bytes_of(2, 6), floats((2, 1)), *"wos", floats(65)], {}, r"weight \(2, 2, 64, 4\), found"),
    ("Int8Linear", [bytes_of(2, 6), floats((2, 1)), *"wot", floats(4)], {}, r"scales \(4\), found \(3\)"),
    ("Int8Linear", [bytes_of(2, 6), floats((2, 1)), *"wos", floats((1, 4))], {}, r"bias \(N\), found \(1, 4\)"),
    ("Int8Linear", [bytes_of(2, 6), floats((2, 1)), *"wos", floats(4)], {"added": 3}, "expected added 1 or 2, found 3"),
    ("RotateQuantize", [floats((2, 64))], {"zero": 5}, r"zero - levels and zero \+ levels in 0 to 255"),
]
ATTRIBUTES = {
    "RotateQuantize": {"rotated": 1, "levels": 109.0, "zero": ZERO, "outputs": 2},
    "DequantizeBiasGelu": {"gelu": 0},
    "ResidualLayerNorm": {"epsilon": 1e-12},
    "Int8Linear": {"gelu": 0, "added": 1},
}


@built
@pytest.mark.parametrize(("op", "inputs", "changes", "message"), WRONG)
def test_wrong_shapes_are_errors(op, inputs, changes, message):
    """ONNX Runtime's own error, with the operator's name, what it wants and what it found."""
    known = {**dict(zip("wo", pack(weights(6, 4), ZERO), strict=True)), "s": floats(4), "t": floats(3)}
    constants = {name: known[name] for name in inputs if isinstance(name, str)}
    with pytest.raises(Exception, match=message):
        run(op, inputs, constants, **{**ATTRIBUTES[op], **changes})


BITS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from test_kernels import EXTREMES, floats, linear, run
x = floats((33, 384))
found = [*run("RotateQuantize", [x], outputs=2, rotated=1, levels=109.0, zero=110)]
found += run("DequantizeBiasGelu", [x, floats((33, 1), 1), floats(384, 2)], gelu=1)
found += run("ResidualLayerNorm", [x, floats(x.shape, 1), floats(384, 2), floats(384, 3)], epsilon=1e-12)
found += [linear(33, 384, 129, gelu=1)[0], linear(17, 67, 65)[0], linear(33, 388, 129, added=2)[0]]
for pair in EXTREMES[2]:
    weight = np.tile(np.array(pair, dtype=np.int8), (70, 194))
    found += [linear(7, 388, 70, weight=weight, bytes_=np.full((7, 388), 127, dtype=np.uint8), added=2)[0]]
np.savez(sys.argv[2], *found)
"""


def bits_of(isa, file):
    """Outputs of all operators on one instruction set, in a process of its own; skips where this CPU lacks it."""
    done = subprocess.run(
        [sys.executable, "-c", BITS, Path(__file__).parent, file],
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
    """Those that any CPU has give them, too."""
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
