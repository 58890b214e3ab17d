"""What is kept of a workload's samples: medians and spreads, in seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rounds = Sequence[Sequence[float]]
"""Seconds of each call, by round."""


def summary(rounds: Rounds, *, single: bool) -> dict[str, float]:
    """Of one system's rounds of a workload.

    seconds        the median: of single texts of all calls, else of the rounds' sums
    round_seconds  the median of the rounds' sums
    p95_seconds    of single texts, what 95 % of the calls stay under
    spread         of the rounds' sums, the largest less the smallest, over the median
    """
    totals = [sum(run) for run in rounds]
    middle = statistics.median(totals)
    found = {"seconds": middle, "round_seconds": middle, "spread": (max(totals) - min(totals)) / middle}
    if single:
        calls = [second for run in rounds for second in run]
        found |= {"seconds": statistics.median(calls), "p95_seconds": float(np.percentile(calls, 95))}
    return found


def summaries(
    results: Mapping[str, Mapping[str, Rounds]], workloads: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Of every workload and system."""
    return {
        name: {system: summary(rounds, single=workloads[name]["single"]) for system, rounds in by_system.items()}
        for name, by_system in results.items()
    }
