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
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

import harness
import quick
from systems import BERT, M3, M3_REFERENCE, REFERENCE, System, make_environment, prepare
from tables import table
from workers import Worker, WorkerError
from workloads import Workload, mixed_texts, workloads

MODELS = {"small": "bge-small-en-v1.5", "base": "bge-base-en-v1.5", "large": "bge-large-en-v1.5", "m3": "bge-m3"}
SCALE = {"small": 0.5, "base": 0.25, "large": 0.125, "m3": 0.0625}  # of the number of texts
TARGETS = ("cpu-fp32", "cpu-int8")
LIMIT = 2e-5
LEAST_COSINE = 0.99
MEMORY_MODEL, MEMORY_TEXTS = "small", 10_000
QUIET = 0.3  # seconds after which the other systems' threads have stopped spinning


def systems_of(model: str, asked: Sequence[str], without: Sequence[str]) -> list[System]:
    """Those of a model, or those asked for and the reference; none of the peers `without`."""
    known, reference = (M3, M3_REFERENCE) if model == "m3" else (BERT, REFERENCE)
    chosen = [system for system in known if not asked or system.name in asked or system == reference]
    return [system for system in chosen if system.peer not in without]


def prepare_all(
    model: str, folder: Path, chosen: Sequence[System], calibrate: str
) -> tuple[dict[str, Any], list[System], dict[str, str]]:
    """The checkpoint, our bundles, and what each peer makes of them, each in a process of its own.

    Returns what our exports took, the systems that are ready, and why the others are not.
    """
    script = Path(__file__).with_name("prepare.py")
    subprocess.run([sys.executable, str(script), MODELS[model], str(folder)], check=True, stderr=subprocess.DEVNULL)
    targets = [*TARGETS, "portable"] if any(system.peer == "fastembed" for system in chosen) else TARGETS
    exports = {
        target: harness.export(MODELS[model], target, folder, folder / target, calibrate=calibrate)
        for target in targets
    }
    ready, failed = [], {}
    for system in chosen:
        try:
            make_environment(system.peer)
            prepare(system, folder)
            ready.append(system)
        except subprocess.CalledProcessError as error:
            failed[system.name] = last_line(error.stderr or str(error))
    return exports, ready, failed


def last_line(text: str) -> str:
    return ([line for line in text.splitlines() if line.strip()] or ["nothing was said"])[-1][:200]


