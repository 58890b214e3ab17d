"""Eight-bit encoders: exact integers, heads, vectors that depend on no other text."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.lowering import half
from bge_export.lowering.int8 import calibrate
from bge_export.lowering.int8 import operators as int8_kernels
from bge_export.lowering.int8 import rounding as int8
from bge_export.lowering.int8.operators import Int8
from bge_export.lowering.targets import TARGETS
from bge_export.models import random_checkpoint
from bge_export.proof import check, compare
from bge_export.recheck import check_bundle, recipe_of
from bge_export.request import Request
from bge_onnx import CheckpointError, Embedder, InputError
from bge_onnx.run.onnx_runtime import ort
from tiny import M3_CONFIG, read_weights, store_weights, sums_of_one_sign, write_checkpoint

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
ALL = ("dense", "sparse", "colbert")
EIGHT = int8.EIGHT_BITS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A two-layer BERT of width 128."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), **SIZES)


@pytest.fixture(scope="module", params=["none", "random"])
def either_bundle(request, checkpoint, tmp_path_factory):
    """The checkpoint for cpu-int8, calibrated with random ids and not at all."""
    texts = calibrate.read(request.param)
    options = Options(pooling="mean")
    wanted = Request(
        model="tiny", target="cpu-int8", kernels=None, checkpoint=checkpoint, calibration=texts, options=options
    )
    return export(wanted, tmp_path_factory.mktemp("bundle") / "tiny").folder


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    """The checkpoint for cpu-int8."""
    request = Request(
        model="tiny", target="cpu-int8", kernels=None, checkpoint=checkpoint, options=Options(pooling="mean")
    )
    return export(request, tmp_path_factory.mktemp("bundle") / "tiny").folder


@pytest.fixture(scope="module")
def m3(tmp_path_factory):
    """A two-layer XLM-R of width 128 with all heads for cpu-int8."""
    folder = tmp_path_factory.mktemp("m3")
    random_checkpoint.write(folder, M3_CONFIG | SIZES, seed=0, lower_case=False, heads=ALL)
    request = Request(
        model="tiny-m3", target="cpu-int8", kernels=None, checkpoint=folder, options=Options(pooling="cls")
    )
    return Embedder.open(export(request, tmp_path_factory.mktemp("bundle") / "m3").folder, threads=2)


def products(folder, ids):
    """Of each integer product of the graph on a text: bytes (rows, K), weights (K, N), scales (N,), the result."""
    model = onnx.load(folder / "model.onnx", load_external_data=True)
    nodes = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names = [name for node in nodes for name in (node.input[0], node.output[0])]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # as the runtime has it
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = dict(zip(names, session.run(names, {"input_ids": ids}), strict=True))
    return [
        (values[node.input[0]], weights[node.input[1]], weights[node.input[3]], values[node.output[0]])
        for node in nodes
    ]


def test_products_are_those_of_integers(either_bundle):
    """Every product of the graph equals numpy's on the same bytes and weights, to the last bit. Two products of
    neighbours fit into 16 bits, where AVX2 without VNNI adds them, on this text and on any.
    """
    found = products(either_bundle, np.random.default_rng(0).integers(104, 400, (2, 33)))
    assert len(found) == 12
    largest = EIGHT.levels + EIGHT.zero
    for bytes_, weight, scales, result in found:
        assert sums_of_one_sign(weight.T).max() * largest <= np.iinfo(np.int16).max
        assert bytes_.min() >= 1
        assert EIGHT.zero < bytes_.max() <= largest
        rows, columns = bytes_.reshape(-1, len(weight)).astype(np.int32), weight.astype(np.int32)
        for row in rows[:8]:
            pairs = (row[:, None] * columns).reshape(len(columns) // 2, 2, -1).sum(axis=1)
            assert np.abs(pairs).max() <= np.iinfo(np.int16).max
        exact = (bytes_.astype(np.int64) - EIGHT.zero) @ weight.astype(np.int64)
        np.testing.assert_array_equal(result, exact.astype(np.float32) * scales)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_pairs_do_not_saturate(sign):
    """Pairs at the budget against the largest byte, alone and between opposite ones, give numpy's integers."""
    weight = np.tile(np.array([[75, 74], [127, 22], [127, -127], [22, 127]], dtype=np.int8) * sign, (16, 8)).T
    bytes_ = np.full((5, len(weight)), EIGHT.levels + EIGHT.zero, dtype=np.uint8)
    bytes_[1::2, ::3] = 1
    zero = np.array(EIGHT.zero, dtype=np.uint8)
    node = onnx.helper.make_node("MatMulInteger", ["a", "b", "z"], ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, list(bytes_.shape))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, None)],
        [
            onnx.numpy_helper.from_array(weight, "b"),
            onnx.numpy_helper.from_array(zero, "z"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": bytes_})
    np.testing.assert_array_equal(found, (bytes_.astype(int) - EIGHT.zero) @ weight.astype(int))


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


def test_a_corpus_has_the_vectors_of_single_texts(m3):
    """Work that is spread over cores gives the bits of a text alone."""
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 900, length) for length in (300, 300, 411, 57, 57, 57, 128, 1000)]
    together = m3.embed_token_ids(texts).dense
    alone = [m3.embed_token_ids([text]).dense[0] for text in texts]
    np.testing.assert_array_equal(together, alone)


