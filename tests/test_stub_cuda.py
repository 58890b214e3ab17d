"""ONNX Runtime's own CUDA host code, under libraries that do nothing: `scripts/stub-cuda` sets that up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.request import Request
from test_decoders import CONFIGS, write_decoder
from test_reranker import write_reranker
from tiny import write_checkpoint, write_m3_checkpoint

ROOT = Path(__file__).parents[1]
STUB = Path(os.environ.get("BGE_STUB_CUDA", ROOT / ".stub-cuda"))
PROGRAMS = ROOT / "tests/stub_cuda/programs.py"

pytestmark = [
    pytest.mark.stub_cuda,
    pytest.mark.skipif(
        not (STUB / "wheel").is_dir() or not (STUB / "libraries").is_dir(),
        reason="needs onnxruntime-gpu and stub libraries: scripts/stub-cuda",
    ),
]

RECORDED = {
    "bert-cuda-fp16": 35,
    "bert-cuda-fp32": 0,
    "bertreranker-cuda-fp16": 35,
    "gemma-cuda-bf16": 0,
    "gemma2-cuda-bf16": 0,
    "m3-cuda-fp16": 35,
    "m3-cuda-fp32": 0,
    "mistral-cuda-fp16": 0,
    "qwen2-cuda-bf16": 0,
    "qwen3-cuda-bf16": 0,
    "reranker-cuda-fp16": 35,
    "reranker-cuda-fp32": 0,
}
"""Every bundle, and the sizes of batches that it records."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Tiny models for every CUDA target; m3 has three heads."""
    folder = tmp_path_factory.mktemp("stub")
    checkpoints = {
        **{kind: write_decoder(folder / kind, config) for kind, config in CONFIGS.items()},
        "bert": write_checkpoint(folder / "bert"),
        "m3": write_m3_checkpoint(folder / "m3"),
        "bertreranker": write_reranker(folder / "bertreranker", "bert"),
        "reranker": write_reranker(folder / "reranker", "xlm-roberta"),
    }
    for name in RECORDED:
        model, target = name.split("-", 1)
        pooling = "cls" if model in ("bert", "m3") else "last" if model in CONFIGS else None
        request = Request(
            model="tiny",
            target=target,
            checkpoint=checkpoints[model],
            check=False,
            options=Options(pooling=pooling),
        )
        export(request, folder / "bundles" / name)
    return folder / "bundles"


def run(name, bundles, **environment):
    """Run one of the programs with the stub libraries; the words of each line that it prints, by the first."""
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
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "while a graph is recorded" not in done.stderr
    return {first: words for first, *words in map(str.split, done.stdout.splitlines())}


def test_every_bundle_loads_and_records(bundles):
    """No node runs on the CPU, which is an error; every size that is replayed is recorded, of float16 alone."""
    assert run("load", bundles) == {name: [str(sizes)] for name, sizes in RECORDED.items()}


def test_random_batches(bundles):
    """Batches of any size make no call that CUDA forbids while it records."""
    run("many", bundles)


def test_several_devices(bundles):
    """Three threads that each warm up two devices do not wait for each other, and the processes take batches."""
    assert run("several", bundles) == {"200": []}


@pytest.mark.parametrize("done", ["closed", "full", "overfull", "refused"])
def test_other_threads_wait_for_a_recording(bundles, done):
    """While a thread records, no other makes a call that is forbidden then: by loading, closing or dropping a bundle,
    nor by an error's frames, which hold what failed until the error goes.
    """
    run(done, bundles, STUB_CUDA_SLOW_MS="30")


def test_loads_leave_stdout(bundles):
    """Messages of CUDA's libraries go to stderr, and what other threads print stays where it belongs."""
    run("stdout", bundles)


def test_recorded_graphs_have_no_gemm(bundles):
    """ONNX Runtime's own fusion of MatMul and Add is off where CUDA graphs are recorded: Gemm multiplies its bias with
    a buffer that moves. Where none are recorded, heads do have it: so this would see it.
    """
    found = run("graphs", bundles)
    assert {name for name, operators in found.items() if "Gemm" in operators} == {"m3-cuda-fp32", "reranker-cuda-fp32"}
    assert set(found) == set(RECORDED)


def test_attention_takes_fused_kernels(bundles):
    """Half precision takes the flash kernel for texts of any length; float32 has none for the longest."""
    half, single = ["FLASH_ATTENTION"], ["EFFICIENT_ATTENTION", "MATH"]
    assert run("kernels", bundles) == {name: single if name.endswith("fp32") else half for name in RECORDED}
