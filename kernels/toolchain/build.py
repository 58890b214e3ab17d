"""Build the operators: python kernels/toolchain/build.py [--platform PLATFORM] [--sanitize] OUT.

The compiler is CXX's, or g++ or clang++, or Zig's from PyPI (`pip install ziglang`), which compiles for every platform.
Nothing of ONNX Runtime is linked; its headers lie in `headers/`.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parent
SOURCES = KERNELS / "bge_kernels"
OPERATORS = ("rotate_quantize", "dequantize_bias_gelu", "residual_layer_norm", "int8_linear")
COMPILERS = ("g++", "clang++")

# No contraction: the same bits on every instruction set.
FLAGS = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

X86 = {
    "baseline": [],
    "avx2": ["-mavx2"],
    "avx_vnni": ["-mavx2", "-mavxvnni"],
    "avx512_vnni": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"],
}
ARM = {
    "baseline": [],
    "dotprod": ["-march=armv8.2-a+dotprod"],
    "i8mm": ["-march=armv8.2-a+dotprod+i8mm"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What wheels are made for.

    zig     what Zig calls it, with the oldest C library that it runs with
    tag     of a wheel
    suffix  of a library
    isas    instruction sets, each with its flags
    """

    zig: str
    tag: str
    suffix: str
    isas: dict[str, list[str]]


PLATFORMS = {
    "linux-x86_64": Platform(zig="x86_64-linux-gnu.2.17", tag="manylinux2014_x86_64", suffix=".so", isas=X86),
    "linux-aarch64": Platform(zig="aarch64-linux-gnu.2.17", tag="manylinux2014_aarch64", suffix=".so", isas=ARM),
    "macos-arm64": Platform(zig="aarch64-macos.13.0", tag="macosx_13_0_arm64", suffix=".dylib", isas=ARM),
    "macos-x86_64": Platform(zig="x86_64-macos.13.0", tag="macosx_13_0_x86_64", suffix=".dylib", isas=X86),
    "windows-x86_64": Platform(zig="x86_64-windows-gnu", tag="win_amd64", suffix=".dll", isas=X86),
}
SYSTEMS = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
MACHINES = {"AMD64": "x86_64", "arm64": "aarch64"}
"""Other names of machines; macOS keeps arm64."""


class BuildError(Exception):
    """The operators cannot be built here; the text says why."""


def this_platform() -> str | None:
    """The name of the platform that this runs on; None where it is none of ours."""
    system, machine = SYSTEMS.get(platform.system(), ""), platform.machine()
    machine = machine if system == "macos" else MACHINES.get(machine, machine)
    return name if (name := f"{system}-{machine}") in PLATFORMS else None


def system_compiler() -> list[str] | None:
    """A compiler of this machine, for this machine: what CXX names, GCC or Clang. None where there is none."""
    if given := os.environ.get("CXX"):
        return given.split()
    return next(([found] for name in COMPILERS if (found := shutil.which(name))), None)


def zig_compiler(target: Platform) -> list[str] | None:
    """Zig's compiler for a platform; None where Python has no package ziglang."""
    if not find_spec("ziglang"):
        return None
    # Zig adds checks of undefined behaviour and symbols for a debugger, unless told.
    return [sys.executable, "-m", "ziglang", "c++", "-target", target.zig, "-fno-sanitize=undefined", "-s"]


