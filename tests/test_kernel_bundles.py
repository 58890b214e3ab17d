"""Bundles that run with the custom operators, and what happens where there are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import bge_kernels
from bge_export import export as export_module
from bge_export.checkpoint.recipe import Options
from bge_export.cli.main import cli
from bge_export.export import export
from bge_export.lowering.int8 import operators as int8_kernels
from bge_export.lowering.int8 import rounding as int8
from bge_export.lowering.int8.operators import LINEAR, PASSES
from bge_export.recheck import check_bundle
from bge_export.request import Request
from bge_onnx import Bundle, BundleError, Embedder, InputError
from bge_onnx.cli.main import cli as runtime_cli
from bge_onnx.run import kernels as kernels_module
from tiny import edit_manifest, write_checkpoint

built = pytest.mark.skipif(not bge_kernels.library(), reason="needs an installation with operators")


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A two-layer BERT of a width that Hadamard matrices divide."""
    folder = tmp_path_factory.mktemp("wide")
    return write_checkpoint(folder, hidden_size=64, intermediate_size=192, num_attention_heads=2)


SINGLE = [frozenset({name}) for name in sorted(LINEAR | PASSES)]


def export_kernels(checkpoint, out, kernels=LINEAR, activations=8):
    request = Request(
        model="wide",
        target="cpu-int8",
        checkpoint=checkpoint,
        kernels=kernels,
        activations=activations,
        options=Options(pooling="cls"),
    )
    return export(request, out)


@built
@pytest.mark.parametrize(
    ("kernels", "activations"), [*((names, 8) for names in [*SINGLE, PASSES, LINEAR]), (LINEAR, 7)]
)
def test_a_bundle_with_kernels_is_within_the_limit(wide, tmp_path, kernels, activations):
    """The export's own check passes, its graph has the operators, and vectors do not depend on the batch."""
    bundle = export_kernels(wide, tmp_path / "bundle", kernels, activations)
    assert (bundle.kernels, bundle.activations) == ((bge_kernels.NAME,), activations)
    assert bundle.parity
    assert bundle.parity.passed
    assert bundle.parity.heads["dense"].limit == pytest.approx(0.002 * 109 / int8.GRIDS[activations].levels)
    graph = onnx.load(bundle.folder / bundle.graph, load_external_data=False).graph
    found = [node.op_type for node in graph.node]
    linears, norms = 12, 4
    wanted = {"Int8Linear": linears, "DequantizeBiasGelu": linears, "ResidualLayerNorm": norms}
    counts = {name: found.count(name) for name in wanted}
    assert counts == {name: count * (name in kernels) for name, count in wanted.items()}
    assert ("RotateQuantize" in found) == ("RotateQuantize" in kernels)
    assert ("Gelu" in found) == (not kernels & {"Int8Linear", "DequantizeBiasGelu"})
    grid = int8.GRIDS[activations]
    attributes = {(node.op_type, one.name): one for node in graph.node for one in node.attribute}
    if "Int8Linear" in kernels:
        assert attributes["Int8Linear", "added"].i == grid.added == 9 - activations
    if "RotateQuantize" in kernels:
        found_grid = attributes["RotateQuantize", "levels"].f, attributes["RotateQuantize", "zero"].i
        assert found_grid == (grid.levels, grid.zero)
    embedder = Embedder.open(bundle.folder, threads=2)
    texts = ["a", "one two", "one two", "b " * 40, "c " * 300]
    together = embedder.embed(texts).dense
    assert all(np.array_equal(embedder.embed([text]).dense[0], row) for text, row in zip(texts, together, strict=True))


@built
@pytest.mark.parametrize("activations", [7, 8])
def test_a_bundle_with_kernels_can_be_checked_again(wide, tmp_path, activations):
    """Against PyTorch that rounds to as many bits: to others, it errs by more."""
    bundle = export_kernels(wide, tmp_path / "bundle", activations=activations)
    parity = check_bundle(bundle.folder, wide)
    assert parity.passed
    edit_manifest(bundle.folder, activations=15 - activations)
    assert check_bundle(bundle.folder, wide).heads["dense"].max_error > 10 * parity.heads["dense"].max_error


