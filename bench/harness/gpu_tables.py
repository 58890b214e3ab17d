"""The tables of `gpu.py`, from a results file."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tabulate import tabulate

from harness import benchmark
from harness.tables import flops


def speed_rows(model: str, record: Mapping[str, Any], peak: float) -> Iterator[list[str]]:
    for name, workload in record["workloads"].items():
        by_system = record["seconds"][name]
        medians = {system: statistics.median(map(sum, rounds)) for system, rounds in by_system.items()}
        for system, total in medians.items():
            three = system.endswith("3 heads")
            peers = [other for other in medians if other.startswith("PyTorch") and other.endswith("3 heads") == three]
            best = min((medians[peer] for peer in peers), default=float("nan"))
            if workload["single"]:
                times = [1e3 * seconds for rounds in by_system[system] for seconds in rounds]
                cells = ["", f"{statistics.median(times):.2f}", f"{np.percentile(times, 95):.2f}", ""]
            else:
                share = flops(record["config"], workload) / total / 1e12 / peak
                cells = [f"{workload['tokens'] / total:,.0f}", "", "", f"{share:.0%}"]
            ratio = f"{best / total:.2f}" if system.startswith("ours") else ""
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
