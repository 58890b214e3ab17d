"""The custom operators: against NumPy where tails break, the same bits on every instruction set, in a bundle."""

from __future__ import annotations

import json
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
from bge_export.checkpoint import Options
from bge_export.export import check_bundle, export
from bge_export.request import Request
from bge_kernels.dequantize_bias_gelu.reference import dequantize_bias_gelu
from bge_kernels.int8_linear.reference import int8_linear, pack
from bge_kernels.residual_layer_norm.reference import residual_layer_norm
from bge_kernels.rotate_quantize.reference import rotate_quantize
from bge_onnx import BundleError, Embedder
from bge_onnx import kernels as kernels_module
from tiny import edit_json, write_checkpoint

built = pytest.mark.skipif(not bge_kernels.library(), reason="built with BGE_KERNELS=1 only")

ROWS = [1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 63, 65, 127, 129, 193]
WIDTHS = [1, 3, 15, 16, 17, 63, 65, 130]
LEVELS, ZERO, PAIR = 109, 110, 149
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


def bytes_of(rows, width, seed=0):
    return np.random.default_rng(seed).integers(ZERO - LEVELS, ZERO + LEVELS + 1, (rows, width)).astype(np.uint8)


def weights(inputs, outputs, seed=0):
    """Integers (N, K) of which no two of one sign exceed PAIR, whatever their neighbours."""
    return np.random.default_rng(seed).integers(-(PAIR // 2), PAIR // 2 + 1, (outputs, inputs)).astype(np.int8)


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


def linear(rows, inputs, outputs, gelu=0, threads=2, weight=None, bytes_=None):
    weight = weights(inputs, outputs) if weight is None else weight
    bytes_ = bytes_of(rows, inputs) if bytes_ is None else bytes_
    steps, scales, bias = np.abs(floats((rows, 1), 1, 0.01)), np.abs(floats(outputs, 2, 0.01)), floats(outputs, 3)
    packed, offsets = pack(weight, ZERO)
    constants = {"w": packed, "o": offsets, "s": scales}
    found = run("Int8Linear", [bytes_, steps, *constants, bias], constants, threads=threads, gelu=gelu)[0]
    return found, int8_linear(bytes_, steps, weight, scales, bias, zero=ZERO, gelu=bool(gelu))


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


@built
@pytest.mark.parametrize("byte", [ZERO - LEVELS, ZERO + LEVELS])
@pytest.mark.parametrize("pair", [(127, 22), (-127, -22), (75, 74), (127, -127)])
def test_extreme_operands_do_not_saturate(byte, pair):
    """All bytes at their end and all neighbours at the budget of a pair: the sums are exact."""
    weight = np.tile(np.array(pair, dtype=np.int8), (70, 192))
    found, wanted = linear(7, 384, 70, weight=weight, bytes_=np.full((7, 384), byte, dtype=np.uint8))
    np.testing.assert_array_equal(found, wanted)


@built
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 300), st.integers(1, 200), st.integers(1, 3))
def test_any_shape(rows, inputs, outputs, threads):
    """Fuzzed shapes, no rows among them."""
    found, wanted = linear(rows, inputs, outputs, threads=threads)
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
    ("RotateQuantize", [floats((2, 64))], {"zero": 5}, r"zero - levels and zero \+ levels in 0 to 255"),
]
ATTRIBUTES = {
    "RotateQuantize": {"rotated": 1, "levels": 109.0, "zero": ZERO, "outputs": 2},
    "DequantizeBiasGelu": {"gelu": 0},
    "ResidualLayerNorm": {"epsilon": 1e-12},
    "Int8Linear": {"gelu": 0},
}


@built
@pytest.mark.parametrize(("op", "inputs", "changes", "message"), WRONG)
def test_wrong_shapes_are_errors(op, inputs, changes, message):
    """ONNX Runtime's own error, with the operator's name, what it wants and what it found."""
    known = {**dict(zip("wo", pack(weights(6, 4), ZERO), strict=True)), "s": floats(4), "t": floats(3)}
    constants = {name: known[name] for name in inputs if isinstance(name, str)}
    with pytest.raises(Exception, match=message):
        run(op, inputs, constants, **{**ATTRIBUTES[op], **changes})