def test_the_check_holds_the_graph_against_the_same_rounding(bundle, checkpoint, tmp_path):
    """PyTorch with the graph's weights is within the limit; with one matrix of another model, it is not."""
    opened = Embedder.open(bundle)
    parity = opened.bundle.parity
    assert "rounded as the bundle is" in parity.reference
    assert (parity.heads["dense"].measure, parity.heads["dense"].limit) == ("1 - cosine", 0.002)
    assert parity.heads["dense"].max_error < 1e-5
    other = shutil.copytree(checkpoint, tmp_path / "other")
    weights = read_weights(other)
    weights["encoder.layer.1.intermediate.dense.weight"] *= -1
    store_weights(other, weights)
    config = SimpleNamespace(**SIZES, num_hidden_layers=2)
    recipe, limits = recipe_of(opened.bundle), TARGETS["bert"]["cpu-int8"].limits(config, EIGHT)
    for folder, right in ((checkpoint, True), (other, False)):
        hessians = calibrate.hessians(checkpoint, recipe, calibrate.RANDOM_IDS)
        expected = check.expect(folder, recipe, int8_kernels.lowering(config, Int8(hessians=hessians)))
        found = compare.compare(opened, expected, limits)
        assert found.passed == right
        assert found.heads["dense"].max_error < 1e-5 or not right
    with pytest.raises(CheckpointError, match="found others"):
        check_bundle(bundle, other)


def test_a_width_that_cannot_be_rotated(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", **(SIZES | {"hidden_size": 96}))
    request = Request(model="tiny", target="cpu-int8", kernels=None, checkpoint=folder, options=Options(pooling="cls"))
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


def test_heads_in_float32_are_stored_in_half_too(tmp_path, m3_checkpoint):
    """Fine-tuned heads are not float16 already: PyTorch's are rounded like ours."""
    folder = shutil.copytree(m3_checkpoint, tmp_path / "checkpoint")
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        state = torch.load(folder / name)
        torch.save({key: value.float() * 1.0001 for key, value in state.items()}, folder / name)
    request = Request(
        model="tiny", target="cpu-fp32", weights="fp16", checkpoint=folder, options=Options(pooling="cls")
    )
    assert export(request, tmp_path / "bundle").parity.passed


def test_matrices_alone_are_halved():
    """A matrix becomes the nearest float16 values, a vector stays as it is."""
    matrix = np.random.default_rng(0).standard_normal((9, 7)).astype(np.float32)
    np.testing.assert_array_equal(half.rounded("name", matrix), matrix.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(half.rounded("name", matrix[0]), matrix[0])


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


def test_rows_of_zeros(tmp_path):
    """A layer whose input rows are zeros gives finite vectors, PyTorch's."""
    folder = write_checkpoint(tmp_path / "checkpoint", **SIZES)
    weights = read_weights(folder)
    for name in ("weight", "bias"):
        weights[f"encoder.layer.0.attention.output.LayerNorm.{name}"].zero_()
    store_weights(folder, weights)
    request = Request(model="tiny", target="cpu-int8", kernels=None, checkpoint=folder, options=Options(pooling="mean"))
    bundle = export(request, tmp_path / "bundle")
    assert bundle.parity.heads["dense"].max_error < 1e-3
    found = products(bundle.folder, np.array([[101, 200, 102]]))
    assert any((bytes_ == EIGHT.zero).all() for bytes_, *_ in found)
