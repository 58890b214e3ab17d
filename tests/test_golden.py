"""Vectors that other people computed with the same weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bge_export.checkpoint import catalog
from bge_export.checkpoint.recipe import Options, read_recipe
from bge_export.export import export
from bge_export.lowering.limits import Limits
from bge_export.lowering.lower import Lowering
from bge_export.proof import check
from bge_export.proof.compare import compare
from bge_export.request import Request
from bge_onnx import Embedder


@pytest.fixture(scope="session")
def minilm_embedder(minilm_bundle):
    return Embedder.open(minilm_bundle)


@pytest.mark.checkpoint
@pytest.mark.parametrize(
    ("file", "limit"),
    [("tei_fp32_mean_single.json", 3e-4), ("tei_fp32_mean_batch.json", 3e-4), ("tei_fp16_mean_single.json", 5e-4)],
)
def test_minilm_is_text_embeddings_inferences(minilm_embedder, data, file, limit):
    """Whole vectors agree with Hugging Face's TEI, as far as PyTorch's own do (SOURCE.md there: cosine 0.9999990)."""
    golden = json.loads((data / "golden-minilm" / file).read_text())
    wanted = np.array(golden["vectors"], dtype=np.float32)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = minilm_embedder.embed(golden["texts"]).dense
    assert np.abs(found - wanted).max() < limit
    assert (found * wanted).sum(axis=1).min() > 0.99999


@pytest.mark.checkpoint
def test_minilm_is_fastembeds(minilm_embedder, data):
    """The first components agree with those in fastembed's tests."""
    golden = json.loads((data / "golden-minilm/fastembed_canonical.json").read_text())
    found = minilm_embedder.embed(golden["texts"]).dense
    np.testing.assert_allclose(found[:, :5], golden["prefix"], atol=2e-5)


@pytest.mark.checkpoint
def test_minilm_parity_was_recorded(minilm_embedder, minilm):
    """The bundle carries the proof of its export, and a fresh comparison agrees with it."""
    parity = minilm_embedder.bundle.parity
    assert parity.heads["dense"].max_error < 2e-6
    recipe = read_recipe(minilm, None, 512, Options())
    assert compare(minilm_embedder, check.expect(minilm, recipe, Lowering({})), Limits()) == parity


CANONICAL = ("BAAI/bge-small-en-v1.5", "BAAI/bge-small-zh-v1.5", "BAAI/bge-base-en-v1.5")


@pytest.mark.checkpoint
@pytest.mark.parametrize("model", CANONICAL)
def test_published_bge_vectors(data, tmp_path, model):
    """With BAAI's real weights the first components are those in fastembed's tests."""
    checkpoints = os.environ.get("BGE_CHECKPOINTS")
    folder = Path(checkpoints or "") / model.split("/")[1]
    if not checkpoints or not folder.is_dir():
        pytest.skip(f"needs the weights of {model} in a folder of that name under BGE_CHECKPOINTS")
    assert catalog.find(model)
    export(Request(model=model, target="cpu-fp32", checkpoint=folder), tmp_path / "bundle")
    (golden,) = [
        row for row in json.loads((data / "golden-bge/fastembed_canonical.json").read_text()) if row["model"] == model
    ]
    found = Embedder.open(tmp_path / "bundle").embed([golden["text"]]).dense
    np.testing.assert_allclose(found[0, :5], golden["prefix"], atol=golden["atol"])
