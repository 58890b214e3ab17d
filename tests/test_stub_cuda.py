"""ONNX Runtime's own CUDA host code, under libraries that do nothing: `scripts/stub-cuda` sets that up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bge_export.checkpoint import Options
from bge_export.export import export
from bge_export.request import Request
from tiny import write_checkpoint, write_m3_checkpoint

ROOT = Path(__file__).parents[1]
STUB = Path(os.environ.get("BGE_STUB_CUDA", ROOT / ".stub-cuda"))
PROGRAMS = ROOT / "tests/stub_cuda/programs.py"

pytestmark = pytest.mark.skipif(
    not (STUB / "wheel").is_dir() or not (STUB / "libraries").is_dir(),
    reason="needs onnxruntime-gpu and stub libraries: scripts/stub-cuda",
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A tiny BERT for every CUDA target, and an XLM-R with three heads."""
    folder = tmp_path_factory.mktemp("stub")
    checkpoint = write_checkpoint(folder / "bert")
    m3 = write_m3_checkpoint(folder / "m3")
    for target, source, name in (
        ("cuda-fp16", checkpoint, "cuda-fp16"),
        ("cuda-fp32", checkpoint, "cuda-fp32"),
        ("cuda-fp32", m3, "m3"),
    ):
        request = Request(model="tiny", target=target, checkpoint=source, check=False, options=Options(pooling="cls"))
        export(request, folder / "bundles" / name)
    return folder / "bundles"


def run(name, bundles, **environment):
    """Run one of the programs with the stub libraries; what it says."""
    paths = [STUB / "wheel", ROOT / "runtime", ROOT / "export", ROOT / "kernels"]
    variables = {
        **os.environ,
        "LD_LIBRARY_PATH": str(STUB / "libraries"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        **environment,
    }
    command = [sys.executable, "-P", PROGRAMS, name, bundles]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "while a graph is recorded" not in done.stderr
    return done


def test_every_bundle_loads_and_records(bundles):
    """No node runs on the CPU, which is an error; every size that is replayed is recorded, of float16 alone."""
    assert "cuda-fp16 35" in run("load", bundles).stdout


def test_random_batches(bundles):
    """Batches of any size make no call that CUDA forbids while it records."""
    run("many", bundles)


def test_other_threads_wait_for_a_recording(bundles):
    """Loading, closing and dropping a bundle while another thread records makes no forbidden call."""
    run("others", bundles, STUB_CUDA_SLOW_MS="20")


def test_loads_at_once_leave_stdout(bundles):
    """Messages of CUDA's libraries go to stderr, and stdout is the same afterwards."""
    run("stdout", bundles)


def test_recorded_graphs_have_no_gemm(bundles):
    """ONNX Runtime's own fusion of MatMul and Add is off where CUDA graphs are recorded."""
    run("graph", bundles)
