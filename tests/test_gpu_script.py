"""`scripts/gpu` where there is no GPU: what it starts, and when it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
case $* in
*/nvidia/*) echo /site/nvidia/cu13/lib:/site/nvidia/cudnn/lib ;;
*find_spec*) echo $MISSING ;;
*) printf '%s\\n' "$LD_LIBRARY_PATH" "$PYTHONPATH" "$@" ;;
esac
"""


def test_the_gpu_script_lists_its_checks(tmp_path):
    """Without a GPU `scripts/gpu --dry-run` builds the bundles that it would compare, and says so."""
    command = [sys.executable, ROOT / "bench/gpu.py", "--dry-run", "--models", "small", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "small: dense of cuda-fp32 and cuda-fp16 to compare; parity, kernels, speed to run" in done.stdout
    assert (tmp_path / "small/cuda-fp16/bundle.json").is_file()


def scripts_gpu(folder, **variables):
    """`scripts/gpu` with a Python that prints the paths and arguments that it is given."""
    python = folder / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_LIBRARY_PATH", "PYTHONPATH")}
    environment |= {"PYTHON": str(python), **variables}
    command = [ROOT / "scripts/gpu", "--parts", "parity"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("given", "kept"),
    [(None, []), ("", []), (":", []), ("/a:", ["/a"]), (":/a::/b c:/d*", ["/a", "/b c", "/d*"])],
)
def test_carried_folders_are_kept(tmp_path, given, kept):
    """PyTorch's CUDA libraries and our packages come first, then what the caller has named; no entry is empty, which
    would be the working directory, and `bench`, whose modules have packages' names, is none.
    """
    variables = {} if given is None else {"LD_LIBRARY_PATH": given, "PYTHONPATH": given}
    done = scripts_gpu(tmp_path, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    libraries, packages, *arguments = done.stdout.splitlines()
    assert libraries.split(":") == ["/site/nvidia/cu13/lib", "/site/nvidia/cudnn/lib", *kept]
    assert packages.split(":") == [*(f"{ROOT}/{name}" for name in ("runtime", "export", "kernels")), *kept]
    assert arguments == ["bench/gpu.py", "--parts", "parity"]


def test_missing_packages_are_named_at_once(tmp_path):
    """All of them, before anything else is done, as time on a GPU machine is short."""
    done = scripts_gpu(tmp_path, MISSING="onnx_ir tabulate")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected Python packages, found none for: onnx_ir tabulate." in done.stderr


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({"parity": {"small": {"cuda-fp16": {"passed": True}}}}, 0),
        ({"parity": {"small": {"cuda-fp16": {"passed": False, "error": "too far"}}}}, 1),
        ({"kernels": {"small": {"FLASH_ATTENTION": 12}}}, 0),
        ({"kernels": {"small": {"FAILED: bundle: expected to run": 0}}}, 1),
        ({"kernels": {"small": {}}}, 1),
        ({"speed": {"small": {"failed": {}}}}, 0),
        ({"speed": {"small": {"failed": {"ours": "ended"}}}}, 1),
    ],
)
def test_a_part_that_fails_fails_the_run(monkeypatch, found, status):
    """Whichever part has not done what it is for, the script exits with 1; attention without a kernel's name too."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import gpu

    record = {**{part: {} for part in gpu.PARTS}, **found}
    monkeypatch.setattr(gpu.benchmark, "main", lambda *_, **__: record)
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == status
