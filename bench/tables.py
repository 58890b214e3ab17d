"""The tables of `cpu.py`, from a results file."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from tabulate import tabulate


def ratios(system: str, medians: dict[str, float]) -> list[str]:
    """Of one of ours: to the fastest peer, rounded ones beside int8 only; and of int8 to our own float32."""
    if not system.startswith("ours"):
        return ["", ""]
    int8 = "int8" in system
    peers = [name for name in medians if not name.startswith("ours") and (int8 or name != "quantize_dynamic")]
    best = min(medians[name] for name in peers) / medians[system]
    return [f"{best:.2f}", f"{medians[system.replace(' int8', '')] / medians[system]:.2f}" if int8 else ""]


def model_table(model: dict[str, Any]) -> list[str]:
    rows = []
    order = list(model["startup_seconds"])
    for name, workload in model["workloads"].items():
        medians = {}
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
        for row in rows[-len(order) :]:
            row.extend(ratios(row[1], medians))
    headers = ["workload", "system", "texts/s", "tokens/s", "p50 ms", "p95 ms", "ours / best peer", "int8 / fp32"]
    facts = {
        "peak MiB": {system: f"{model['results']['peak_mib'][system]:.0f}" for system in order},
        "start-up to first vector, seconds": {
            system: f"{statistics.median(model['startup_seconds'][system]):.2f}" for system in order
        },
        "largest difference from PyTorch (dense)": {system: f"{model['max_error'][system]:.1e}" for system in order},
    }
    if "least_cosine" in model:
        least = model["least_cosine"]
        facts["least cosine to PyTorch (dense)"] = {system: f"{least[system]:.5f}" for system in order}
    if model.get("long"):
        facts["one text of 8192 tokens in a process of its own, seconds and peak MiB"] = {
            system: f"{found['seconds'] or float('nan'):.0f} s, {found['peak_mib']:.0f}"
            for system, found in model["long"].items()
        }
    bullets = [f"- {fact}: {'; '.join(f'{key} {value}' for key, value in by.items())}" for fact, by in facts.items()]
    exports = [
        f"- export for {target}: {found['seconds']:.0f} s, peak {found['peak_mib']:.0f} MiB"
        + (f", {found['size_mb']:.0f} MB" if "size_mb" in found else "")
        for target, found in model["export"].items()
    ]
    return [
        f"### {model['model']}\n",
        tabulate(rows, headers, tablefmt="github", disable_numparse=True),
        "",
        *bullets,
        *exports,
        "",
    ]


def table(record: dict[str, Any]) -> str:
    """The committed tables, from a results file."""
    lines = [line for model in record["models"] for line in model_table(model)]
    about = record["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines.append(
        f"{about['cpu']} (family {about['family_model'][0]}, model {about['family_model'][1]}; "
        f"{', '.join(about['isa'])}), "
        f"{about['threads']} cores, {record['rounds']} rounds, {about['date']}, commit {about['commit']}; {versions}, "
        f"Python {about['python']}."
    )
    return "\n".join(lines)
