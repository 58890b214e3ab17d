"""The arrows between the packages, and what importing the runtime costs."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"bge_kernels": ROOT / "kernels", "bge_onnx": ROOT / "runtime", "bge_export": ROOT / "export"}
ALLOWED = {
    "bge_kernels": {"bge_kernels"},
    "bge_onnx": {"bge_onnx", "bge_kernels"},
    "bge_export": {"bge_export", "bge_onnx", "bge_kernels"},
}
HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "safetensors", "scipy", "sentence_transformers")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    """bge_export imports bge_onnx, both import bge_kernels, and never back."""
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files
    found = set().union(*(imported(path) for path in files))
    assert found & set(PACKAGES) <= ALLOWED[package]


@pytest.mark.parametrize("package", ["bge_onnx", "bge_kernels"])
def test_runtime_names_no_heavy_package(package):
    """Neither the runtime nor the kernels import PyTorch, transformers or onnx, not even inside a function.

    SciPy is named once, for the caller who asks for a SciPy matrix.
    """
    found = set().union(*(imported(path) for path in PACKAGES[package].rglob("*.py")))
    assert found & set(HEAVY) <= ({"scipy"} if package == "bge_onnx" else set())


def test_import_loads_no_heavy_package():
    """`from bge_onnx import Embedder` brings in nothing that embedding on the CPU does not need."""
    code = "import sys, bge_onnx.cli.main; from bge_onnx import Embedder; "
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_import_takes_under_300_ms():
    """`from bge_onnx import Embedder` takes under 0.3 s more than Python's own start."""

    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    rounds = [(seconds("from bge_onnx import Embedder"), seconds("pass")) for _ in range(7)]
    assert statistics.median(ours - bare for ours, bare in rounds) < 0.3
