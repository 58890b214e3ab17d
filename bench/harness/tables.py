"""The tables of `cpu.py`, from a results file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from harness import benchmark

MEMORY = {
    "peak_mib": "peak MiB",
    "held_mib": "MiB at rest",
    "own_mib": "of them not shared",  # with a second process of the same files
}
BEFORE = ("ours int8", "ours int8, dense", "ours int8, 3 heads", "quantize_dynamic")
"""Rounded systems of results that do not name theirs."""


def table(record: dict[str, Any]) -> str:
    """The committed tables, from a results file."""
    lines = [line for model in record["models"] for line in model_table(model)]
    return "\n".join([*lines, f"{record['rounds']} rounds. {benchmark.machine_line(record['machine'])}"])


def model_table(model: dict[str, Any]) -> list[str]:
    """A model's speeds, how ours compare, what each system costs, and what is said under the tables."""
    threads = f", {model['threads']} thread{'s' * (model['threads'] > 1)}" if "threads" in model else ""
    heading = f"### {model['model']}{threads}\n"
    names = [name if not workload["single"] else f"{name}, ms" for name, workload in model["workloads"].items()]
    tables = [
        (["tokens/s (spread), ms (p95)", *names], speed_rows(model)),
        (["ratio", *names], ratio_rows(model)),
        (["system", *COSTS, *memory_of(model)], cost_rows(model)),
    ]
    printed = [tabulate(rows, headers, "github", disable_numparse=True) + "\n" for headers, rows in tables]
    exports = [benchmark.export_line(target, found) for target, found in model["export"].items()]
    return [heading, *printed, *exports, *more(model), ""]


def speed_rows(model: dict[str, Any]) -> list[list[str]]:
    """A row for each system: rates of a corpus and their spread, or milliseconds of single texts."""
    return [
        [system, *(speed(workload, model["results"][name][system]) for name, workload in model["workloads"].items())]
        for system in model["startup_seconds"]
    ]


def speed(workload: Mapping[str, Any], found: Mapping[str, float]) -> str:
    """A cell: tokens/s with the rounds' spread, or of single texts milliseconds with the 95th percentile."""
    if workload["single"]:
        return f"{1e3 * found['seconds']:.1f} ({1e3 * found['p95_seconds']:.1f})"
    return f"{workload['tokens'] / found['seconds']:.0f} ({found['spread']:.0%})"


def ratio_rows(model: dict[str, Any]) -> list[list[str]]:
    """How each of ours compares, workload by workload; rows without a number are left out."""
    rows = []
    rounded = model.get("rounded", BEFORE)
    for system in [name for name in model["startup_seconds"] if name.startswith("ours")]:
        cells: dict[str, list[str]] = {key: [] for key in ("over the fastest peer", "over our float32", "of GEMM peak")}
        for name, workload in model["workloads"].items():
            by_system = model["results"][name]
            medians = {one: by_system[one]["seconds"] for one in model["startup_seconds"]}
            found = (*ratios(system, medians, rounded), share(model, workload, system, medians[system]))
            for key, cell in zip(cells, found, strict=True):
                cells[key].append(cell)
        rows += [[f"{system} {key}", *row] for key, row in cells.items() if any(row)]
    return rows


COSTS = ("largest error", "least cosine", "start-up s")
"""Of dense vectors, and of a whole process that embeds one text."""


def memory_of(model: dict[str, Any]) -> list[str]:
    """The kinds of memory that were measured."""
    return [what for kind, what in MEMORY.items() if model["results"].get(kind)]


def cost_rows(model: dict[str, Any]) -> list[list[str]]:
    """A row for each system: its error, start-up and memory."""
    kinds = [kind for kind in MEMORY if model["results"].get(kind)]
    cosines = model.get("least_cosine", {})
    return [
        [
            system,
            f"{model['max_error'][system]:.1e}",
            f"{cosines[system]:.5f}" if system in cosines else "",
            f"{statistics.median(seconds):.2f}",
            *(f"{model['results'][kind][system]:.0f}" for kind in kinds),
        ]
        for system, seconds in model["startup_seconds"].items()
    ]


def share(model: Mapping[str, Any], workload: Mapping[str, Any], system: str, seconds: float) -> str:
    """Of the peak of one large product on this machine, of ours. Dense vectors need one token of the last layer."""
    alone = not workload["single"] and workload.get("callers", 1) == 1  # callers take all cores, whatever the threads
    if "gemm" not in model or not alone or not system.startswith("ours"):
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
    plain = system.replace(" int8", "").removesuffix(", kernels")
    gain = f"{medians[plain] / medians[system]:.2f}" if "int8" in system and plain in medians else ""
    return best, gain


def more(model: Mapping[str, Any]) -> list[str]:
    """The machine's peak, what ten thousand texts leave in memory, and which systems could not run."""
    lines = []
    if model.get("long"):
        long = [
            f"{system} {one['seconds'] or float('nan'):.0f} s, {one['peak_mib']:.0f}"
            for system, one in model["long"].items()
        ]
        lines.append(f"- one text of 8192 tokens in a process of its own, seconds and peak MiB: {'; '.join(long)}")
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
