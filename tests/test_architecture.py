"""The arrows between the packages, and what importing the runtime costs."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"bge_kernels": ROOT / "kernels", "bge_onnx": ROOT / "runtime", "bge_export": ROOT / "export"}
HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "safetensors", "scipy", "sentence_transformers")

# What each room may import: rooms of its own package that stand in lines above its own, and of other packages whatever
# ALLOWED says. A file beside the rooms is a room of its own.
ROOMS: dict[str, dict[str, set[str]]] = {
    "bge_onnx": {
        "errors": set(),
        "files": {"errors"},
        "bundle": {"errors", "files"},
        "text": {"errors", "files", "bundle"},
        "run": {"errors", "files", "bundle"},
        "vectors": {"errors", "files", "bundle", "text", "run"},
        "embed": {"errors", "bundle", "text", "run", "vectors"},
        "embedder": {"errors", "bundle", "text", "run", "vectors", "embed"},
        "reranker": {"errors", "bundle", "text", "run", "vectors", "embed"},
        "model": {"bundle", "embedder", "reranker"},
        "bge_onnx": {"errors", "bundle", "vectors", "embedder", "reranker"},
        "flag": {"errors", "bundle", "text", "run", "vectors", "embed", "embedder", "reranker"},
        "cli": {"errors", "files", "bundle", "run", "vectors", "embed", "embedder", "reranker", "model"},
    },
    "bge_export": {
        "bge_export": set(),
        "graph": set(),
        "checkpoint": {"graph"},
        "models": {"graph", "checkpoint"},
        "lowering": {"graph", "checkpoint", "models"},
        "bundle": {"checkpoint", "lowering"},
        "proof": {"checkpoint", "models", "lowering"},
        "evaluate": {"checkpoint", "proof"},
        "request": {"checkpoint", "models", "lowering"},
        "describe": {"checkpoint", "models", "lowering", "bundle", "request"},
        "export": {"graph", "checkpoint", "models", "lowering", "bundle", "proof", "request", "describe"},
        "recheck": {"checkpoint", "models", "lowering", "bundle", "proof", "request", "describe", "export"},
        "cli": {"checkpoint", "lowering", "bundle", "evaluate", "request", "export", "recheck"},
    },
}
ALLOWED = {"bge_kernels": set(), "bge_onnx": {"bge_kernels"}, "bge_export": {"bge_onnx", "bge_kernels"}}


def modules(package: str) -> dict[str, Path]:
    """Every module of a package, by its dotted name."""
    paths = sorted((PACKAGES[package] / package).rglob("*.py"))
    names = (".".join(path.relative_to(PACKAGES[package]).with_suffix("").parts) for path in paths)
    return dict(zip((name.removesuffix(".__init__") for name in names), paths, strict=True))


def imported(path: Path) -> set[str]:
    """The names of all that a file imports, inside functions and for types too: `from a import b` is a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imports(package: str) -> dict[str, set[str]]:
    """The modules of its own package that each module of a package imports."""
    known = modules(package)
    found = {name: imported(path) & known.keys() - {name, package} for name, path in known.items()}
    return {name: {one for one in own if not _is_package_of_another(one, own)} for name, own in found.items()}


def _is_package_of_another(name: str, others: set[str]) -> bool:
    return any(other.startswith(f"{name}.") for other in others)


def room_of(module: str) -> str:
    """The folder beside others in a package, or the file; the package itself for its __init__."""
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package):
    """bge_export imports bge_onnx, both import bge_kernels, and never back."""
    found = {name.split(".")[0] for path in modules(package).values() for name in imported(path)}
    assert found & set(PACKAGES) <= {package, *ALLOWED[package]}


@pytest.mark.parametrize("package", ["bge_onnx", "bge_export"])
def test_rooms_import_downwards(package):
    """Each room imports those that the table gives it, and a room's line stands below all of them."""
    rooms = ROOMS[package]
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for module, others in imports(package).items():
        found[room_of(module)] |= {room_of(other) for other in others} - {room_of(module)}
    assert found == rooms
    order = list(rooms)
    upwards = [(room, below) for room, own in rooms.items() for below in own if order.index(below) > order.index(room)]
    assert upwards == []


@pytest.mark.parametrize("package", ["bge_onnx", "bge_export"])
def test_no_two_modules_need_each_other(package):
    """No circle of imports, those inside functions and for types alone included."""
    graph = imports(package)
    order = graphlib.TopologicalSorter(graph)
    assert len(list(order.static_order())) == len(graph)


@pytest.mark.parametrize("package", ["bge_onnx", "bge_export"])
def test_every_room_says_what_it_is(package):
    """The docstring of a room tells in five lines or less what comes in, what goes out, and what it leaves alone."""
    for room in {path.parent for path in modules(package).values()} - {PACKAGES[package] / package}:
        text = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
        assert text, room
        assert room.name == "flag" or 3 <= len(text.splitlines()) <= 7, room


@pytest.mark.parametrize("package", ["bge_onnx", "bge_kernels"])
def test_runtime_names_no_heavy_package(package):
    """Neither the runtime nor the kernels import PyTorch, transformers or onnx, not even inside a function.

    SciPy is named once, for the caller who asks for a SciPy matrix.
    """
    found = {name.split(".")[0] for path in PACKAGES[package].rglob("*.py") for name in imported(path)}
    assert found & set(HEAVY) <= ({"scipy"} if package == "bge_onnx" else set())


def test_import_loads_no_heavy_package():
    """`from bge_onnx import Embedder` brings in nothing that embedding on the CPU does not need."""
    code = "import sys, bge_onnx.cli.main; from bge_onnx import Embedder; "
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_import_takes_little_more_than_its_packages():
    """`from bge_onnx import Embedder` takes less than twice the time of the packages that it imports: under 0.3 s
    on a quiet machine. The quickest of seven counts, as other work makes them slower and never quicker.
    """

    def seconds(code: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    programs = ("from bge_onnx import Embedder", "import numpy, onnxruntime, tokenizers", "pass")
    ours, packages, bare = (min(found) for found in zip(*(map(seconds, programs) for _ in range(7)), strict=True))
    assert ours - bare < 2 * (packages - bare)