def build(out: Path, name: str | None = None, *, sanitize: bool = False) -> Path:
    """Build the library of a platform into the folder `out`; returns its path.

    name      of the platform, which Zig compiles for; None for this one, and the machine's own compiler if it has one
    sanitize  instead a program that runs every operator under AddressSanitizer and UndefinedBehaviorSanitizer

    Raises BuildError: no compiler, one that cannot compile this, or a platform that has no operators.
    """
    wanted = name or this_platform()
    if wanted not in PLATFORMS:
        raise BuildError(f"expected one of {', '.join(PLATFORMS)}, found {name or platform.platform()}")
    target = PLATFORMS[wanted]
    compiler = (None if name else system_compiler()) or zig_compiler(target)
    if compiler is None:
        raise BuildError("expected a C++ compiler (g++, clang++, or pip install ziglang), found none")
    flags = [*FLAGS, *(SANITIZE if sanitize else ["-fvisibility=hidden"])]
    if target.suffix == ".dll":
        flags += ["-D_stdcall=__stdcall", "-include", "sal.h"]  # what ONNX Runtime's header expects of Microsoft's
    else:
        flags.append("-fPIC")
    with tempfile.TemporaryDirectory() as folder:
        compile_one = Compile(compiler, flags, Path(folder))
        isas = {isa: more for isa, more in target.isas.items() if name or compile_one.knows(more)}
        defines = [f"-DBGE_HAS_{isa.upper()}" for isa in isas if isa != "baseline"]
        jobs = [
            (SOURCES / op / "cpu.cc", f"{isa}.{op}", [*more, f"-DBGE_ISA={isa}"])
            for isa, more in isas.items()
            for op in OPERATORS
        ]
        jobs.append((SOURCES / "dispatch.cc", "dispatch", defines))
        if sanitize:
            jobs.append((KERNELS / "sanitize.cc", "sanitize", []))
            path, link = out / "sanitize", []
        else:
            more = ["-isystem", str(HERE / "headers"), f"-DBGE_KERNELS_VERSION={version()}"]
            jobs.append((SOURCES / "library.cc", "library", more))
            path, link = out / f"library{version()}{target.suffix}", ["-shared"]
            if target.suffix == ".dylib":  # else it is called by the folder that it was built in
                link.append(f"-Wl,-install_name,@rpath/{path.name}")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: compile_one(*job), jobs))
        out.mkdir(parents=True, exist_ok=True)
        built = Path(folder) / path.name
        run([*compiler, *(SANITIZE if sanitize else []), *link, *map(str, objects), "-o", str(built)])
        shutil.copyfile(built, path)
        shutil.copymode(built, path)
    return path


@dataclass(frozen=True, slots=True)
class Compile:
    """Compiles one file after another into objects in a folder."""

    compiler: Sequence[str]
    flags: Sequence[str]
    folder: Path

    def __call__(self, source: Path, name: str, more: Sequence[str]) -> Path:
        """The object of a source. Raises BuildError: the compiler refuses it."""
        path = self.folder / f"{name}.o"
        if "ziglang" in self.compiler:
            more = [flag.replace("-march=armv8.2-a", "-mcpu=generic") for flag in more]  # as Zig calls it
        run([*self.compiler, *self.flags, *more, "-c", str(source), "-o", str(path)])
        return path

    def knows(self, flags: Sequence[str]) -> bool:
        """Whether the compiler knows an instruction set: an old one leaves it out."""
        if not flags:
            return True
        probe = self.folder / "probe.cc"
        probe.write_text("int main() { return 0; }\n", encoding="utf-8")
        try:
            self(probe, "probe", flags)
        except BuildError:
            return False
        return True


def version() -> int:
    """Of the operators, as `bge_kernels` says it."""
    found = re.search(r"^VERSION = (\d+)$", (SOURCES / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return int(found[1])


def run(command: Sequence[str]) -> None:
    """Run a compiler. Raises BuildError with the first error that it told."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"expected a C++ compiler at {command[0]}, found {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        first = next((line for line in lines if "error" in line), lines[-1])
        raise BuildError(f"expected {Path(command[0]).name} to compile the operators, found {first.strip()}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder that the library is written to")
    parser.add_argument("--platform", choices=[*PLATFORMS], help="what to build for; by default what this runs on")
    parser.add_argument("--sanitize", action="store_true", help="the program `sanitize` instead of the library")
    arguments = parser.parse_args()
    try:
        print(build(arguments.out, arguments.platform, sanitize=arguments.sanitize))
    except BuildError as error:
        sys.exit(f"{Path(__file__).name}: {error}")


if __name__ == "__main__":
    main()