@dataclass(frozen=True, slots=True)
class Bench:
    """A model's systems that are ready, and where their files are; `failed` tells why others are not."""

    model: str
    folder: Path
    threads: int
    rounds: int
    systems: list[System]
    failed: dict[str, str]

    def start_up(self) -> dict[str, list[float]]:
        """Seconds from the start of a process to its end, one text embedded."""
        seconds: dict[str, list[float]] = {system.name: [] for system in self.systems}
        for _ in range(self.rounds):
            for system in self.systems:
                start = time.perf_counter()
                subprocess.run(system.command(self.folder, self.threads), check=True, capture_output=True)
                seconds[system.name].append(time.perf_counter() - start)
        return seconds

    def long_text(self, book: Path) -> dict[str, Any]:
        """Seconds and peak memory of each system, in a process that embeds one text of 8192 tokens and nothing else."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_truncation()
        content = book.read_text(encoding="utf-8")[:60_000]
        text = self.folder / "long.txt"
        text.write_text(content[: tokenizer.encode(content).offsets[8190][1]], encoding="utf-8")
        found = {}
        for system in self.systems:
            answer = harness.timed([*system.command(self.folder, self.threads), "--text", str(text)])
            record = json.loads(answer["stdout"].splitlines()[-1]) if answer["code"] == 0 else {"seconds": None}
            found[system.name] = {**record, "peak_mib": answer["peak_mib"]}
        return found

    def memory(self) -> dict[str, Any]:
        """What our processes hold after each thousand of ten thousand texts."""
        texts = self.folder / "many.json"
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        texts.write_text(json.dumps(mixed_texts(tokenizer, MEMORY_TEXTS)))
        found = {}
        for system in self.systems:
            if system.ours:
                answer = harness.timed([*system.command(self.folder, self.threads), "--memory", str(texts)])
                found[system.name] = json.loads(answer["stdout"].splitlines()[-1])
        return found

    def serve(self, plans: Sequence[Workload]) -> dict[str, Any]:
        """Every workload by every system in turn; largest differences and least cosines from PyTorch's vectors.

        Refuses to time vectors of ours that are not PyTorch's.
        """
        workers = self._started(plans)
        errors, cosines = errors_of(self.model, self.systems, workers)
        results: dict[str, Any] = {plan.name: {name: [] for name in workers} for plan in plans}
        peaks: dict[str, float] = {}
        with tqdm(total=self.rounds * len(plans) * len(workers), desc=f"{self.model}, {self.threads} threads") as bar:
            for plan, number in itertools.product(plans, range(self.rounds)):
                first = number % len(workers)
                for name in [*workers][first:] + [*workers][:first]:
                    time.sleep(QUIET)
                    answer = workers[name].run(plan.name)
                    results[plan.name][name].append(answer["seconds"])
                    peaks[name] = answer["peak_mib"]
                    bar.update()
        for worker in workers.values():
            worker.stop()
        return {"results": {**results, "peak_mib": peaks}, "max_error": errors, "least_cosine": cosines}

    def _started(self, plans: Sequence[Workload]) -> dict[str, Worker]:
        """A warm process for each system; those that end are not ready after all."""
        plans_file = self.folder / "workloads.json"
        plans_file.write_text(json.dumps([asdict(plan) for plan in plans]))
        workers: dict[str, Worker] = {}
        for number, system in enumerate(list(self.systems)):
            worker = Worker(system.command(self.folder, self.threads), plans_file, self.folder / f"{number}.npy")
            try:
                worker.ready()
                worker.run("mix")
                workers[system.name] = worker
            except WorkerError as error:
                self.failed[system.name] = last_line(str(error))
                self.systems.remove(system)
        return workers


def measure(model: str, threads: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything of a model, with so many threads."""
    chosen = systems_of(model, arguments.systems, arguments.without)
    exports, ready, failed = prepare_all(model, folder, chosen, arguments.calibrate)
    bench = Bench(model, folder, threads, arguments.rounds, ready, failed)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    scale, most = SCALE[model] * arguments.scale, 8192 if model == "m3" else 512
    plans = workloads(tokenizer, arguments.scifact, scale=scale, max_tokens=most)
    if arguments.workloads:
        plans = [plan for plan in plans if plan.name in {"mix", *arguments.workloads}]
    served = bench.serve(plans)
    gemm = harness.timed([sys.executable, str(Path(__file__).with_name("gemm.py")), str(threads)])
    facts = ("texts", "tokens", "squares", "single", "callers")
    counted = [{**asdict(plan), "texts": len(plan.texts)} for plan in plans]
    return {
        "model": MODELS[model],
        "threads": threads,
        "config": json.loads((folder / "config.json").read_text()),
        "gemm": json.loads(gemm["stdout"]),
        "export": exports,
        "startup_seconds": bench.start_up(),
        "workloads": {plan["name"]: {fact: plan[fact] for fact in facts} for plan in counted},
        **served,
        "rounded": [system.name for system in bench.systems if system.rounded],
        "failed": failed,
        "long": bench.long_text(arguments.book) if arguments.book and model == "m3" else None,
        "memory": bench.memory() if model == MEMORY_MODEL and arguments.memory else None,
    }


def errors_of(
    model: str, running: Sequence[System], workers: Mapping[str, Worker]
) -> tuple[dict[str, float], dict[str, float]]:
    """The largest difference of each system's vectors from PyTorch's, and the least cosine."""
    reference = M3_REFERENCE if model == "m3" else REFERENCE
    vectors = {system.name: np.load(workers[system.name].vectors).astype(np.float32) for system in running}
    wanted = vectors[reference.name]
    errors = {name: float(np.abs(found - wanted).max()) for name, found in vectors.items()}
    cosines = {name: float((found * wanted).sum(axis=1).min()) for name, found in vectors.items()}
    for system in running:
        wrong = cosines[system.name] < LEAST_COSINE if system.rounded else errors[system.name] > LIMIT
        if system.ours and wrong:
            raise SystemExit(
                f"{model}: vectors of {system.name} are {errors[system.name]:.1e} off PyTorch's, cosine "
                f"{cosines[system.name]:.5f}; nothing was timed"
            )
    return errors, cosines


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found = []
    for model in arguments.models.split(","):
        for threads in arguments.threads:
            with tempfile.TemporaryDirectory(prefix=f"{model}-", dir=folder) as temporary:
                found.append(measure(model, threads, arguments, Path(temporary)))
    return {"rounds": arguments.rounds, "models": found}


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def main() -> None:
    parser = harness.new_parser(__doc__)
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
    parser.add_argument("--book", type=Path, help="m3: a text file whose beginning is the text of 8192 tokens")
    if "--quick" in sys.argv:
        parser.add_argument("--quick", action="store_true")
        sys.exit(quick.main(parser, run))
    harness.main(parser, run, table, needs=[])


if __name__ == "__main__":
    main()
