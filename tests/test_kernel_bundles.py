"""Bundles that run with the custom operators, and what happens where there are none."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import bge_kernels
from bge_export import export as export_module
from bge_export.checkpoint import Options
from bge_export.cli import cli
from bge_export.export import check_bundle, export
from bge_export.lowering import int8_kernels
from bge_export.request import Request
from bge_onnx import Bundle, BundleError, Embedder, InputError
from bge_onnx import kernels as kernels_module
from bge_onnx.cli import cli as runtime_cli
from tiny import edit_json, write_checkpoint

built = pytest.mark.skipif(not bge_kernels.library(), reason="built with BGE_KERNELS=1 only")


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
    shutil.copytree(tiny_bundle, folder)
    edit_json(folder / "bundle.json", kernels=kernels)
    monkeypatch.setattr(kernels_module, "library", lambda: library)
    message = rf"expected the operators {kernels[0]}.* found {found}.*\n.*\n.*BGE_KERNELS=1"
    with pytest.raises(BundleError, match=message):
        Embedder.open(folder)


def test_other_targets_have_no_kernels(tiny_checkpoint, tmp_path):
    request = Request(
        model="tiny", target="cpu-fp32", checkpoint=tiny_checkpoint, kernels="linear", options=Options(pooling="cls")
    )
    with pytest.raises(InputError, match="kernels: expected none"):
        export(request, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_manifest_of_a_plain_bundle_names_none(tiny_bundle):
    assert json.loads((tiny_bundle / "bundle.json").read_text())["kernels"] == []


@built
def test_a_damaged_library_is_an_error(wide, tmp_path, monkeypatch):
    """It says which graph cannot be loaded, and why."""
    bundle = export_kernels(wide, tmp_path / "bundle")
    junk = tmp_path / "library.so"
    junk.write_bytes(b"no library")
    monkeypatch.setattr(kernels_module, "library", lambda: junk)
    with pytest.raises(BundleError, match=r"cannot load this graph: .*library\.so"):
        Embedder.open(bundle.folder).embed(["a"])


@built
def test_a_library_that_is_gone_is_none(monkeypatch):
    """Whatever the installation remembers of it."""
    found = importlib.util.find_spec("bge_kernels.library")
    gone = importlib.machinery.ModuleSpec("bge_kernels.library", None, origin=f"{found.origin}.gone")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: gone)
    assert bge_kernels.library() is None


def test_operators_that_were_not_built_are_asked_for(wide, tmp_path, monkeypatch):
    """By name it is an error before any work is done; with --kernels auto the bundle is a plain one, which is said."""
    monkeypatch.setattr(export_module, "library", lambda: None)
    monkeypatch.setattr(bge_kernels, "library", lambda: None)
    monkeypatch.setattr(int8_kernels, "library", lambda: None)
    with pytest.raises(InputError, match="kernels: expected operators"):
        export_kernels(wide, tmp_path / "bundle")
    arguments = ["run", "wide", "--checkpoint", wide, "--target", "cpu-int8", "--pooling", "cls", "--kernels", "auto"]
    arguments += ["--calibrate", "none", "--out", tmp_path / "plain"]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "exporting wide for cpu-int8, no operators were built here" in result.output
    assert Bundle.open(tmp_path / "plain").kernels == ()


@built
def test_auto_takes_the_operators(wide, tmp_path):
    """And `bge info` tells of them."""
    arguments = ["run", "wide", "--checkpoint", wide, "--target", "cpu-int8", "--pooling", "cls", "--kernels", "auto"]
    result = CliRunner().invoke(cli, [str(part) for part in [*arguments, "--out", tmp_path / "bundle"]])
    assert result.exit_code == 0, result.output
    assert Bundle.open(tmp_path / "bundle").kernels == (bge_kernels.NAME,)
    told = CliRunner().invoke(runtime_cli, ["info", str(tmp_path / "bundle")])
    assert f"operators    {bge_kernels.NAME}" in told.output
