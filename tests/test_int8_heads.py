"""bge-m3's heads behind an encoder of eight bits: what they keep, and how their error is measured."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.lowering.int8 import cpu_int8
from bge_export.lowering.int8.rounding import EIGHT_BITS
from bge_export.models import random_checkpoint
from bge_export.proof import compare
from bge_export.proof.compare import Expected
from bge_export.request import Request
from bge_onnx import Embedder
from tiny import M3_CONFIG

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
ALL = ("dense", "sparse", "colbert")
TEXTS = ["what is BM25?", "a b c a", "", "one two three four five six seven eight nine ten " * 8]
SMALL = 0.05  # of the largest weight: what eight bits may turn to nothing, or make of it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A two-layer XLM-R of width 128 with all heads."""
    folder = tmp_path_factory.mktemp("m3")
    random_checkpoint.write(folder, M3_CONFIG | SIZES, seed=0, lower_case=False, heads=ALL)
    return folder


def exported(checkpoint, out, target="cpu-int8"):
    request = Request(model="tiny-m3", target=target, checkpoint=checkpoint, options=Options(pooling="cls"))
    return Embedder.open(export(request, out).folder)


@pytest.fixture(scope="module")
def int8(checkpoint, tmp_path_factory):
    """It for cpu-int8."""
    return exported(checkpoint, tmp_path_factory.mktemp("bundle") / "int8")


def test_heads_keep_their_form(int8, checkpoint, tmp_path):
    """Sparse dictionaries keep float32's keys but for the smallest, ColBERT rows and dense vectors length 1."""
    found = int8.embed(TEXTS, heads=ALL)
    wanted = exported(checkpoint, tmp_path / "fp32", "cpu-fp32").embed(TEXTS, heads=ALL)
    least = SMALL * max(max(row.values(), default=0) for row in wanted.sparse)
    assert any(wanted.sparse)
    for ours, theirs, text in zip(found.sparse, wanted.sparse, int8.tokenizer.encode(TEXTS), strict=True):
        assert {key for key, weight in theirs.items() if weight > least} <= set(ours)
        assert {key for key, weight in ours.items() if weight > least} <= set(theirs)
        assert set(ours) <= set(text.tolist())
        assert min(ours.values(), default=1) > 0
    for ours, theirs in zip(found.colbert, wanted.colbert, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.dense, axis=1), 1, atol=1e-6)


def test_the_error_of_sparse_weights_knows_no_scale(int8, checkpoint, tmp_path):
    """A head eight times as large errs by the same part of its largest weight."""
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    state = torch.load(folder / "sparse_linear.pt")
    torch.save({key: value * 8 for key, value in state.items()}, folder / "sparse_linear.pt")
    plain = int8.bundle.parity.heads["sparse"]
    large = exported(folder, tmp_path / "bundle").bundle.parity.heads["sparse"]
    assert (plain.measure, plain.limit) == ("relative", pytest.approx(0.1265, abs=1e-4))
    assert large.max_error == pytest.approx(plain.max_error, rel=0.05, abs=1e-6)


@pytest.mark.parametrize(("factor", "passed"), [(1.0, True), (1.05, True), (1.2, False)])
def test_weights_that_are_off_do_not_pass(int8, factor, passed):
    """PyTorch's weights a fifth larger are over the limit, a twentieth is not."""
    ids = [np.array([0, *range(10, 60), 2])]
    found = int8.embed_token_ids(ids, heads=ALL)
    sparse = [{key: weight * factor for key, weight in row.items()} for row in found.sparse]
    changed = dataclasses.replace(found, by_head={**found.by_head, "sparse": sparse})
    expected = Expected(ids, (), changed, "PyTorch")
    limits = cpu_int8.limits(SimpleNamespace(**SIZES, num_hidden_layers=2), EIGHT_BITS)
    assert compare.compare(int8, expected, limits).passed == passed
    plain = dataclasses.replace(limits, measure="difference")
    assert compare.compare(int8, expected, plain).heads["sparse"].measure == "difference"
