"""`cpu.py --quick`: did we get slower? Our speed over PyTorch's in one run, beside what the committed results say.

Shared machines change from hour to hour; the ratio of two systems that take turns does not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from harness import benchmark

RESULTS = Path(__file__).with_name("results")
OURS, PEER = ("ours", "ours int8"), "sentence-transformers"
WORKLOADS = ("mix", "8x128", "one 16")
SLOWER = 0.8
"""Of the committed ratio: less is slower. Two runs on one quiet machine differ by up to a tenth."""


def main(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace, Path], dict[str, Any]]) -> int:
    """Measure, print and compare; 1 where we got slower, or ours does not run."""
    parser.set_defaults(models="base", systems=[*OURS, PEER], workloads=list(WORKLOADS), calibrate="none", out=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bge-quick-") as temporary:
        record = run(arguments, Path(temporary))
    model = record["models"][0]
    found, about = ratios(model), benchmark.machine()
    committed = committed_ratios(about, model)
    rows = [
        [
            name,
            system,
            f"{found[name, system]:.2f}" if (name, system) in found else "-",
            f"{ratio:.2f}" if ratio else "-",
        ]
        for name, system in dict.fromkeys([*found, *committed])
        for ratio in [committed.get((name, system))]
    ]
    print(tabulate(rows, ["workload", "system", "speed / PyTorch's", "committed"], "github", disable_numparse=True))
    print(benchmark.machine_line(about))
    if not committed:
        print("no results of this CPU are committed: nothing to compare with")
    for system, reason in model["failed"].items():
        print(f"FAILED: {system}: {reason}")
    slower = [key for key, ratio in committed.items() if not found.get(key, 0) >= SLOWER * ratio]
    for workload, system in slower:
        print(f"SLOWER: {system} on {workload}")
    return 1 if slower or model["failed"] else 0


def ratios(model: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """PyTorch's median seconds over ours, by workload and system."""
    found: dict[tuple[str, str], float] = {}
    for name in WORKLOADS:
        by_system = model["results"].get(name, {})
        if PEER in by_system:
            medians = {system: one["round_seconds"] for system, one in by_system.items()}
            found |= {(name, system): medians[PEER] / medians[system] for system in OURS if system in medians}
    return found


def committed_ratios(about: Mapping[str, Any], model: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """The newest on a CPU of this kind with the same model and threads, of each workload and system."""
    alike: list[tuple[tuple[str, str], dict[tuple[str, str], float]]] = []
    for path in RESULTS.glob("cpu*.json"):
        record = json.loads(path.read_text())
        machine = record["machine"]
        if (machine["family_model"], machine["isa"]) == (about["family_model"], about["isa"]):
            alike += [
                ((machine["date"], path.name), ratios(other))
                for other in record["models"]
                if other["model"] == model["model"] and other.get("threads", machine["threads"]) == model["threads"]
            ]
    found: dict[tuple[str, str], float] = {}
    for _, ratio in sorted(alike, key=lambda entry: entry[0]):
        found |= ratio
    return found
