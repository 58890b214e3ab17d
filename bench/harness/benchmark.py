"""What the benchmarks share: the machine, a command's peak memory, results files and their tables."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bge_export.bundle import writer as bundle_writer
from bge_onnx.run.threads import available_threads

INNERMOST = re.compile(r"[\[{]\n[^\[\]{}]*[\]}]")
LONGEST_LINE = 160


def timed(command: Sequence[str]) -> dict[str, Any]:
    """Run a command; its output, seconds, and peak memory as /usr/bin/time reports it. Its exit status is in `code`,
    what it said on stderr in `said`.
    """
    with tempfile.NamedTemporaryFile("r") as report:
        start = time.perf_counter()
        full = ["/usr/bin/time", "-f", "%M", "-o", report.name, *command]
        done = subprocess.run(full, check=False, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        return {
            "code": done.returncode,
            "stdout": done.stdout,
            "said": done.stderr,
            "seconds": seconds,
            "peak_mib": int(report.read().split()[-1]) / 1024,
        }


def write_checkpoint(model: str, folder: Path, *, graphs: bool = False) -> None:
    """Seeded weights of a model, and PyTorch's graphs of it where asked, by a process of its own; see `prepare.py`.

    Raises SystemExit: it failed.
    """
    command = [sys.executable, "-P", str(Path(__file__).with_name("prepare.py")), model, str(folder)]
    made = timed([*command, "--graphs"] if graphs else command)
    if made["code"]:
        raise SystemExit(f"prepare.py ended with {made['code']}: {made['said'][-1000:]}")


def export(model: str, target: str, checkpoint: Path, out: Path, calibrate: str = "random") -> dict[str, Any]:
    """Export a bundle to `out`; seconds, peak memory, size and parity. Raises SystemExit: it failed.

    target  with "-standard" behind it, a bundle without operators of our own
    """
    name = target.removesuffix("-standard")
    command = ["bge-export", "run", model, "--target", name, "--checkpoint", str(checkpoint), "--out", str(out)]
    command += ["--calibrate", calibrate] if name == "cpu-int8" and calibrate != "random" else []
    command += ["--kernels", "none"] if name != target else []
    found = timed(command)
    if found["code"]:
        raise SystemExit(f"{' '.join(command)} ended with {found['code']}: {found['said'][-1000:]}")
    record = json.loads((out / "bundle.json").read_text())
    return {
        "seconds": found["seconds"],
        "peak_mib": found["peak_mib"],
        "size_mb": sum(file["size_bytes"] for file in record["files"].values()) / 1e6,
        "parity": {**next(iter(record["parity"]["heads"].values())), "reference": record["parity"]["reference"]},
    }


def export_line(target: str, found: dict[str, Any]) -> str:
    """An export in a table's footnote; results of before have no size or parity."""
    size = f", {found['size_mb']:.0f} MB" if "size_mb" in found else ""
    parity = found.get("parity")
    error = f"; largest error {parity['max_error']:.1e} of {parity['limit']:.1e}" if parity else ""
    return f"- export for {target}: {found['seconds']:.0f} s, peak {found['peak_mib']:.0f} MiB{size}{error}"


def machine() -> dict[str, Any]:
    cpu = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    flags = Path("/proc/cpuinfo").read_text()
    names = ("bge-onnx", "onnxruntime", "torch", "transformers", "sentence-transformers", "numpy")
    return {
        "cpu": cpu,
        "family_model": [
            next(line.split(":")[1].strip() for line in flags.splitlines() if line.startswith(key))
            for key in ("cpu family", "model\t")
        ],
        "isa": [flag for flag in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8") if f" {flag}" in flags],
        "threads": available_threads(),
        "python": platform.python_version(),
        "versions": {name: bundle_writer.version_of(name) for name in names},
        "commit": commit(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def commit() -> str:
    """The commit that is checked out; empty where there is no git."""
    git = shutil.which("git")
    command = [git or "git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() if git else ""


def machine_line(about: dict[str, Any]) -> str:
    """The machine and what ran on it, under a table."""
    family, number = about["family_model"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return (
        f"{about['cpu']} (family {family}, model {number}; {', '.join(about['isa'])}), {about['threads']} cores, "
        f"{about['date']}, commit {about['commit']}; {versions}, Python {about['python']}."
    )


def main(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, Path], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    *,
    needs: Sequence[str],
) -> dict[str, Any]:
    """Run a benchmark and keep its results, or print the table of a results file; returns the results.

    run    of the arguments and a folder for what it writes
    needs  the names of arguments that a run needs
    """
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use what is there")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--print", type=Path, dest="file", help="print the table of a results file")
    arguments = parser.parse_args()
    if arguments.file:
        record: dict[str, Any] = json.loads(arguments.file.read_text())
        print(table(record))
        return record
    missing = [f"--{name}" for name in needs if not getattr(arguments, name)]
    if missing:
        parser.error(f"{', '.join(missing)} needed")
    with tempfile.TemporaryDirectory(prefix="bge-bench-") as temporary:
        record = {"machine": machine(), **run(arguments, arguments.folder or Path(temporary))}
    write(arguments.out, record, table)
    print(table(record))
    return record


def write(out: Path | None, record: dict[str, Any], table: Callable[[dict[str, Any]], str] | None = None) -> None:
    """Keep results, if they are to be kept: what holds no other list or object on one line, and the tables beside."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1)
        out.write_text(INNERMOST.sub(_on_one_line, text) + "\n")
        if table:
            out.with_suffix(".md").write_text(table(record) + "\n")


def _on_one_line(found: re.Match[str]) -> str:
    line = re.sub(r"\n\s*", " ", found.group())
    return line if len(line) <= LONGEST_LINE else found.group()


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that prints a module's docstring as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
