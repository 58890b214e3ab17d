"""Looks at what `scripts/wheels` made: wheels_check.py FOLDER. Exit 1 where a wheel is not what its name says."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import lief

LARGEST_BYTES = 1_000_000
"""Of a wheel."""

EXPORTED = {"RegisterCustomOps", "BgeKernelsInstructionSet"}

# What a library may need, by the beginning of its name: what every such system has.
SYSTEM = {
    "ELF": ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux"),
    "MACHO": ("/usr/lib/libSystem", "@rpath/library"),  # the second is its own name
    "PE": ("KERNEL32.dll", "api-ms-win-crt-", "ntdll.dll"),
}
WANTED = {
    "manylinux2014_x86_64": ("ELF", "X86_64"),
    "manylinux2014_aarch64": ("ELF", "AARCH64"),
    "macosx_13_0_arm64": ("MACHO", "ARM64"),
    "macosx_13_0_x86_64": ("MACHO", "X86_64"),
    "win_amd64": ("PE", "AMD64"),
}


def faults_of(wheel: Path, library: Path, tag: str) -> list[str]:
    """What is wrong with a wheel."""
    binary = lief.parse(str(library))
    if binary is None:
        return ["its library is none"]
    header = binary.header
    machine = {"ELF": "machine_type", "MACHO": "cpu_type", "PE": "machine"}[binary.format.name]
    found = binary.format.name, getattr(header, machine).name
    faults = [] if found == WANTED[tag] else [f"expected a library for {WANTED[tag]}, found {found}"]
    exported = {function.name.removeprefix("_") for function in binary.exported_functions}
    faults += [f"{name} is not exported" for name in sorted(EXPORTED - exported)]
    needed = [getattr(one, "name", one) for one in binary.libraries]
    faults += [f"needs {name}" for name in needed if not name.startswith(SYSTEM[binary.format.name])]
    if wheel.stat().st_size > LARGEST_BYTES:
        faults.append(f"has {wheel.stat().st_size} bytes, over {LARGEST_BYTES}")
    return faults


def main() -> int:
    """The command."""
    code = 0
    for path in sorted(Path(sys.argv[1]).glob("bge_onnx-*")):
        if path.suffix != ".whl":
            with tarfile.open(path) as files:
                names = files.getnames()
            sources = [name for name in names if name.endswith((".cc", ".h"))]
            print(f"{path.name}  {path.stat().st_size / 1e3:.0f} kB, {len(names)} files, {len(sources)} of C++")
            code |= not sources
            continue
        tag = path.stem.rsplit("-", 1)[-1]
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as files:
            (name,) = [name for name in files.namelist() if name.startswith("bge_kernels/library")]
            library = Path(files.extract(name, folder))
            faults = faults_of(path, library, tag)
            size = f"{path.stat().st_size / 1e3:.0f} kB, {name} {library.stat().st_size / 1e3:.0f} kB"
            print(f"{path.name}  {size}  {'; '.join(faults) or 'as it should be'}")
            code |= bool(faults)
        if "linux" in tag:
            shown = subprocess.run(["auditwheel", "show", path], capture_output=True, text=True, check=False)
            print("  auditwheel: " + " ".join(shown.stdout.split() or shown.stderr.split()[-20:]))
            code |= f"manylinux_2_17_{tag.removeprefix('manylinux2014_')}" not in shown.stdout
    return code


if __name__ == "__main__":
    sys.exit(main())
