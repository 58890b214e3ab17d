"""`cpu.py --quick`: did we get slower? Our speed over PyTorch's in one run, beside what the committed results say.

Shared machines change from hour to hour; the ratio of two systems that take turns does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

import harness

RESULTS = Path(__file__).with_name("results")
OURS, PEER = ("ours", "ours int8"), "sentence-transformers"
WORKLOADS = ("mix", "8x128", "one 16")
SLOWER = 0.8
"""Of the committed ratio: less is slower. Two runs on one quiet machine differ by up to a tenth."""


def main(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace, Path], dict[str, Any]]) -> int:
    """Measure, print and compare; 1 where we got slower."""
    parser.set_defaults(
        models="base", systems=[*OURS, PEER], workloads=list(WORKLOADS), scale=0.4, rounds=5, calibrate="none"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bge-quick-") as temporary:
        record = run(arguments, Path(temporary))
    found = ratios(record["models"][0])
    about = harness.machine()
    committed = committed_ratios(about, record["models"][0])
    rows = [
        [name, system, f"{ratio:.2f}", f"{committed[name, system]:.2f}" if (name, system) in committed else "-"]
        for (name, system), ratio in found.items()
    ]
    print(tabulate(rows, ["workload", "system", "speed / PyTorch's", "committed"], "github", disable_numparse=True))
    print(harness.machine_line(about))
    if not committed:
        print("no results of this CPU are committed: nothing to compare with")
    slower = [key for key, ratio in found.items() if key in committed and ratio < SLOWER * committed[key]]
    for workload, system in slower:
        print(f"SLOWER: {system} on {workload}")
    return 1 if slower else 0


def ratios(model: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """PyTorch's median seconds over ours, by workload and system."""
    found = {}
    for name in WORKLOADS:
        by_system = model["results"].get(name, {})
        if PEER in by_system:
            medians = {system: statistics.median(map(sum, rounds)) for system, rounds in by_system.items()}
            found |= {(name, system): medians[PEER] / medians[system] for system in OURS if system in medians}
    return found


def committed_ratios(about: Mapping[str, Any], model: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Those of the newest results on a CPU of this kind with the same model and threads."""
    alike: list[tuple[str, dict[tuple[str, str], float]]] = []
    for path in RESULTS.glob("cpu*.json"):
        record = json.loads(path.read_text())
        machine = record["machine"]
        if (machine["family_model"], machine["isa"]) == (about["family_model"], about["isa"]):
            alike += [
                (machine["date"], ratios(other))
                for other in record["models"]
                if other["model"] == model["model"] and other.get("threads", machine["threads"]) == model["threads"]
            ]
    return max(alike, key=lambda entry: entry[0])[1] if alike else {}
