"""The tables of `gpu.py`, from a results file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tabulate import tabulate

from harness import benchmark
from harness.tables import flops


def speed_rows(model: str, record: Mapping[str, Any], peak: float) -> Iterator[list[str]]:
    for name, workload in record["workloads"].items():
        results = record["results"][name]
        for system, found in results.items():
            three = system.endswith("3 heads")
            peers = [other for other in results if other.startswith("PyTorch") and other.endswith("3 heads") == three]
            best = min((results[peer]["round_seconds"] for peer in peers), default=float("nan"))
            if workload["single"]:
                cells = ["", f"{1e3 * found['seconds']:.2f}", f"{1e3 * found['p95_seconds']:.2f}", ""]
            else:
                share = flops(record["config"], workload) / found["seconds"] / 1e12 / peak
                cells = [f"{workload['tokens'] / found['seconds']:,.0f}", "", "", f"{share:.0%}"]
            ratio = f"{best / found['round_seconds']:.2f}" if system.startswith("ours") else ""
            yield [model, name, system, *cells, ratio]


def table(record: dict[str, Any]) -> str:
    """What was checked, and how fast it was."""
    if record["device"] is None:
        built = sum(len(targets) for targets in record["parity"].values())
        return f"{built} bundles built, nothing compared: a dry run"
    checks = [
        [model, target, head, f"{values['max_error']:.1e}", f"{values['limit']:.1e}", values["tokens"]]
        for model, targets in record["parity"].items()
        for target, found in targets.items()
        for head, values in found.get("heads", {}).items()
    ]
    failed = [
        [model, target, found["error"].splitlines()[0], "", "", ""]
        for model, targets in record["parity"].items()
        for target, found in targets.items()
        if "error" in found
    ]
    parts = [tabulate(checks + failed, ["model", "target", "head", "largest error", "limit", "at tokens"], "github")]
    for model, found in record["speed"].items():
        parts += [f"{model}: {system} FAILED: {reason}" for system, reason in found["failed"].items()]
    for model, kernels in record["kernels"].items():
        taken = ", ".join(f"{kernel} ({nodes} nodes)" for kernel, nodes in kernels.items())
        parts.append(f"attention kernels of {model}: {taken or 'nothing was said'}")
    if record["speed"]:
        peak = record["device"]["peak_tflops"]
        rows = [row for model, found in record["speed"].items() for row in speed_rows(model, found, peak)]
        headers = ["model", "workload", "system", "tokens/s", "p50 ms", "p95 ms", "of peak", "best PyTorch / ours"]
        parts.append(tabulate(rows, headers, "github", disable_numparse=True))
    about = record["device"]
    parts.append(f"{about['name']}, {about['peak_tflops']:.0f} TFLOP/s. {benchmark.machine_line(record['machine'])}")
    return "\n\n".join(parts)