@pytest.mark.parametrize(("target", "kernels"), [("cpu-int8", None), ("cpu-int8", PASSES), ("cpu-fp32", "auto")])
def test_seven_bits_are_for_int8_linear(wide, tmp_path, monkeypatch, target, kernels):
    """Without it they would only err more: an error before any work is done."""
    monkeypatch.setattr(export_module, "library", lambda: Path("library.so"))
    request = Request(
        model="wide",
        target=target,
        checkpoint=wide,
        kernels=kernels,
        activations=7,
        options=Options(pooling="cls"),
    )
    with pytest.raises(InputError, match="activations: expected 8 bits without the operator Int8Linear"):
        export(request, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("kernels", "library", "found"),
    [
        ([bge_kernels.NAME], None, "none: this installation was made without them"),
        (["bge_kernels 99"], Path("library.so"), bge_kernels.NAME),
    ],
)
def test_a_bundle_without_its_kernels_is_refused(tiny_bundle, tmp_path, monkeypatch, kernels, library, found):
    """It says what was wanted and what to install."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    edit_manifest(folder, kernels=kernels)
    monkeypatch.setattr(kernels_module, "library", lambda: library)
    message = rf"expected the operators {kernels[0]}.* found {found}.*\n *pip install --upgrade bge-onnx brings them"
    with pytest.raises(BundleError, match=message):
        Embedder.open(folder)


def test_seven_bits_are_nothing_without_products_of_ours(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(int8_kernels, "library", lambda: None)
    with pytest.raises(InputError, match="activations: expected 8 bits without the operator Int8Linear, found 7"):
        export_kernels(wide, tmp_path / "bundle", "auto", 7)


def test_seven_bits_need_kernels_auto(wide, tmp_path):
    """Said before a checkpoint is looked at."""
    arguments = ["run", "wide", "--checkpoint", wide, "--target", "cpu-int8", "--activations", "7", "--out", tmp_path]
    arguments += ["--kernels", "none"]
    result = CliRunner().invoke(cli, [str(part) for part in arguments])
    assert result.exit_code == 2
    assert "--activations 7 goes with --kernels auto" in result.output


def test_unknown_operators_are_named(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "library", lambda: Path("library.so"))
    with pytest.raises(InputError, match=r"kernels: expected names of operators, .*Int8Linear.*, found Int8Liner"):
        export_kernels(wide, tmp_path / "bundle", frozenset({"Int8Liner", "RotateQuantize"}))


def test_other_targets_have_no_kernels(tiny_checkpoint, tmp_path):
    request = Request(
        model="tiny", target="cpu-fp32", checkpoint=tiny_checkpoint, kernels=LINEAR, options=Options(pooling="cls")
    )
    with pytest.raises(InputError, match="kernels: expected none"):
        export(request, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_manifest_of_a_plain_bundle_names_none(tiny_bundle):
    assert json.loads((tiny_bundle / "bundle.json").read_text())["kernels"] == []


@built
def test_a_damaged_library_is_an_error(wide, tmp_path, monkeypatch):
    """It says which library cannot be loaded, and how to get a sound one."""
    bundle = export_kernels(wide, tmp_path / "bundle")
    junk = tmp_path / "library.so"
    junk.write_bytes(b"no library")
    monkeypatch.setattr(kernels_module, "library", lambda: junk)
    with pytest.raises(
        BundleError, match=r"library\.so: expected a library of operators .*\n    pip install --force-reinstall"
    ):
        Embedder.open(bundle.folder).embed(["a"])


def test_a_library_of_another_version_is_none(tmp_path, monkeypatch):
    """An old one beside new code is not loaded; an installation without says why."""
    monkeypatch.setattr(bge_kernels, "HERE", tmp_path)
    (tmp_path / f"library{bge_kernels.VERSION - 1}.so").touch()
    assert bge_kernels.library() is None
    assert bge_kernels.why_missing() == "this installation was made without them"
    (tmp_path / "missing.txt").write_text("expected a C++ compiler, found none\n")
    assert bge_kernels.why_missing() == "expected a C++ compiler, found none"


def test_operators_that_were_not_built_are_asked_for(wide, tmp_path, monkeypatch):
    """By name it is an error before any work is done; by default the bundle is a plain one, which is said."""
    monkeypatch.setattr(export_module, "library", lambda: None)
    monkeypatch.setattr(bge_kernels, "library", lambda: None)
    monkeypatch.setattr(int8_kernels, "library", lambda: None)
    with pytest.raises(InputError, match="kernels: expected an installation with operators, found none"):
        export_kernels(wide, tmp_path / "bundle")
    arguments = ["run", "wide", "--checkpoint", wide, "--target", "cpu-int8", "--pooling", "cls"]
    arguments += ["--calibrate", "none", "--out", tmp_path / "plain"]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "operators  none: this installation was made without them" in result.output
    assert Bundle.open(tmp_path / "plain").kernels == ()


@built
@pytest.mark.parametrize("activations", ["7", "8"])
def test_auto_takes_the_operators(wide, tmp_path, activations):
    """And `bge info` tells of them."""
    arguments = ["run", "wide", "--checkpoint", wide, "--target", "cpu-int8", "--pooling", "cls"]
    arguments += ["--activations", activations, "--out", tmp_path / "bundle"]
    result = CliRunner().invoke(cli, [str(part) for part in arguments])
    assert result.exit_code == 0, result.output
    assert Bundle.open(tmp_path / "bundle").kernels == (bge_kernels.NAME,)
    told = CliRunner().invoke(runtime_cli, ["info", str(tmp_path / "bundle")])
    assert f"operators    {bge_kernels.NAME}" in told.output
    assert f"activations  {activations} bits" in told.output
    assert Bundle.open(tmp_path / "bundle").name.endswith("-activations7") == (activations == "7")
