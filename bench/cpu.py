"""Speed, memory, start-up and error of our CPU bundles beside their peers, on seeded random weights of the true sizes.

    bench/run cpu.py --models small,base,large --scifact .../corpus.jsonl.gz --out bench/results/cpu.json
    bench/run cpu.py --print bench/results/cpu.json

Each system has a process of its own. They take turns, round after round; the table has medians.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tokenizers import Tokenizer
from tqdm import tqdm

from bge_onnx.threads import available_threads
from workloads import Workload, workloads

MODELS = {"small": "bge-small-en-v1.5", "base": "bge-base-en-v1.5", "large": "bge-large-en-v1.5"}
SCALE = {"small": 0.5, "base": 0.25, "large": 0.125}  # of the number of texts
SYSTEMS = ("ours", "sentence-transformers", "torch.onnx.export")
LIMIT = 2e-5
WORKER = Path(__file__).with_name("worker.py")


class Worker:
    """A system's process."""

    def __init__(self, system: str, folder: Path, workloads_file: Path, vectors: Path) -> None:
        command = [sys.executable, str(WORKER), system, str(folder), str(workloads_file), str(vectors)]
        self.vectors = vectors
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker died: {self.process.args}")
        return json.loads(line)

    def run(self, workload: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(workload + "\n")
        self.process.stdin.flush()
        return self.read()

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def prepare(model: str, folder: Path) -> dict[str, Any]:
    """Checkpoint with seeded weights, a real tokenizer and sentence-transformers' files; bundle; the peer's graph.

    Each in a process of its own; returns what the export took.
    """
    script = Path(__file__).with_name("prepare.py")
    subprocess.run([sys.executable, str(script), MODELS[model], str(folder)], check=True, stderr=subprocess.DEVNULL)
    bundle = folder / "bundle"
    command = ["bge-export", "run", MODELS[model], "--checkpoint", str(folder), "--out", str(bundle)]
    time_file = folder / "time.txt"
    start = time.perf_counter()
    subprocess.run(["/usr/bin/time", "-f", "%M", "-o", str(time_file), *command], check=True, stderr=subprocess.DEVNULL)
    return {"seconds": time.perf_counter() - start, "peak_mib": int(time_file.read_text().split()[-1]) / 1024}


def folder_of(system: str, folder: Path) -> Path:
    return folder / "bundle" if system == "ours" else folder


def start_up(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds from the start of a process to its end, one text embedded."""
    seconds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    for _ in range(rounds):
        for system in SYSTEMS:
            start = time.perf_counter()
            command = [sys.executable, str(WORKER), system, str(folder_of(system, folder))]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            seconds[system].append(time.perf_counter() - start)
    return seconds


def measure(model: str, scifact: Path, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bge-bench-") as temporary:
        folder = Path(temporary)
        exported = prepare(model, folder)
        plans = workloads(Tokenizer.from_file(str(folder / "tokenizer.json")), scifact, scale=SCALE[model])
        plans_file = folder / "workloads.json"
        plans_file.write_text(json.dumps([asdict(plan) for plan in plans]))
        startup = start_up(folder, rounds)
        results, errors = serve(model, folder, plans, plans_file, rounds)
        return {
            "model": MODELS[model],
            "export": exported,
            "startup_seconds": startup,
            "workloads": {
                plan.name: {"texts": len(plan.texts), "tokens": plan.tokens, "single": plan.single} for plan in plans
            },
            "results": results,
            "max_error": errors,
        }


def serve(
    model: str, folder: Path, plans: list[Workload], plans_file: Path, rounds: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """Every workload by every system in turn. Refuses to time vectors that are not PyTorch's."""
    workers = {
        system: Worker(system, folder_of(system, folder), plans_file, folder / f"{n}.npy")
        for n, system in enumerate(SYSTEMS)
    }
    results: dict[str, Any] = {plan.name: {system: [] for system in SYSTEMS} for plan in plans}
    peaks: dict[str, float] = {}
    for worker in workers.values():
        worker.run("mix")  # warm-up
    wanted = np.load(workers["sentence-transformers"].vectors)
    errors = {system: float(np.abs(np.load(worker.vectors) - wanted).max()) for system, worker in workers.items()}
    if errors["ours"] > LIMIT:
        raise SystemExit(f"{model}: our vectors are {errors['ours']:.1e} off; nothing was timed")
    with tqdm(total=rounds * len(plans) * len(SYSTEMS), desc=model) as bar:
        for plan in plans:
            for number in range(rounds):
                for system in SYSTEMS[number % 3 :] + SYSTEMS[: number % 3]:
                    time.sleep(0.3)  # the other systems' threads stop spinning
                    answer = workers[system].run(plan.name)
                    results[plan.name][system].append(answer["seconds"])
                    peaks[system] = answer["peak_mib"]
                    bar.update()
    for worker in workers.values():
        worker.stop()
    return {**results, "peak_mib": peaks}, errors


def machine() -> dict[str, Any]:
    cpu = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    flags = Path("/proc/cpuinfo").read_text()
    names = ("bge-onnx", "onnxruntime", "torch", "transformers", "sentence-transformers", "numpy")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cpu": cpu,
        "family_model": [
            next(line.split(":")[1].strip() for line in flags.splitlines() if line.startswith(key))
            for key in ("cpu family", "model\t")
        ],
        "isa": [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if f" {flag}" in flags],
        "threads": available_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "commit": commit,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def table(record: dict[str, Any]) -> str:
    """The committed tables, from a results file."""
    lines = []
    for model in record["models"]:
        rows = []
        for name, workload in model["workloads"].items():
            best_peer = None
            for system in SYSTEMS:
                rounds = model["results"][name][system]
                if workload["single"]:
                    times = [1e3 * seconds for run in rounds for seconds in run]
                    value = statistics.median(times)
                    cells = ["", "", f"{value:.1f}", f"{np.percentile(times, 95):.1f}"]
                else:
                    totals = [sum(run) for run in rounds]
                    value = statistics.median(totals)
                    cells = [f"{workload['texts'] / value:.1f}", f"{workload['tokens'] / value:.0f}", "", ""]
                if system != "ours":
                    best_peer = value if best_peer is None else min(best_peer, value)
                else:
                    mine = value
                rows.append([name, system, *cells])
            rows[-len(SYSTEMS)].append(f"{best_peer / mine:.2f}")
        peaks = ", ".join(f"{system} {model['results']['peak_mib'][system]:.0f}" for system in SYSTEMS)
        starts = ", ".join(f"{system} {statistics.median(model['startup_seconds'][system]):.2f}" for system in SYSTEMS)
        errors = ", ".join(f"{system} {model['max_error'][system]:.1e}" for system in SYSTEMS)
        headers = ["workload", "system", "texts/s", "tokens/s", "p50 ms", "p95 ms", "ours / best peer"]
        lines += [f"**{model['model']}**\n", tabulate(rows, headers, tablefmt="github", disable_numparse=True), ""]
        lines += [
            f"- peak MiB: {peaks}",
            f"- start-up to first vector, seconds: {starts}",
            f"- largest difference from PyTorch: {errors}",
        ]
        lines += [f"- export: {model['export']['seconds']:.0f} s, peak {model['export']['peak_mib']:.0f} MiB", ""]
    about = record["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines.append(
        f"{about['cpu']} (family {about['family_model'][0]}, model {about['family_model'][1]}; "
        f"{', '.join(about['isa'])}), "
        f"{about['threads']} cores, {record['rounds']} rounds, {about['date']}, commit {about['commit']}; {versions}, "
        f"Python {about['python']}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="small,base,large", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scifact", type=Path, help="SciFact's corpus.jsonl.gz")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--print", type=Path, dest="file", help="print the table of a results file")
    arguments = parser.parse_args()
    if arguments.file:
        print(table(json.loads(arguments.file.read_text())))
        return
    if not arguments.scifact:
        parser.error("--scifact is needed")
    models = [measure(model, arguments.scifact, arguments.rounds) for model in arguments.models.split(",")]
    record = {"machine": machine(), "rounds": arguments.rounds, "models": models}
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
