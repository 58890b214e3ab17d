"""The check in a process of its own: what it imports, and how its failures are told."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from bge_export.lowering.limits import Limits
from bge_export.proof import compare
from bge_export.proof.compare import Expected, compare_apart
from bge_onnx import BundleError, Embeddings

IDS = [np.array([101, 200, 102])]


@pytest.fixture
def expected(tiny):
    """The tiny bundle's own vector of one text."""
    return Expected(IDS, (), tiny.embed_token_ids(IDS), "itself")


def test_it_holds_no_pytorch():
    """The process that loads the bundle imports what a user of the runtime has, and nothing that takes its memory."""
    code = "import sys, bge_export.proof.compare; assert not {'torch', 'transformers', 'onnx_ir'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_gives_what_compare_gives(tiny, expected):
    found = compare_apart(tiny.bundle.folder, expected, Limits())
    assert found == compare.compare(tiny, expected, Limits())
    assert found.passed


def test_it_takes_no_module_of_the_working_directory(tiny, expected, tmp_path, monkeypatch):
    """A file named like one of our modules, where a user works, is not executed."""
    for name in ("tokenizers", "numpy", "pickle", "bge_export"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w'); raise ImportError")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.chdir(tmp_path)
    assert compare_apart(tiny.bundle.folder, expected, Limits()).passed
    assert not (tmp_path / "executed").exists()


def test_errors_come_back(tmp_path, expected):
    """A folder that is no bundle is the error that it is here."""
    with pytest.raises(BundleError) as raised:
        compare_apart(tmp_path, expected, Limits())
    assert str(raised.value).startswith(f"{tmp_path}: expected a bundle (")


def test_all_errors_come_back(tiny, expected):
    """Whatever else goes wrong in that process is an error that names it."""
    wrong = Expected(
        [np.array([0])], (), Embeddings(count=2, by_head={"dense": np.zeros((2, 7), dtype=np.float32)}), ""
    )
    with pytest.raises(BundleError, match="expected the bundle to run, found ValueError"):
        compare_apart(tiny.bundle.folder, wrong, Limits())


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -9 $$", -9)])
def test_a_process_that_dies(tiny, expected, tmp_path, monkeypatch, script, code):
    """A process that is killed, as the kernel does when memory ends, is an error that says so."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(BundleError, match=rf"ended with {code}\.\n    -9 means that memory"):
        compare_apart(tiny.bundle.folder, expected, Limits())
