"""Calibration: rounding that errs less on the texts given, and bundles that remember these."""

from __future__ import annotations

import gzip
import shutil

import numpy as np
import pytest

from bge_export.checkpoint.pytorch import tokenize
from bge_export.checkpoint.recipe import Options, Recipe
from bge_export.checkpoint.tokenizer import load_tokenizer
from bge_export.export import export
from bge_export.lowering.int8 import calibrate, gptq
from bge_export.lowering.int8 import rounding as int8
from bge_export.recheck import check_bundle
from bge_export.request import Request
from bge_onnx import CheckpointError, InputError
from tiny import read_weights, store_weights, write_checkpoint

RECIPE = Recipe(pooling="mean", normalize=True, max_tokens=512, prompts={}, lower_cased=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A two-layer BERT of width 64."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), **sizes)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A file of 80 texts."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(f"text {number} of {'many ' * (number % 7)}words" for number in range(80)))
    return path


@pytest.mark.parametrize("width", [64, 192])
@pytest.mark.parametrize("grid", [int8.EIGHT_BITS, int8.SEVEN_BITS])
def test_it_errs_less_on_such_inputs(width, grid):
    """On correlated rows the product is closer than with each weight rounded by itself; sums stay in their budget."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((500, width)) @ rng.standard_normal((width, width))).astype(np.float32)
    weight = rng.standard_normal((40, width)).astype(np.float32)
    plain, scales = int8.quantize(weight, grid)
    found = gptq.round_with(weight, rows.T @ rows, scales, grid)

    def error(integers):
        return np.square(rows @ (integers * scales[:, None] - weight).T).sum()

    assert error(found) < 0.7 * error(plain)
    np.testing.assert_array_equal(grid.within(found.astype(np.float32)), found)
    assert np.abs(found.astype(int)).max() <= 127


def test_independent_inputs_round_to_the_nearest():
    """Where inputs tell nothing of each other there is nothing to make up for."""
    weight = np.random.default_rng(0).uniform(-60, 60, (8, 64)).astype(np.float32)
    free = int8.Grid(levels=63, added=1, most=254)
    found = gptq.round_with(weight, np.eye(64, dtype=np.float32), np.ones(8, dtype=np.float32), free)
    np.testing.assert_array_equal(found, np.rint(weight))


def test_hessians_are_those_of_every_linear_module(checkpoint, texts):
    """X'X by module, symmetric; query, key and value share theirs."""
    found = calibrate.hessians(checkpoint, RECIPE, calibrate.read(str(texts)))
    assert len(found) == 12
    for matrix in found.values():
        np.testing.assert_allclose(matrix, matrix.T, rtol=1e-4, atol=1e-3)
    module = "encoder.layer.1.attention.self."
    assert found[f"{module}key"] is found[f"{module}query"]
    assert found["encoder.layer.0.output.dense"].shape == (128, 128)


@pytest.mark.parametrize("source", ["file", "random"])
def test_every_token_counts_once(checkpoint, texts, source):
    """LayerNorm's rows have mean square 1 before their scale, so the trace tells how many were counted: no padding."""
    given = calibrate.read(str(texts) if source == "file" else "random")
    rows = calibrate.RANDOM_TEXTS * calibrate.RANDOM_TOKENS
    if given.texts:
        rows = sum(map(len, tokenize(load_tokenizer(checkpoint), RECIPE, given.texts)))
    found = calibrate.hessians(checkpoint, RECIPE, given)["encoder.layer.1.attention.self.query"]
    assert np.trace(found) / (64 * rows) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("source", ["file", "random", "none"])
def test_a_calibrated_bundle_is_checked_with_the_same_texts(checkpoint, texts, tmp_path, source):
    """The manifest says what the texts were; a check needs them again, unless they are random."""
    given = calibrate.read(str(texts) if source == "file" else source)
    options = Options(pooling="mean")
    request = Request(model="tiny", target="cpu-int8", checkpoint=checkpoint, calibration=given, options=options)
    bundle = export(request, tmp_path / "bundle")
    assert bundle.calibration == given.described
    assert bundle.parity.heads["dense"].max_error < 1e-3
    again = check_bundle(bundle.folder, checkpoint, calibration=given if source == "file" else None)
    assert again.heads["dense"].max_error == pytest.approx(bundle.parity.heads["dense"].max_error)
    if source == "file":
        other = tmp_path / "other.txt"
        other.write_text("a\n" * 100)
        for wrong in (None, calibrate.read(str(other))):
            with pytest.raises(CheckpointError, match=r"expected the calibration .*sha256.*\n.*Give the same file"):
                check_bundle(bundle.folder, checkpoint, calibration=wrong)


def test_too_few_texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n\ntwo\n")
    with pytest.raises(InputError, match="expected at least 64 texts, found 2"):
        calibrate.read(str(path))


def test_no_text(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"a\nb \xff\n" * 100)
    with pytest.raises(InputError, match=r"texts.txt, line 2: expected UTF-8, found byte 0xff at position 2"):
        calibrate.read(str(path))


def test_texts_in_other_forms(tmp_path):
    """Calibration reads what `bge embed` reads: JSON itself is never a text."""
    path = tmp_path / "texts.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"title": "a", "text": "b"}\n\n' * 64))
    assert calibrate.read(str(path)).texts == ("a b",) * 64


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="expected a file of texts, random or none; found No such file"):
        calibrate.read(str(tmp_path / "none.txt"))


def test_weights_that_are_no_numbers(checkpoint, tmp_path):
    """NaN is found before anything is rounded."""
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    weights = read_weights(folder)
    weights["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    store_weights(folder, weights)
    with pytest.raises(CheckpointError, match=r"expected finite inputs of encoder\.layer\.\d.*found NaN"):
        calibrate.hessians(folder, RECIPE, calibrate.RANDOM_IDS)


def test_targets_that_round_nothing(checkpoint, texts, tmp_path):
    options = Options(pooling="mean")
    request = Request(
        model="tiny", target="cpu-fp32", checkpoint=checkpoint, calibration=calibrate.read(str(texts)), options=options
    )
    with pytest.raises(InputError, match="expected the target cpu-int8 of a BERT or XLM-R model"):
        export(request, tmp_path / "bundle")
