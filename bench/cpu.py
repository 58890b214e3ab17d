"""Speed, memory, start-up and error of our CPU bundles beside their peers, on seeded random weights of the true sizes.

    bench/run cpu.py --models small,base,large --scifact .../corpus.jsonl.gz --out bench/results/cpu.json
    bench/run cpu.py --print bench/results/cpu.json

Each system has a process of its own. They take turns, round after round; the table has medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

import harness
from tables import table
from workers import WORKER, Worker
from workloads import Workload, workloads

MODELS = {"small": "bge-small-en-v1.5", "base": "bge-base-en-v1.5", "large": "bge-large-en-v1.5", "m3": "bge-m3"}
SCALE = {"small": 0.5, "base": 0.25, "large": 0.125, "m3": 0.0625}  # of the number of texts
BERT_SYSTEMS = ("ours", "ours int8", "sentence-transformers", "torch.onnx.export", "quantize_dynamic")
M3_SYSTEMS = (
    "ours, dense",
    "ours, 3 heads",
    "ours int8, dense",
    "ours int8, 3 heads",
    "FlagEmbedding, 3 heads",
    "torch.onnx.export, 3 heads",
)
TARGETS = ("cpu-fp32", "cpu-int8")
REFERENCES = ("sentence-transformers", "FlagEmbedding, 3 heads")  # float32 PyTorch
FLAG_PYTHON = Path(".venv-flagembedding/bin/python").absolute()
LIMIT = 2e-5
LEAST_COSINE = 0.99


def systems(model: str) -> tuple[str, ...]:
    return M3_SYSTEMS if model == "m3" else BERT_SYSTEMS


def command_of(system: str, folder: Path) -> list[str]:
    """The beginning of a worker's command: FlagEmbedding has an environment of its own."""
    python = str(FLAG_PYTHON) if system.startswith("FlagEmbedding") else sys.executable
    bundle = TARGETS["int8" in system] if system.startswith("ours") else ""
    return [python, str(WORKER), system, str(folder / bundle)]


def prepare(model: str, folder: Path) -> dict[str, Any]:
    """Checkpoint with seeded weights, a real tokenizer and sentence-transformers' files; bundles; the peers' graphs.

    Each in a process of its own; returns what each export took.
    """
    script = Path(__file__).with_name("prepare.py")
    subprocess.run([sys.executable, str(script), MODELS[model], str(folder)], check=True, stderr=subprocess.DEVNULL)
    return {target: harness.export(MODELS[model], target, folder, folder / target) for target in TARGETS}


def start_up(model: str, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds from the start of a process to its end, one text embedded."""
    seconds: dict[str, list[float]] = {system: [] for system in systems(model)}
    for _ in range(rounds):
        for system in systems(model):
            start = time.perf_counter()
            subprocess.run(command_of(system, folder), check=True, stderr=subprocess.DEVNULL)
            seconds[system].append(time.perf_counter() - start)
    return seconds


def long_text(model: str, folder: Path, tokenizer: Tokenizer, book: Path) -> dict[str, Any]:
    """Seconds and peak memory of each system, in a process that embeds one text of 8192 tokens and nothing else."""
    text = folder / "long.txt"
    tokenizer.no_truncation()
    encoding = tokenizer.encode(book.read_text(encoding="utf-8")[:60_000])
    text.write_text(book.read_text(encoding="utf-8")[: encoding.offsets[8190][1]], encoding="utf-8")
    found = {}
    for system in systems(model):
        answer = harness.timed([*command_of(system, folder), "--text", str(text)])
        record = json.loads(answer["stdout"]) if answer["code"] == 0 else {"seconds": None}
        found[system] = {**record, "peak_mib": answer["peak_mib"]}
    return found


def measure(model: str, scifact: Path, rounds: int, book: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bge-bench-") as temporary:
        folder = Path(temporary)
        exported = prepare(model, folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        plans = workloads(tokenizer, scifact, scale=SCALE[model], max_tokens=8192 if model == "m3" else 512)
        plans_file = folder / "workloads.json"
        plans_file.write_text(json.dumps([asdict(plan) for plan in plans]))
        startup = start_up(model, folder, rounds)
        results, errors, cosines = serve(model, folder, plans, plans_file, rounds)
        return {
            "model": MODELS[model],
            "export": exported,
            "startup_seconds": startup,
            "workloads": {
                plan.name: {"texts": len(plan.texts), "tokens": plan.tokens, "single": plan.single} for plan in plans
            },
            "results": results,
            "max_error": errors,
            "least_cosine": cosines,
            "long": long_text(model, folder, tokenizer, book) if book and model == "m3" else None,
        }


def serve(
    model: str, folder: Path, plans: list[Workload], plans_file: Path, rounds: int
) -> tuple[dict[str, Any], dict[str, float], dict[str, float]]:
    """Every workload by every system in turn; largest differences and least cosines from PyTorch's vectors.

    Refuses to time float32 vectors that are not PyTorch's.
    """
    workers = {
        system: Worker(command_of(system, folder), plans_file, folder / f"{n}.npy")
        for n, system in enumerate(systems(model))
    }
    for worker in workers.values():
        worker.ready()
    order = systems(model)
    results: dict[str, Any] = {plan.name: {system: [] for system in order} for plan in plans}
    peaks: dict[str, float] = {}
    for worker in workers.values():
        worker.run("mix")  # warm-up
    wanted = np.load(next(workers[system].vectors for system in order if system in REFERENCES))
    vectors = {system: np.load(worker.vectors) for system, worker in workers.items()}
    errors = {system: float(np.abs(found - wanted).max()) for system, found in vectors.items()}
    cosines = {system: float((found * wanted).sum(axis=1).min()) for system, found in vectors.items()}
    for system in order:
        if system.startswith("ours") and (
            cosines[system] < LEAST_COSINE if "int8" in system else errors[system] > LIMIT
        ):
            raise SystemExit(
                f"{model}: vectors of {system} are {errors[system]:.1e} off PyTorch's, cosine {cosines[system]:.5f}; "
                "nothing was timed"
            )
    with tqdm(total=rounds * len(plans) * len(order), desc=model) as bar:
        for plan in plans:
            for number in range(rounds):
                for system in order[number % len(order) :] + order[: number % len(order)]:
                    time.sleep(0.3)  # the other systems' threads stop spinning
                    answer = workers[system].run(plan.name)
                    results[plan.name][system].append(answer["seconds"])
                    peaks[system] = answer["peak_mib"]
                    bar.update()
    for worker in workers.values():
        worker.stop()
    return {**results, "peak_mib": peaks}, errors, cosines


def run(arguments: argparse.Namespace, _: Path) -> dict[str, Any]:
    names = arguments.models.split(",")
    models = [measure(model, arguments.scifact, arguments.rounds, arguments.book) for model in names]
    return {"rounds": arguments.rounds, "models": models}


def main() -> None:
    parser = harness.new_parser(__doc__)
    parser.add_argument("--models", default="small,base,large", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scifact", type=Path, help="SciFact's corpus.jsonl.gz")
    parser.add_argument("--book", type=Path, help="m3: a text file whose beginning is the text of 8192 tokens")
    harness.main(parser, run, table, needs=["scifact"])


if __name__ == "__main__":
    main()
