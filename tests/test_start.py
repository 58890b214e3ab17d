"""What a start needs and does: packages of extras are asked for by name, and nothing is sent or written anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

WITHOUT = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(',')))\n"
"""Python code under which some packages are as good as not installed."""

EMBED = "import sys; from bge_onnx import Embedder; Embedder.open(sys.argv[1], threads=1).embed(['what is BM25?'])"


def run(package, *arguments, without=""):
    """What `bge` or `bge-export` does where packages are missing."""
    code = f"{WITHOUT}sys.argv = sys.argv[1:]\nfrom {package}.cli.main import main\nmain()"
    command = [sys.executable, "-c", code, without or "none", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["run", "--help"], ["evaluate", "--help"]])
def test_bge_export_says_what_it_is_without_its_extra(arguments):
    """--help, --version and list work where only the runtime is installed, and without ONNX Runtime."""
    done = run(
        "bge_export", *arguments, without="torch,transformers,safetensors,onnx,onnx_ir,scipy,tabulate,onnxruntime"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_bge_export_names_its_extra(tmp_path):
    """Without PyTorch and its kin an export ends with the extra to install."""
    done = run("bge_export", "run", "bge-small-en", "--out", str(tmp_path / "out"), without="onnx_ir,torch")
    assert done.returncode == 2
    assert "expected the package, found none.\n    Install it: pip install 'bge-onnx[export]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["embed", "--help"]])
def test_bge_says_what_it_is_without_onnxruntime(arguments):
    """--help and --version work before an extra is chosen."""
    done = run("bge_onnx", *arguments, without="onnxruntime")
    assert (done.returncode, done.stderr) == (0, "")


def test_bge_asks_for_onnxruntime(tiny_bundle):
    """Without an extra there is no ONNX Runtime: the error names both extras."""
    done = run("bge_onnx", "info", str(tiny_bundle), without="onnxruntime")
    assert done.returncode == 2
    assert done.stderr == (
        "InstallationError: onnxruntime: expected the package, found none.\n"
        "    Install one of its builds: pip install 'bge-onnx[cpu]', or 'bge-onnx[cuda]' for NVIDIA GPUs.\n"
    )


def test_nothing_is_written_below_home(tiny_bundle, tmp_path):
    """ONNX Runtime leaves no device id and no database in a user's folders."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", EMBED, str(tiny_bundle)], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_no_socket_is_opened(tiny_bundle, tmp_path):
    """Embedding asks no name server and connects to nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    log = tmp_path / "calls"
    command = ["strace", "-f", "-e", "trace=socket,connect", "-o", str(log), sys.executable, "-c", EMBED]
    done = subprocess.run([*command, str(tiny_bundle)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    assert "socket(" not in log.read_text()


def test_a_wish_for_telemetry_is_kept():
    """A user's own setting of ORT_DISABLE_TELEMETRY is not overwritten."""
    code = "import os, bge_onnx.run.onnx_runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "chosen"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "chosen"
