"""The operators of bge_kernels beside what they replace, one by one and in whole models of eight bits.

    bench/run kernels.py --out bench/results/kernels.json
    bench/run kernels.py --models base --threads 1 --variants none,RotateQuantize,RotateQuantize+Int8Linear
    BGE_KERNELS_ISA=avx2 bench/run kernels.py --models base --variants kernels,7-bits
    bench/run kernels.py --print bench/results/kernels.json

Single operators at the shapes of bge-base, taking turns in one process, with their error against NumPy; whole models
as `cpu.py` runs them, with the operators of a variant: "passes" around ONNX Runtime's products, "kernels" with our own.
With BGE_KERNELS_ISA single operators are left out: what they replace takes the best instruction set there is.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tokenizers import Tokenizer

import bge_kernels
import cpu
from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.lowering.int8 import calibrate
from bge_export.lowering.int8.operators import LINEAR, PASSES, Operators
from bge_export.request import Request
from harness import benchmark
from harness.side_by_side import Bench
from harness.summary import summaries
from harness.systems import REFERENCE, System, make_ready
from harness.tables import model_table
from harness.workloads import Workload, lognormal, measured, texts, words_of
from operators import cases, compared

ROWS = (16, 128, 512)
VARIANTS = {"none": frozenset(), "passes": PASSES, "kernels": LINEAR, "7-bits": LINEAR}
"""Operators by name; every other name is made of operators."""


def operators_of(variant: str) -> Operators:
    return VARIANTS[variant] if variant in VARIANTS else frozenset(variant.split("+"))


def system_of(variant: str) -> System:
    name = "ours int8" if variant == "none" else f"ours int8, {variant}"
    return System(name=name, peer="ours", variant=variant, rounded=True)


def model_of(name: str, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A model's bundles, one for each variant, beside PyTorch, whose vectors theirs are compared with."""
    model = cpu.MODELS[name]
    benchmark.write_checkpoint(model, folder)
    for variant in arguments.variants:
        request = Request(
            model=model,
            target="cpu-int8",
            checkpoint=folder,
            calibration=calibrate.NOTHING,  # which is as fast, and exported sooner
            kernels=operators_of(variant),
            activations=7 if variant == "7-bits" else 8,
            options=Options(pooling="cls"),
        )
        export(request, folder / variant)
    make_ready(REFERENCE, folder)
    systems = [*map(system_of, arguments.variants), REFERENCE]
    plans = workloads(Tokenizer.from_file(str(folder / "tokenizer.json")), scale=cpu.SCALE[name])
    found = []
    for threads in arguments.threads:
        bench = Bench(name, folder, threads, arguments.rounds, len(systems), systems, REFERENCE, {})
        bench.serve(plans)
        found.append(
            {
                "model": model,
                "threads": threads,
                "export": {},
                "startup_seconds": bench.start_up(),
                "workloads": (facts := {plan.name: plan.facts for plan in plans}),
                "results": {**summaries(bench.results, facts), **bench.memory},
                **bench.errors,
                "rounded": [system.name for system in systems if system.rounded],
            }
        )
    return found


def workloads(tokenizer: Tokenizer, *, scale: float) -> list[Workload]:
    """A log-normal mix and single texts of 16, 128 and 512 tokens."""
    rng = np.random.default_rng(0)
    words = words_of(tokenizer)
    single = {16: 60, 128: 40, 512: 12}
    plain = [
        ("mix", texts(rng, words, lognormal(rng, int(192 * scale))), False),
        *[
            (f"one {tokens}", texts(rng, words, [tokens] * max(6, int(count * scale))), True)
            for tokens, count in single.items()
        ],
    ]
    return measured(tokenizer, plain, max_tokens=512)


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if not bge_kernels.library():
        raise SystemExit(f"expected an installation with operators, found none: {bge_kernels.why_missing()}")
    isa = os.environ.get("BGE_KERNELS_ISA", "")
    sizes = [] if isa else [(rows, threads) for threads in arguments.threads for rows in ROWS]
    operators = [compared(case, rows, threads) for rows, threads in sizes for case in cases(rows)]
    record: dict[str, Any] = {
        "rounds": arguments.rounds,
        "instruction_set": isa,
        "operators": operators,
        "models": [],
    }
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=folder) as temporary:
            record["models"] += model_of(name, Path(temporary), arguments)
        benchmark.write(arguments.out, {"machine": benchmark.machine(), **record})
    return record


def table(record: dict[str, Any]) -> str:
    """The committed tables, from a results file."""
    rows = [
        [
            one["op"],
            one["rows"],
            one["threads"],
            *(f"{one['micros'][name]:.0f}" for name in ("others", "ours")),
            f"{one['micros']['others'] / one['micros']['ours']:.2f}",
            *(f"{one['errors'][name]:.0e}" for name in ("others", "ours")),
        ]
        for one in record["operators"]
    ]
    headers = ["operator", "rows", "threads", "replaced µs", "ours µs", "gain", "replaced's error", "our error"]
    lines = ["### Operators\n", tabulate(rows, headers, "github", disable_numparse=True), ""] if rows else []
    if record.get("instruction_set"):
        lines.append(f"Operators run with {record['instruction_set']}, standard ones with the best instruction set.\n")
    lines += [line for model in record["models"] for line in [*model_table(model), *gains(model)]]
    return "\n".join([*lines, benchmark.machine_line(record["machine"])])


def gains(model: dict[str, Any]) -> list[str]:
    """How much faster than the first variant, by workload."""
    plain, *others = model["rounded"]
    medians = {
        name: {system: found["round_seconds"] for system, found in model["results"][name].items()}
        for name in model["workloads"]
    }
    rows = [[name, *(f"{by[plain] / by[other]:.2f}" for other in others)] for name, by in medians.items()]
    return [tabulate(rows, [f"times as fast as {plain}", *others], "github", disable_numparse=True), ""]


def variants(text: str) -> list[str]:
    names, known = cpu.listed(text), PASSES | LINEAR
    if unknown := [name for name in names if not operators_of(name) <= known]:
        wanted = f"{', '.join(VARIANTS)}, or out of {', '.join(sorted(known))} joined with +"
        raise argparse.ArgumentTypeError(f"expected {wanted}; found {', '.join(unknown)}")
    return names


def main() -> None:
    parser = benchmark.new_parser(__doc__)
    parser.add_argument("--models", default="small,base,large", help="comma-separated")
    parser.add_argument("--threads", default=[1, 2], type=lambda text: [int(part) for part in cpu.listed(text)])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", default=["none", "passes", "kernels"], type=variants, help="comma-separated")
    benchmark.main(parser, run, table, needs=[])


if __name__ == "__main__":
    main()
