"""Eight-bit encoders: rotation, the budget of pairs, exact integers, vectors that depend on no other text."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_export import random_checkpoint
from bge_export.checkpoint import Options
from bge_export.export import check_bundle, export
from bge_export.lowering import cpu_int8
from bge_export.request import Request
from bge_onnx import CheckpointError, Embedder, InputError
from tiny import M3_CONFIG, read_weights, store_weights, write_checkpoint

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
LEVELS = cpu_int8.PLAIN
ALL = ("dense", "sparse", "colbert")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A two-layer BERT of width 128 for cpu-int8."""
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), **SIZES)
    request = Request(model="tiny", target="cpu-int8", checkpoint=folder, options=Options(pooling="mean"))
    return export(request, tmp_path_factory.mktemp("bundle") / "tiny").folder


@pytest.fixture(scope="module")
def m3(tmp_path_factory):
    """A two-layer XLM-R of width 128 with all heads for cpu-int8."""
    folder = tmp_path_factory.mktemp("m3")
    random_checkpoint.write(folder, M3_CONFIG | SIZES, seed=0, lower_case=False, heads=ALL)
    request = Request(model="tiny-m3", target="cpu-int8", checkpoint=folder, options=Options(pooling="cls"))
    return Embedder.open(export(request, tmp_path_factory.mktemp("bundle") / "m3").folder, threads=2)


@pytest.mark.parametrize("size", [1, 2, 32, 64, 128])
def test_the_rotation_is_its_own_inverse(size):
    """Rotating twice gives the rows back, and lengths stay."""
    rows = np.random.default_rng(size).standard_normal((5, 256)).astype(np.float32)
    rotated = cpu_int8.rotate(rows, size)
    np.testing.assert_allclose(cpu_int8.rotate(rotated, size), rows, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5)


def test_no_power_of_two_is_no_rotation():
    with pytest.raises(ValueError, match="expected a power of two, found 48"):
        cpu_int8.hadamard(48)


def pair_sums(integers):
    """Of each pair of neighbours of one sign (N, K) the sum without its sign; 0 for the others."""
    pairs = integers.astype(np.int64).reshape(len(integers), -1, 2)
    return np.where(pairs[..., 0] * pairs[..., 1] > 0, np.abs(pairs.sum(axis=2)), 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["normal", "heavy", "extreme"]))
def test_weights_stay_within_the_budget(seed, kind):
    """No pair of weights can overflow 16 bits; the error is that of rounding where no pair was over."""
    rng = np.random.default_rng(seed)
    weight = {
        "normal": lambda: rng.standard_normal((7, 64)),
        "heavy": lambda: rng.standard_t(2, (7, 64)),
        "extreme": lambda: rng.choice([-1.0, 1.0, 0.0], (7, 64)),
    }[kind]().astype(np.float32)
    integers, scales = cpu_int8.quantize(weight, LEVELS.pair)
    assert np.abs(integers.astype(int)).max() <= 127
    assert pair_sums(integers).max() * (LEVELS.rows + LEVELS.zero) <= np.iinfo(np.int16).max
    free = pair_sums(integers) < LEVELS.pair - 1
    errors = np.abs(integers * scales[:, None] - weight).reshape(7, -1, 2).max(axis=2)
    assert (errors <= scales[:, None] * 0.5001)[free].all()


def test_a_row_of_zeros_is_zeros():
    integers, scales = cpu_int8.quantize(np.zeros((2, 64), dtype=np.float32), LEVELS.pair)
    assert not integers.any()
    assert np.isfinite(scales).all()


def with_outputs(folder, names):
    """A session of the bundle's graph that gives values inside it too."""
    model = onnx.load(folder / "model.onnx", load_external_data=True)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return model, ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def products(folder, ids):
    """Of each integer product of the graph on a text: bytes (rows, K), weights (K, N), scales (N,), the result."""
    model = onnx.load(folder / "model.onnx", load_external_data=True)
    nodes = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names = [name for node in nodes for name in (node.input[0], node.output[0])]
    _, session = with_outputs(folder, dict.fromkeys(names))
    values = dict(zip(names, session.run(names, {"input_ids": ids}), strict=True))
    return [
        (values[node.input[0]], weights[node.input[1]], weights[node.input[3]], values[node.output[0]])
        for node in nodes
    ]


