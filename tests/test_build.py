"""Building the operators: compilers, platforms, and what an installation without them says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import bge_kernels
from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.request import Request
from bge_onnx import Embedder
from bge_onnx.cli.main import cli
from bge_onnx.errors import OperatorsError
from bge_onnx.run import kernels as kernels_module
from bge_onnx.run.onnx_runtime import ort
from one_operator import built
from tiny import write_checkpoint

TOOLCHAIN = Path(__file__).parents[1] / "kernels/toolchain"


@pytest.fixture
def build(monkeypatch):
    """The module build.py."""
    monkeypatch.syspath_prepend(TOOLCHAIN)
    import build

    return build


def run_build(*arguments, **environment):
    command = [sys.executable, TOOLCHAIN / "build.py", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=600
    )


def test_the_library_is_of_the_version_that_python_wants(build):
    assert build.version() == bge_kernels.VERSION


def test_a_compiler_that_is_none_is_named(tmp_path):
    """As CXX gives it; nothing is left behind."""
    done = run_build(tmp_path / "out", CXX="/no/such/compiler")
    assert done.returncode == 1
    assert done.stderr == "build.py: expected a C++ compiler at /no/such/compiler, found No such file or directory\n"
    assert not (tmp_path / "out").exists()


def test_a_compiler_that_refuses_says_why(tmp_path):
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho 'cpu.cc:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = run_build(tmp_path / "out", CXX=str(compiler))
    assert done.returncode == 1
    assert done.stderr == "build.py: expected cxx to compile the operators, found cpu.cc:1: error: no such thing\n"


def test_without_a_compiler_it_says_what_to_install(build, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "zig_compiler", lambda _: None)
    with pytest.raises(build.BuildError, match=r"expected a C\+\+ compiler .*pip install ziglang"):
        build.build(tmp_path / "out")


def test_other_platforms_are_named(build, tmp_path, monkeypatch):
    with pytest.raises(build.BuildError, match=r"expected one of linux-x86_64, .*, found plan9"):
        build.build(tmp_path, "plan9")
    monkeypatch.setattr(build.platform, "machine", lambda: "riscv64")
    assert build.this_platform() is None


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_what_it_builds_is_loaded(tmp_path):
    """By ONNX Runtime; the same sources as the installed one's."""
    done = run_build(tmp_path)
    assert done.returncode == 0, done.stderr
    library = Path(done.stdout.strip())
    assert library.name.startswith(f"library{bge_kernels.VERSION}.")
    ort.SessionOptions().register_custom_ops_library(str(library))


@pytest.fixture
def hook(monkeypatch, tmp_path):
    """What hatchling calls, with a record of what it adds to a wheel."""
    pytest.importorskip("hatchling")
    monkeypatch.syspath_prepend(TOOLCHAIN)
    import hook

    warnings = []
    app = type("App", (), {"display_warning": staticmethod(warnings.append)})()
    made = hook.Hook(str(tmp_path), {}, None, None, str(tmp_path), "wheel", app)
    return made, warnings


def added(hook):
    """The file in bge_kernels that the hook adds to a wheel, and its tag."""
    data = {"force_include": {}}
    hook.initialize("standard", data)
    ((source, place),) = data["force_include"].items()
    return Path(source), place, data.get("tag")


def test_operators_can_be_left_out(hook, monkeypatch):
    """The installation says who did."""
    made, warnings = hook
    monkeypatch.setenv("BGE_KERNELS", "none")
    assert made.dependencies() == []
    source, place, tag = added(made)
    assert (place, tag) == ("bge_kernels/missing.txt", None)
    assert source.read_text() == "BGE_KERNELS=none left them out when this was installed\n"
    assert len(warnings) == 1


def test_a_build_that_fails_is_an_installation_without(hook, monkeypatch):
    made, warnings = hook
    monkeypatch.delenv("BGE_KERNELS", raising=False)
    monkeypatch.setenv("CXX", "/no/such/compiler")
    source, place, _ = added(made)
    assert place == "bge_kernels/missing.txt"
    assert "expected a C++ compiler at /no/such/compiler" in source.read_text()
    assert "no operators" in warnings[0]


def test_zig_is_fetched_where_there_is_no_compiler(hook, monkeypatch, tmp_path):
    made, _ = hook
    monkeypatch.delenv("BGE_KERNELS", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [name.partition("=")[0] for name in made.dependencies()] == ["ziglang"]
    monkeypatch.setenv("CXX", "c++")
    assert made.dependencies() == []
    monkeypatch.setenv("BGE_KERNELS", "linux-aarch64")  # for another machine
    assert [name.partition("=")[0] for name in made.dependencies()] == ["ziglang"]


@built
def test_a_wrong_instruction_set_is_a_clear_error(int8):
    """It says which there are."""
    code = "import sys; from bge_onnx import Embedder; Embedder.open(sys.argv[1]).embed(['a'])"
    done = subprocess.run(
        [sys.executable, "-c", code, int8],
        env={**os.environ, "BGE_KERNELS_ISA": "sse9"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-2:]
    assert last[0].startswith("bge_onnx.errors.OperatorsError: ")
    assert "BGE_KERNELS_ISA: expected one of" in last[0]
    assert "found sse9" in last[0]


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    """A bundle of eight bits as `bge-export run` makes it."""
    checkpoint = tmp_path_factory.mktemp("wide")
    write_checkpoint(checkpoint, hidden_size=64, intermediate_size=192, num_attention_heads=2)
    request = Request(model="wide", target="cpu-int8", checkpoint=checkpoint, options=Options(pooling="cls"))
    return export(request, tmp_path_factory.mktemp("int8") / "bundle").folder


@built
def test_info_shows_operators_and_the_instruction_set(int8):
    shown = CliRunner().invoke(cli, ["info", str(int8)])
    assert shown.exit_code == 0, shown.output
    (line,) = [line for line in shown.output.splitlines() if line.startswith("operators")]
    assert line.startswith(f"operators    {bge_kernels.NAME}, on ")


@built
def test_an_older_onnxruntime_is_a_clear_error(int8, monkeypatch):
    """What the library says when ONNX Runtime offers no interface of its headers' version."""

    def refuse(*_):
        raise RuntimeError("[ONNXRuntimeError] : bge_kernels: expected ONNX Runtime 1.21 or newer, found 1.19")

    monkeypatch.setattr(kernels_module.ort.SessionOptions, "register_custom_ops_library", refuse)
    with pytest.raises(OperatorsError, match=r"a library of operators .* expected ONNX Runtime 1\.21 or newer"):
        Embedder.open(int8).embed(["a"])
