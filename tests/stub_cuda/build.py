"""Stub CUDA libraries, so that the host code of onnxruntime-gpu runs where there is no GPU.

    python tests/stub_cuda/build.py UNPACKED_WHEEL OUT      needs gcc, nm and CUDA's headers (CUDA_INCLUDE names them)

Every function that ONNX Runtime's CUDA provider takes from a library is there: those of `cudart.c`, and for all others
one that does nothing and says that it went well.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
INCLUDE = os.environ.get("CUDA_INCLUDE", "/usr/local/cuda/include")

# Of libraries but the runtime: functions that have to give something back.
GIVING = {
    "cublasGetMathMode": "int cublasGetMathMode(void *handle, int *mode) { return *mode = 0; }",
    "cublasCreate_v2": "int cublasCreate_v2(void **handle) { return *handle = malloc(8), 0; }",
}
LIBRARIES = {"cudart": "libcudart.so.13", "cublas": "libcublas.so.13", "cublasLt": "libcublasLt.so.13"}
UNVERSIONED = {
    "cuda": ("libcuda.so.1", "int cuTensorMapEncodeTiled(void) { return 0; }"),
    "curand": ("libcurand.so.10", "int stub_curand;"),
}


def wanted(provider: Path) -> dict[str, list[str]]:
    """The functions that a library is asked for, by the library's name."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = defaultdict(list)
    for symbol, library in re.findall(r"^\s+U (\w+)@+(lib\S+)$", listed.stdout, re.MULTILINE):
        found[library].append(symbol)
    return found


def stub(symbol: str) -> str:
    """A function that does nothing."""
    if symbol in GIVING:
        return GIVING[symbol]
    if symbol.startswith("cublasGetStatus"):
        return f'const char *{symbol}(int status) {{ return "stub"; }}'
    if symbol.endswith("Create"):
        return f"int {symbol}(void **handle) {{ return *handle = malloc(8), 0; }}"
    return f"int {symbol}(void) {{ return 0; }}"


def compile_library(out: Path, library: str, source: str, *, version: str | None) -> None:
    """A shared library of C source, whose functions have a version where ONNX Runtime asks for one."""
    (out / f"{library}.c").write_text(source)
    (out / f"{library}.map").write_text(f"{version or ''} {{ global: *; }};\n")
    options = ["-w", "-O1", "-shared", "-fPIC", f"-I{INCLUDE}", f"-Wl,-soname,{library}"]
    script = f"-Wl,--version-script={library}.map"
    subprocess.run(["gcc", *options, f"{library}.c", "-o", library, script], cwd=out, check=True)


def build(wheel: Path, out: Path) -> None:
    """Write the stub libraries for an unpacked onnxruntime-gpu into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    symbols = wanted(wheel / PROVIDER)
    runtime = (HERE / "cudart.c").read_text()
    done = set(re.findall(r"\b(__cuda\w+|cuda[A-Z]\w+)\(", runtime))
    for name, library in LIBRARIES.items():
        missing = [symbol for symbol in symbols[library] if name != "cudart" or symbol not in done]
        source = runtime if name == "cudart" else "#include <stdlib.h>\n"
        compile_library(out, library, source + "\n".join(map(stub, missing)) + "\n", version=library)
    for library, source in UNVERSIONED.values():
        compile_library(out, library, source + "\n", version=None)


if __name__ == "__main__":
    build(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