def isas():
    """The instruction sets that this CPU has and the library was built for."""
    code = "import onnxruntime as ort, sys; ort.SessionOptions().register_custom_ops_library(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(bge_kernels.library())],
        env={**os.environ, "BGE_KERNELS_ISA": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.split("expected one of ")[1].split(", found none")[0].split(", ")


@built
def test_every_instruction_set_gives_the_same_bits(tmp_path):
    """All operators, in a process for each."""
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
import numpy as np
from test_kernels import bytes_of, floats, linear, run
x = floats((33, 384))
found = [*run("RotateQuantize", [x], outputs=2, rotated=1, levels=109.0, zero=110)]
found += run("DequantizeBiasGelu", [x, floats((33, 1), 1), floats(384, 2)], gelu=1)
found += run("ResidualLayerNorm", [x, floats(x.shape, 1), floats(384, 2), floats(384, 3)], epsilon=1e-12)
found += [linear(33, 384, 129, gelu=1)[0], linear(17, 67, 65)[0]]
np.savez(sys.argv[1], *found)
"""
    arrays = {}
    for isa in isas():
        file = tmp_path / f"{isa}.npz"
        environment = {**os.environ, "BGE_KERNELS_ISA": isa}
        subprocess.run([sys.executable, "-c", code, file], env=environment, check=True)
        arrays[isa] = list(np.load(file).values())
    assert "baseline" in arrays
    for isa, found in arrays.items():
        assert all(np.array_equal(a, b) for a, b in zip(found, arrays["baseline"], strict=True)), isa


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A two-layer BERT of a width that Hadamard matrices divide."""
    folder = tmp_path_factory.mktemp("wide")
    return write_checkpoint(folder, hidden_size=64, intermediate_size=192, num_attention_heads=2)


def export_kernels(checkpoint, out, kernels="linear"):
    options = Options(pooling="cls")
    request = Request(model="wide", target="cpu-int8", checkpoint=checkpoint, kernels=kernels, options=options)
    return export(request, out)


@built
@pytest.mark.parametrize("kernels", ["passes", "linear"])
def test_a_bundle_with_kernels_is_within_the_limit(wide, tmp_path, kernels):
    """The export's own check passes, its graph has the operators, and vectors do not depend on the batch."""
    bundle = export_kernels(wide, tmp_path / "bundle", kernels)
    assert bundle.kernels == (bge_kernels.NAME,)
    assert bundle.parity
    assert bundle.parity.passed
    graph = onnx.load(bundle.folder / bundle.graph, load_external_data=False).graph
    operators = [node.op_type for node in graph.node]
    linears = 12
    assert operators.count("Int8Linear") == linears * (kernels == "linear")
    assert operators.count("DequantizeBiasGelu") == linears * (kernels == "passes")
    assert "Gelu" not in operators
    embedder = Embedder.open(bundle.folder, threads=2)
    texts = ["a", "one two", "one two", "b " * 40, "c " * 300]
    together = embedder.embed(texts).dense
    assert all(np.array_equal(embedder.embed([text]).dense[0], row) for text, row in zip(texts, together, strict=True))


@built
def test_a_bundle_with_kernels_can_be_checked_again(wide, tmp_path):
    bundle = export_kernels(wide, tmp_path / "bundle")
    assert check_bundle(bundle.folder, wide).passed


@pytest.mark.parametrize(
    ("kernels", "library", "found"),
    [
        (["bge_kernels 1"], None, "an installation without any"),
        (["bge_kernels 99"], Path("library.so"), "bge_kernels 1"),
    ],
)
def test_a_bundle_without_its_kernels_is_refused(tiny_bundle, tmp_path, monkeypatch, kernels, library, found):
    """It says what was wanted and what to install."""
    folder = tmp_path / "bundle"
    subprocess.run(["cp", "-r", tiny_bundle, folder], check=True)
    edit_json(folder / "bundle.json", kernels=kernels)
    monkeypatch.setattr(kernels_module, "library", lambda: library)
    with pytest.raises(BundleError, match=rf"expected the operators {kernels[0]}.* found {found}.*\n.*BGE_KERNELS=1"):
        Embedder.open(folder)


def test_other_targets_have_no_kernels(tiny_checkpoint, tmp_path):
    request = Request(
        model="tiny", target="cpu-fp32", checkpoint=tiny_checkpoint, kernels="linear", options=Options(pooling="cls")
    )
    with pytest.raises(ValueError, match="kernels: expected none"):
        export(request, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_manifest_of_a_plain_bundle_names_none(tiny_bundle):
    assert json.loads((tiny_bundle / "bundle.json").read_text())["kernels"] == []
