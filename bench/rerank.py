"""Rerankers: one query with a hundred abstracts of SciFact, ours beside other systems, on seeded weights of true sizes.

    bench/run rerank.py --scifact .../corpus.jsonl.gz --tokenizer .../tokenizer-xlm-roberta/tokenizer.json --out F.json
    bench/run rerank.py --models base --threads 2 --rounds 3 …
    bench/run rerank.py --print F.json

Every system runs in a process of its own; they take turns. Speed is not timed before scores are compared with
FlagEmbedding's in float32.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tokenizers import Tokenizer

from harness import benchmark
from harness.systems import PeerError, System, make_ready
from harness.workers import Worker, WorkerError
from harness.workloads import SCIFACT_PASSAGES, Workload, abstracts

MODELS = {"base": "bge-reranker-base", "v2-m3": "bge-reranker-v2-m3"}
SYSTEMS = (
    System(name="ours", peer="ours", variant="cpu-fp32 rerank"),
    System(name="ours int8", peer="ours", variant="cpu-int8 rerank", rounded=True),
    System(name="FlagEmbedding", peer="flagembedding_reranker", variant="float32"),
    System(name="sentence-transformers", peer="pytorch", variant="rerank"),
    System(name="sentence-transformers ONNX", peer="optimum", variant="rerank"),
    System(name="fastembed", peer="fastembed", variant="rerank"),
)
REFERENCE = "FlagEmbedding"
QUERY = "Aspirin lowers the risk of colon cancer."
PASSAGES = 100
LIMIT = 2e-5
"""Of a float32 score's error, over the largest score's size."""
QUIET = 0.3


def measure(model: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A model's rows, once for each number of threads."""
    benchmark.write_checkpoint(MODELS[model], folder, graphs=False)
    shutil.copyfile(arguments.tokenizer, folder / "tokenizer.json")
    targets = ("cpu-fp32", "cpu-int8", "portable")  # the last one is fastembed's
    exports = {target: benchmark.export(MODELS[model], target, folder, folder / target) for target in targets}
    rng = np.random.default_rng(0)
    passages = abstracts(arguments.scifact, rng.choice(SCIFACT_PASSAGES, PASSAGES, replace=False))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(512, strategy="only_second")
    tokens = sum(len(pair.ids) for pair in tokenizer.encode_batch([(QUERY, passage) for passage in passages]))
    plan = Workload(name="hundred", texts=[QUERY, *passages], tokens=tokens)
    ready, failed = [], {}
    for system in SYSTEMS:
        try:
            make_ready(system, folder)
            ready.append(system)
        except PeerError as error:
            failed[system.name] = str(error)
    rows = [timed(ready, plan, folder, threads, arguments.rounds, failed) for threads in arguments.threads]
    return [{"model": MODELS[model], "tokens": tokens, "export": exports, **row} for row in rows]


def timed(
    systems: list[System], plan: Workload, folder: Path, threads: int, rounds: int, failed: dict[str, str]
) -> dict[str, Any]:
    """Medians, spreads, memory and errors of every system with so many threads."""
    plans = folder / "workloads.json"
    plans.write_text(json.dumps([asdict(plan)]))
    workers = {
        system.name: Worker(system.command(folder, threads), plans, folder / f"{number}.npy")
        for number, system in enumerate(systems)
    }
    failed, scores = dict(failed), {}
    try:
        for system in systems:
            try:
                workers[system.name].ready()
                workers[system.name].run(plan.name)  # warm
                scores[system.name] = np.load(workers[system.name].vectors)
            except WorkerError as error:
                failed[system.name] = str(error).strip().splitlines()[-1][:200]
        errors = compared(systems, scores)
        seconds: dict[str, list[float]] = {name: [] for name in scores}
        peaks: dict[str, float] = {}
        order = random.Random(0)
        for _ in range(rounds):
            for name in order.sample([*scores], len(scores)):
                time.sleep(QUIET)
                answer = workers[name].run(plan.name)
                seconds[name] += answer["seconds"]
                peaks[name] = answer["peak_mib"]
    finally:
        for worker in workers.values():
            worker.stop()
    medians = {
        name: {"median": statistics.median(runs), "spread": (max(runs) - min(runs)) / statistics.median(runs)}
        for name, runs in seconds.items()
    }
    return {"threads": threads, "seconds": medians, "peak_mib": peaks, **errors, "failed": failed}


def compared(systems: list[System], scores: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Each system's largest error over the largest score's size, and how many of the ten best it has.

    Raises SystemExit: ours in float32 is over its limit.
    """
    wanted = scores[REFERENCE]
    size = float(np.abs(wanted).max())
    best = set(np.argsort(-wanted)[:10].tolist())
    errors = {name: float(np.abs(found - wanted).max()) / size for name, found in scores.items()}
    kept = {name: len(best & set(np.argsort(-found)[:10].tolist())) / 10 for name, found in scores.items()}
    for system in systems:
        if system.ours and not system.rounded and not errors[system.name] <= LIMIT:
            raise SystemExit(f"{system.name} is {errors[system.name]:.1e} of the largest score off, over {LIMIT:.0e}")
    return {"errors": errors, "top_10_overlap": kept}


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = {"rounds": arguments.rounds, "models": []}
    for model in arguments.models.split(","):
        with tempfile.TemporaryDirectory(prefix=f"{model}-", dir=folder) as temporary:
            record["models"] += measure(model, arguments, Path(temporary))
        benchmark.write(arguments.out, {"machine": benchmark.machine(), **record})
    return record


def table(record: dict[str, Any]) -> str:
    """The committed tables, from a results file."""
    parts = []
    headers = ["", "100 passages", "pairs/s", "of FlagEmbedding", "peak MiB", "error", "of the ten best"]
    for model in record["models"]:
        slowest = model["seconds"][REFERENCE]["median"]
        rows = [
            [
                name,
                f"{found['median']:.2f} s ±{50 * found['spread']:.0f} %",
                f"{PASSAGES / found['median']:.1f}",
                f"{slowest / found['median']:.2f}",
                f"{model['peak_mib'][name]:.0f}",
                f"{model['errors'][name]:.0e}",
                f"{model['top_10_overlap'][name]:.0%}",
            ]
            for name, found in model["seconds"].items()
        ]
        tokens = model["tokens"] / PASSAGES
        parts.append(f"### {model['model']}, {model['threads']} threads, {tokens:.0f} tokens a pair\n")
        parts.append(tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n")
        parts += [f"- {name} could not run: {reason}" for name, reason in model["failed"].items()]
    return "\n".join([*parts, f"{record['rounds']} rounds. {benchmark.machine_line(record['machine'])}"])


def main() -> None:
    parser = benchmark.new_parser(__doc__)
    parser.add_argument("--models", default="base,v2-m3", help="comma-separated")
    parser.add_argument("--threads", default=[2, 1], type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scifact", type=Path, help="SciFact's corpus.jsonl.gz")
    parser.add_argument("--tokenizer", type=Path, help="XLM-R's tokenizer.json")
    benchmark.main(parser, run, table, needs=["scifact", "tokenizer"])


if __name__ == "__main__":
    main()
