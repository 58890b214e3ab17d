"""BAAI/bge-m3's published values, where its checkpoint is given: BGE_CHECKPOINTS=/path with a folder bge-m3."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bge_export.export import export
from bge_export.request import Request
from bge_onnx.flag import BGEM3FlagModel

pytestmark = pytest.mark.checkpoint
EVERYTHING = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}


@pytest.fixture(scope="module")
def published(data):
    """The published examples by id."""
    path = data.parent / "reference/published_examples.json"
    if not path.is_file():
        pytest.skip(f"needs the published examples at {path}")
    return {row["id"]: row for row in json.loads(path.read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """bge-m3 from the checkpoint under BGE_CHECKPOINTS, exported for cpu-fp32."""
    checkpoints = os.environ.get("BGE_CHECKPOINTS")
    folder = Path(checkpoints or "") / "bge-m3"
    if not checkpoints or not folder.is_dir():
        pytest.skip("needs the weights of BAAI/bge-m3 in a folder bge-m3 under BGE_CHECKPOINTS")
    out = tmp_path_factory.mktemp("m3") / "bundle"
    export(Request(model="BAAI/bge-m3", target="cpu-fp32", checkpoint=folder), out)
    return BGEM3FlagModel(str(out))


@pytest.fixture(scope="module")
def both(model, published):
    """The tutorial's two queries and two passages with every head."""
    inputs = published["m3-dense-fp32"]["inputs"]
    return model.encode(inputs["s1"], **EVERYTHING), model.encode(inputs["s2"], **EVERYTHING)


def weights_close(found, wanted, atol):
    assert found.keys() == wanted.keys()
    assert {key: float(value) for key, value in found.items()} == pytest.approx(wanted, abs=atol)


def test_tokens(model, published):
    """The tokenizer gives the published ids."""
    example = published["m3-tokenizer-tei"]
    found = model.embedder.tokenizer.encode(example["inputs"]["sentences"])
    assert [row.tolist() for row in found] == example["expected"]["ids"]


def test_dense(both, published):
    """Dense similarities are those of the tutorial, run in float32."""
    found = both[0]["dense_vecs"] @ both[1]["dense_vecs"].T
    np.testing.assert_allclose(found, published["m3-dense-fp32"]["expected"]["similarity"], atol=1e-4)


def test_components(model, published):
    """Components of dense vectors and of ColBERT rows."""
    row = published["m3-vectors-fp32"]
    found = model.encode(row["inputs"]["sentences"], max_length=10, **EVERYTHING)
    np.testing.assert_allclose(found["dense_vecs"][:, :3], row["expected"]["dense_first3"], atol=1e-5)
    np.testing.assert_allclose(found["dense_vecs"][:, -3:], row["expected"]["dense_last3"], atol=1e-5)
    for text, rows in row["expected"]["colbert_rows"].items():
        vectors = found["colbert_vecs"][int(text)][[int(place) for place in rows]]
        np.testing.assert_allclose(vectors[:, :3], [wanted["first3"] for wanted in rows.values()], atol=1e-5)
        np.testing.assert_allclose(vectors[:, -3:], [wanted["last3"] for wanted in rows.values()], atol=1e-5)


def test_component_sums(model, published):
    """The sums over all components, which fastembed-rs has of BAAI's own ONNX file."""
    row = published["fastembedrs-sum-bge-m3"]
    found = model.encode(row["inputs"]["sentences"])["dense_vecs"].sum(axis=1)
    np.testing.assert_allclose(found, row["expected"]["component_sum"], atol=3e-3)


@pytest.mark.parametrize(
    ("example", "tolerance"),
    [("m3-sparse-ids-fp32", 1e-4), ("m3-fastembedrs-sparse-fp32", 1e-4), ("m3-vllm-sparse-hi", 3e-3)],
)
def test_sparse(model, published, example, tolerance):
    """Sparse weights have the published keys and values."""
    row = published[example]
    found = model.encode(row["inputs"]["sentences"], return_sparse=True)["lexical_weights"]
    for weights, wanted in zip(found, row["expected"]["lexical_weights"], strict=True):
        weights_close(weights, wanted, tolerance)


def test_sparse_tokens(model, published):
    """Token texts instead of ids, as the tutorial prints them."""
    row = published["m3-sparse-tokens-fp32"]
    found = model.convert_id_to_token(model.encode(row["inputs"]["s1"], return_sparse=True)["lexical_weights"])
    for weights, wanted in zip(found, row["expected"]["tokens"], strict=True):
        weights_close(weights, wanted, 1e-4)


@pytest.mark.parametrize("passage", [0, 1])
def test_scores(model, both, published, passage):
    """Lexical, ColBERT and hybrid scores of the first query with each passage."""
    queries, passages = both
    key = f"s1_0__s2_{passage}"
    lexical = model.compute_lexical_matching_score(queries["lexical_weights"][0], passages["lexical_weights"][passage])
    colbert = float(model.colbert_score(queries["colbert_vecs"][0], passages["colbert_vecs"][passage]))
    dense = float(queries["dense_vecs"][0] @ passages["dense_vecs"][passage])
    assert lexical == pytest.approx(published["m3-lexical-score-fp32"]["expected"][key], abs=1e-4)
    assert colbert == pytest.approx(published["m3-colbert-fp32"]["expected"][key], abs=1e-4)
    assert (dense + lexical + colbert) / 3 == pytest.approx(published["m3-hybrid-fp32"]["expected"][key], abs=1e-4)


@pytest.mark.parametrize("mode", ["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"])
def test_compute_score(model, published, mode):
    """The README's scores, which were computed in float16."""
    row = published["m3-readme-compute-score-fp16"]
    pairs = [(query, passage) for query in row["inputs"]["s1"] for passage in row["inputs"]["s2"]]
    found = model.compute_score(pairs, max_passage_length=128, weights_for_different_modes=[0.4, 0.2, 0.4])
    np.testing.assert_allclose(found[mode], row["expected"][mode], atol=2e-3)


def test_colbert_shapes(both, published):
    """A row for every token but the first."""
    expected = published["m3-colbert-fp32"]["expected"]
    assert list(both[0]["colbert_vecs"][0].shape) == expected["shape_s1_0"]
    assert list(both[1]["colbert_vecs"][0].shape) == expected["shape_s2_0"]
