"""The tables of `cpu.py`, from a results file."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

import harness

HEADERS = (
    "workload", "system", "texts/s", "tokens/s", "spread", "p50 ms", "p95 ms", "error", "of GEMM peak",
    "ours / best peer", "int8 / fp32",
)  # fmt: skip
MEMORY = {
    "peak_mib": "peak MiB",
    "held_mib": "MiB after two seconds of rest",
    "own_mib": "of them MiB that no second process can share",
}
BEFORE = ("ours int8", "ours int8, dense", "ours int8, 3 heads", "quantize_dynamic")
"""Rounded systems of results that do not name theirs."""


def table(record: dict[str, Any]) -> str:
    """The committed tables, from a results file."""
    lines = [line for model in record["models"] for line in model_table(model)]
    return "\n".join([*lines, f"{record['rounds']} rounds. {harness.machine_line(record['machine'])}"])


def model_table(model: dict[str, Any]) -> list[str]:
    """A model's rows and what is said of each system under them."""
    order = list(model["startup_seconds"])
    rows = [row for name in model["workloads"] for row in workload_rows(model, name, order)]
    used = [place for place in range(len(HEADERS)) if any(row[place] for row in rows)]
    threads = f", {model['threads']} thread{'s' * (model['threads'] > 1)}" if "threads" in model else ""
    body = tabulate(
        [[row[place] for place in used] for row in rows],
        [HEADERS[place] for place in used],
        tablefmt="github",
        disable_numparse=True,
    )
    exports = [harness.export_line(target, found) for target, found in model["export"].items()]
    bullets = [
        f"- {fact}: {'; '.join(f'{key} {value}' for key, value in by.items())}"
        for fact, by in facts(model, order).items()
    ]
    return [f"### {model['model']}{threads}\n", body, "", *bullets, *exports, *more(model), ""]


def workload_rows(model: dict[str, Any], name: str, order: Sequence[str]) -> Iterator[list[str]]:
    """A row for each system: rates of a corpus, or milliseconds of single texts, and how ours compare."""
    workload, by_system = model["workloads"][name], model["results"][name]
    medians = {system: median(by_system[system], single=workload["single"]) for system in order}
    rounded = model.get("rounded", BEFORE)
    for system, seconds in medians.items():
        if workload["single"]:
            times = [1e3 * second for run in by_system[system] for second in run]
            cells = ["", "", "", f"{1e3 * seconds:.1f}", f"{np.percentile(times, 95):.1f}"]
        else:
            totals = [sum(run) for run in by_system[system]]
            spread = f"{(max(totals) - min(totals)) / seconds:.0%}"
            cells = [f"{workload['texts'] / seconds:.1f}", f"{workload['tokens'] / seconds:.0f}", spread, "", ""]
        error = f"{model['max_error'][system]:.0e}"
        yield [
            name, system, *cells, error, share(model, workload, system, seconds), *ratios(system, medians, rounded)
        ]  # fmt: skip


def median(rounds: Sequence[Sequence[float]], *, single: bool) -> float:
    """Seconds of one text, or of the workload."""
    return statistics.median([second for run in rounds for second in run] if single else map(sum, rounds))


def share(model: Mapping[str, Any], workload: Mapping[str, Any], system: str, seconds: float) -> str:
    """Of the peak of one large product on this machine, of ours. Dense vectors need one token of the last layer."""
    if "gemm" not in model or workload["single"] or not system.startswith("ours"):
        return ""
    peak = model["gemm"]["int8" if "int8" in system else "float32"] * 1e9
    return f"{flops(model['config'], workload, dense_alone='3 heads' not in system) / seconds / peak:.0%}"


def flops(config: Mapping[str, Any], workload: Mapping[str, Any], *, dense_alone: bool = False) -> float:
    """Operations of the layers on a workload's tokens, padding not counted.

    Decoders share keys and values among heads, gate their MLP, and look back only: half of the scores.

    dense_alone  the last layer has queries, output projections and MLP of one token a text
    """
    width, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, decoder = config["num_attention_heads"], "num_key_value_heads" in config
    head_width = config.get("head_dim") or width // heads
    shared = config.get("num_key_value_heads", heads)
    keys = 2 * shared * head_width * width
    others = 2 * heads * head_width * width + (3 if decoder else 2) * width * inner
    scores = 4 * heads * head_width * workload["squares"] / (2 if decoder else 1)
    whole = layers * (2 * (keys + others) * workload["tokens"] + scores)
    left_out = 2 * others * (workload["tokens"] - workload["texts"]) + scores
    return float(whole - left_out) if dense_alone else float(whole)


def ratios(system: str, medians: Mapping[str, float], rounded: Sequence[str]) -> tuple[str, str]:
    """Of one of ours: to the fastest peer with as many heads, rounded ones beside int8 only; of int8 to our float32."""
    if not system.startswith("ours"):
        return "", ""
    peers = [
        seconds
        for name, seconds in medians.items()
        if not name.startswith("ours")
        and (system in rounded or name not in rounded)
        and ("3 heads" in name) == ("3 heads" in system)
    ]
    best = f"{min(peers) / medians[system]:.2f}" if peers else ""
    plain = system.replace(" int8", "")
    gain = f"{medians[plain] / medians[system]:.2f}" if "int8" in system and plain in medians else ""
    return best, gain


def facts(model: dict[str, Any], order: Sequence[str]) -> dict[str, dict[str, str]]:
    """What is measured once for each system."""
    measured = {what: model["results"].get(kind) for kind, what in MEMORY.items()}
    memory = {what: {system: f"{by[system]:.0f}" for system in order} for what, by in measured.items() if by}
    found = {
        **memory,
        "a whole process that embeds one text, seconds": {
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


def more(model: Mapping[str, Any]) -> list[str]:
    """The machine's peak, what ten thousand texts leave in memory, and which systems could not run."""
    lines = []
    if "gemm" in model:
        lines.append(
            f"- one product of 1536 x 1536: {model['gemm']['float32']:.0f} GFLOP/s in float32, "
            f"{model['gemm']['int8']:.0f} GOP/s of bytes"
        )
    for system, found in (model.get("memory") or {}).items():
        held = found["held_mib"]
        lines.append(
            f"- MiB held by {system} after each thousand of {len(held)} thousand mixed texts: "
            f"{', '.join(f'{mib:.0f}' for mib in held)} ({max(held) / held[0] - 1:+.1%}); peak {found['peak_mib']:.0f}"
        )
    lines += [f"- {system} could not run: {reason}" for system, reason in (model.get("failed") or {}).items()]
    pins = {name: " ".join(pinned) for name, pinned in (model.get("peers") or {}).items() if pinned}
    lines += [
        f"- {', '.join(n for n, p in pins.items() if p == pinned)}: {pinned}" for pinned in dict.fromkeys(pins.values())
    ]
    return lines