def test_products_are_those_of_integers(bundle):
    """Every product of the graph equals numpy's on the same bytes and weights, to the last bit; all pairs fit."""
    found = products(bundle, np.random.default_rng(0).integers(104, 400, (2, 33)))
    assert len(found) == 12
    for bytes_, weight, scales, result in found:
        assert pair_sums(weight.T).max() * 181 <= np.iinfo(np.int16).max
        assert bytes_.min() >= 1
        assert bytes_.max() <= 181
        exact = (bytes_.astype(np.int64) - LEVELS.zero) @ weight.astype(np.int64)
        np.testing.assert_array_equal(result, exact.astype(np.float32) * scales)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_pairs_do_not_saturate(sign):
    """Pairs at the budget against the largest byte, alone and between opposite ones, give numpy's integers."""
    weight = np.tile(np.array([[91, 90], [127, 54], [127, -127], [54, 127]], dtype=np.int8) * sign, (16, 8)).T
    bytes_ = np.full((5, len(weight)), LEVELS.rows + LEVELS.zero, dtype=np.uint8)
    bytes_[1::2, ::3] = 1
    node = onnx.helper.make_node("MatMulInteger", ["a", "b", "z"], ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, list(bytes_.shape))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, None)],
        [onnx.numpy_helper.from_array(weight, "b"), onnx.numpy_helper.from_array(np.array(91, dtype=np.uint8), "z")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": bytes_})
    np.testing.assert_array_equal(found, (bytes_.astype(int) - 91) @ weight.astype(int))


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.sampled_from([1, 2, 3, 8, 17, 33, 64]), min_size=1, max_size=10), seed=st.integers(0, 9))
def test_a_text_depends_on_no_other(m3, lengths, seed):
    """All heads of a text have the same bits alone, in any batch and with one thread or two."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 900, length) for length in lengths]
    together = m3.embed_token_ids(texts, heads=ALL, budget_tokens=150)
    one_thread = Embedder.open(m3.bundle.folder, threads=1)
    for index, text in enumerate(texts):
        for embedder in (m3, one_thread):
            alone = embedder.embed_token_ids([text], heads=ALL)
            np.testing.assert_array_equal(alone.dense[0], together.dense[index])
            np.testing.assert_array_equal(alone.colbert[0], together.colbert[index])
            assert alone.sparse[0] == together.sparse[index]


def test_heads_keep_their_form(m3):
    """Sparse weights keep the tokens of the text as keys, ColBERT rows have length 1."""
    texts = ["what is BM25?", "a b c a", ""]
    found = m3.embed(texts, heads=ALL)
    for text, sparse, rows in zip(m3.tokenizer.encode(texts), found.sparse, found.colbert, strict=True):
        assert set(sparse) <= set(text.tolist())
        assert min(sparse.values(), default=1) > 0
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.dense, axis=1), 1, atol=1e-6)


def test_the_check_holds_the_graph_against_the_same_rounding(bundle, tmp_path):
    """PyTorch with the graph's weights is within the limit; with a weight that the graph has not, it is not."""
    parity = json.loads((bundle / "bundle.json").read_text())["parity"]
    assert "weights rounded" in parity["reference"]
    assert parity["heads"]["dense"]["measure"] == "1 - cosine"
    assert 0 < parity["heads"]["dense"]["max_error"] < 1e-3
    other = write_checkpoint(tmp_path / "other", seed=1, **SIZES)
    with pytest.raises(CheckpointError, match="found others"):
        check_bundle(bundle, other)


def test_a_width_that_cannot_be_rotated(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", **(SIZES | {"hidden_size": 96}))
    request = Request(model="tiny", target="cpu-int8", checkpoint=folder, options=Options(pooling="cls"))
    with pytest.raises(CheckpointError, match=r"expected hidden_size to be a multiple of 64 .* found 96"):
        export(request, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["bert", "m3"])
def test_weights_stored_in_half(tmp_path, tiny_checkpoint, m3_checkpoint, kind):
    """Half the file; the vectors are PyTorch's with the same rounded weights, to float32's limit."""
    checkpoint = tiny_checkpoint if kind == "bert" else m3_checkpoint
    request = Request(model="tiny", target="cpu-fp32", checkpoint=checkpoint, options=Options(pooling="cls"))
    whole = export(request, tmp_path / "whole")
    half = export(dataclasses.replace(request, weights="fp16"), tmp_path / "half")
    assert half.parity.passed
    assert half.parity.heads["dense"].limit == 2e-5
    sizes = [bundle.files["model.onnx_data"].size_bytes for bundle in (half, whole)]
    assert sizes[0] < 0.75 * sizes[1]  # tiny vectors are padded to pages
    assert check_bundle(half.folder, checkpoint).passed
    found, wanted = (Embedder.open(bundle.folder).embed(["what is BM25?"]).dense for bundle in (half, whole))
    assert 0 < np.abs(found - wanted).max() < 1e-2


def test_weights_too_large_for_half(tmp_path):
    """A weight over float16's range is refused, and named."""
    folder = write_checkpoint(tmp_path / "checkpoint")
    weights = read_weights(folder)
    weights["encoder.layer.0.output.dense.weight"][0, 0] = 1e5
    store_weights(folder, weights)
    request = Request(
        model="tiny", target="cpu-fp32", weights="fp16", checkpoint=folder, options=Options(pooling="cls")
    )
    with pytest.raises(CheckpointError, match=r"layer\.0\.output\.dense\.weight: expected weights up to 65504.*1e\+05"):
        export(request, tmp_path / "bundle")


def test_other_targets_have_no_halves(tmp_path, tiny_checkpoint):
    options = Options(pooling="cls")
    request = Request(model="tiny", target="portable", weights="fp16", checkpoint=tiny_checkpoint, options=options)
    with pytest.raises(InputError, match="expected fp32 for all but the target cpu-fp32"):
        export(request, tmp_path / "bundle")
