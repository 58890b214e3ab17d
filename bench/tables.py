"""The tables of `cpu.py`, from a results file."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from tabulate import tabulate

import harness


def table(record: dict[str, Any]) -> str:
    """The committed tables, from a results file."""
    lines = [line for model in record["models"] for line in model_table(model)]
    return "\n".join([*lines, f"{record['rounds']} rounds. {harness.machine_line(record['machine'])}"])


def model_table(model: dict[str, Any]) -> list[str]:
    """A model's rows and what is said of each system under them."""
    order = list(model["startup_seconds"])
    rows = [row for name in model["workloads"] for row in workload_rows(model, name, order)]
    headers = ["workload", "system", "texts/s", "tokens/s", "p50 ms", "p95 ms", "ours / best peer"]
    headers += ["int8 / fp32"] if any("int8" in system for system in order) else []
    exports = [harness.export_line(target, found) for target, found in model["export"].items()]
    bullets = [
        f"- {fact}: {'; '.join(f'{key} {value}' for key, value in by.items())}"
        for fact, by in facts(model, order).items()
    ]
    title, body = f"### {model['model']}\n", tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return [title, body, "", *bullets, *exports, ""]


def workload_rows(model: dict[str, Any], name: str, order: list[str]) -> list[list[str]]:
    """A row for each system: rates of a corpus, or milliseconds of single texts, and how ours compare."""
    workload, medians, rows = model["workloads"][name], {}, []
    for system in order:
        rounds = model["results"][name][system]
        if workload["single"]:
            times = [1e3 * seconds for run in rounds for seconds in run]
            medians[system] = statistics.median(times)
            cells = ["", "", f"{medians[system]:.1f}", f"{np.percentile(times, 95):.1f}"]
        else:
            medians[system] = statistics.median(sum(run) for run in rounds)
            rates = [workload[unit] / medians[system] for unit in ("texts", "tokens")]
            cells = [f"{rates[0]:.1f}", f"{rates[1]:.0f}", "", ""]
        rows.append([name, system, *cells])
    return [[*row, *ratios(row[1], medians)] for row in rows]


def ratios(system: str, medians: dict[str, float]) -> list[str]:
    """Of one of ours: to the fastest peer, rounded ones beside int8 only; and of int8 to our own float32."""
    rounded = any("int8" in name for name in medians)
    if not system.startswith("ours"):
        return ["", ""][: 1 + rounded]
    int8 = "int8" in system
    peers = [name for name in medians if not name.startswith("ours") and (int8 or name != "quantize_dynamic")]
    best = f"{min(medians[name] for name in peers) / medians[system]:.2f}"
    gain = f"{medians[system.replace(' int8', '')] / medians[system]:.2f}" if int8 else ""
    return [best, gain][: 1 + rounded]


def facts(model: dict[str, Any], order: list[str]) -> dict[str, dict[str, str]]:
    """What is measured once for each system."""
    found = {
        "peak MiB": {system: f"{model['results']['peak_mib'][system]:.0f}" for system in order},
        "start-up to first vector, seconds": {
            system: f"{statistics.median(model['startup_seconds'][system]):.2f}" for system in order
        },
        "largest difference from PyTorch (dense)": {system: f"{model['max_error'][system]:.1e}" for system in order},
    }
    if "least_cosine" in model:
        least = model["least_cosine"]
        found["least cosine to PyTorch (dense)"] = {system: f"{least[system]:.5f}" for system in order}
    if model.get("long"):
        found["one text of 8192 tokens in a process of its own, seconds and peak MiB"] = {
            system: f"{one['seconds'] or float('nan'):.0f} s, {one['peak_mib']:.0f}"
            for system, one in model["long"].items()
        }
    return found
