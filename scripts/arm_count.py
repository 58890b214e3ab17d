"""Counts the instructions of Int8Linear's inner loops on ARM, as Zig compiles them; see `scripts/arm`."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCTS = {"i8mm": ("usmmla", 32), "dotprod": ("sdot", 16)}
"""The instruction of an inner loop, and how many products it adds up."""


def inner_loop(isa: str, product: str) -> tuple[int, int]:
    """How many of an instruction the longest block of Int8Linear has, and how many instructions."""
    sys.path.insert(0, str(ROOT / "kernels/toolchain"))
    from build import ARM, FLAGS, PLATFORMS, zig_compiler

    flags = [flag.replace("-march=armv8.2-a", "-mcpu=generic") for flag in ARM[isa]]
    compiler = zig_compiler(PLATFORMS["linux-aarch64"])
    assert compiler
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "cpu.s"
        source = ROOT / "kernels/bge_kernels/int8_linear/cpu.cc"
        how = ["-w", f"-DBGE_ISA={isa}", "-S", str(source), "-o", str(listing)]
        subprocess.run([*compiler, *FLAGS, *flags, *how], check=True)
        lines = listing.read_text(encoding="utf-8").splitlines()
    blocks: list[list[str]] = [[]]
    for line in lines:
        if re.match(r"\.?L\w+:", line):
            blocks.append([])
        elif re.match(r"\t[a-z]", line):
            blocks[-1].append(line)
            if re.match(r"\t(b|b\.\w+|cbn?z|tbn?z)\t", line):
                blocks.append([])
    longest = max(blocks, key=lambda block: sum(product in line for line in block))
    return sum(product in line for line in longest), len(longest)


if __name__ == "__main__":
    for name, (product, sums) in PRODUCTS.items():
        count, instructions = inner_loop(name, product)
        rate = count * sums / instructions
        print(
            f"{name}: {count} {product} among {instructions} instructions of the inner loop, {rate:.1f} products each"
        )
