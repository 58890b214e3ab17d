"""The custom operators: against NumPy where tails break, and errors that name what was wanted."""

from __future__ import annotations

import numpy as np
import pytest

from bge_kernels.dequantize_bias_gelu.reference import dequantize_bias_gelu
from bge_kernels.int8_linear.reference import pack
from bge_kernels.residual_layer_norm.reference import residual_layer_norm
from bge_kernels.rotate_quantize.reference import rotate_quantize
from one_operator import LEVELS, ROWS, ZERO, built, bytes_of, floats, run, weights

WIDTHS = [1, 3, 15, 16, 17, 63, 65, 130]


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
    rotated = int(shape[-1] % 64 == 0)
    found, steps = run("RotateQuantize", [x], outputs=2, rotated=rotated, levels=float(LEVELS), zero=ZERO)
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
