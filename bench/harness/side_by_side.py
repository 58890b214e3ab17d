"""One model's systems measured beside each other, with so many threads; see `cpu.py`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from harness import benchmark
from harness.systems import System, last_line
from harness.workers import Worker, WorkerError
from harness.workloads import Workload, mixed_texts

LIMIT = 2e-5
LEAST_COSINE = 0.99
LEAST_PEERS_COSINE = 0.9  # a peer further off computes something else
MEMORY_TEXTS = 10_000
MEMORY = ("peak_mib", "held_mib", "own_mib")  # the most, after a rest, and what of it processes do not share
QUIET = 0.3  # seconds after which the other systems' threads have stopped spinning
LONGEST_SECONDS = 900  # of a process that embeds one text or ten thousand


@dataclass(frozen=True, slots=True)
class Bench:
    """A model's systems that are ready, and where their files are; `failed` tells why others are not.

    together  the most systems that are loaded at a time; ours and the reference are in every group
    """

    model: str
    folder: Path
    threads: int
    rounds: int
    together: int
    systems: list[System]
    reference: System
    failed: dict[str, str]
    results: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=lambda: {kind: {} for kind in MEMORY})
    errors: dict[str, dict[str, float]] = field(default_factory=lambda: {"max_error": {}, "least_cosine": {}})

    def fail(self, name: str, reason: str) -> None:
        """A system that cannot go on has no row."""
        self.failed[name] = last_line(reason)
        self.systems[:] = [system for system in self.systems if system.name != name]
        for table in (*self.results.values(), *self.memory.values(), *self.errors.values()):
            table.pop(name, None)

    def groups(self) -> Iterator[list[System]]:
        """Systems that are loaded together."""
        always = [system for system in self.systems if system.ours or system == self.reference]
        others = [system for system in self.systems if system not in always]
        size = max(1, self.together - len(always))
        yield from ([*always, *others[start : start + size]] for start in range(0, max(1, len(others)), size))

    def serve(self, plans: Sequence[Workload]) -> None:
        """Every workload by every system in turn. Refuses to time vectors of ours that are not PyTorch's."""
        plans_file = self.folder / "workloads.json"
        plans_file.write_text(json.dumps([asdict(plan) for plan in plans]))
        for group in list(self.groups()):
            workers = {
                system.name: Worker(self.command(system), plans_file, self.folder / f"{number}.npy")
                for number, system in enumerate(group)
                if system.name not in self.failed
            }
            try:
                self._warm(workers, ["mix", *[plan.name for plan in plans if plan.single][:1]])
                self._compare(workers)
                self._time(plans, workers)
            finally:
                for worker in workers.values():
                    worker.stop()

    def command(self, system: System) -> list[str]:
        return system.command(self.folder, self.threads)

    def _warm(self, workers: dict[str, Worker], warm: Sequence[str]) -> None:
        """Each opens its model and embeds the mix and single texts, which may take another session, one after another.

        Those that end are not ready after all.
        """
        for name, worker in list(workers.items()):
            try:
                worker.ready()
                for name_of_plan in warm:
                    worker.run(name_of_plan)
            except WorkerError as error:
                self.fail(name, str(error))
                workers.pop(name).stop()

    def _compare(self, workers: dict[str, Worker]) -> None:
        """Note how far each system's vectors are from PyTorch's."""
        if self.reference.name not in workers:
            raise SystemExit(f"{self.reference.name} is needed to compare with: {self.failed[self.reference.name]}")
        wanted = np.load(workers[self.reference.name].vectors)
        for system in [system for system in self.systems if system.name in workers]:
            found = np.load(workers[system.name].vectors).astype(np.float32)
            error, cosine = float(np.abs(found - wanted).max()), float((found * wanted).sum(axis=1).min())
            right = cosine >= LEAST_COSINE if system.rounded else error <= LIMIT  # NaN is neither
            if system.ours and not right:
                raise SystemExit(f"{self.model}: {system.name} is {error:.1e} off PyTorch, cosine {cosine:.5f}")
            if not cosine >= LEAST_PEERS_COSINE:
                self.fail(system.name, f"its vectors have a cosine of {cosine:.3f} to PyTorch's")
                workers.pop(system.name).stop()
                continue
            self.errors["max_error"][system.name], self.errors["least_cosine"][system.name] = error, cosine

    def _time(self, plans: Sequence[Workload], workers: dict[str, Worker]) -> None:
        """Rounds of every workload, the systems in another order each time."""
        order = random.Random(0)
        with tqdm(total=self.rounds * len(plans) * len(workers), desc=f"{self.model}, {self.threads} threads") as bar:
            for plan in plans:
                for _ in range(self.rounds):
                    for name in order.sample([*workers], len(workers)):
                        time.sleep(QUIET)
                        self._run(name, plan.name, workers)
                        bar.update()
        for name in list(workers):
            self._run(name, "idle", workers)

    def _run(self, name: str, workload: str, workers: dict[str, Worker]) -> None:
        try:
            answer = workers[name].run(workload)
        except WorkerError as error:
            self.fail(name, str(error))
            workers.pop(name).stop()
            return
        if workload == "idle":
            self.memory["held_mib"][name], self.memory["own_mib"][name] = answer["held_mib"], answer["own_mib"]
        else:
            self.results.setdefault(workload, {}).setdefault(name, []).append(answer["seconds"])
            self.memory["peak_mib"][name] = answer["peak_mib"]

    def start_up(self) -> dict[str, list[float]]:
        """Seconds of whole processes that embed one text, the files in the page cache."""
        seconds: dict[str, list[float]] = {system.name: [] for system in self.systems}
        for _ in range(self.rounds):
            for system in list(self.systems):
                start = time.perf_counter()
                done = subprocess.run(self.command(system), capture_output=True, text=True, check=False)
                seconds[system.name].append(time.perf_counter() - start)
                if done.returncode:
                    self.fail(system.name, done.stderr)
        return {name: found for name, found in seconds.items() if name not in self.failed}

    def long_text(self, book: Path) -> dict[str, Any]:
        """Seconds and peak memory of each system, in a process that embeds one text of 8192 tokens and nothing else."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_truncation()
        content = book.read_text(encoding="utf-8")[:60_000]
        text = self.folder / "long.txt"
        text.write_text(content[: tokenizer.encode(content).offsets[8190][1]], encoding="utf-8")
        return {system.name: self._alone(system, "--text", text) for system in self.systems}

    def many_texts(self) -> dict[str, Any]:
        """What our processes hold after each thousand of ten thousand texts."""
        texts = self.folder / "many.json"
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        texts.write_text(json.dumps(mixed_texts(tokenizer, MEMORY_TEXTS)))
        return {system.name: self._alone(system, "--memory", texts) for system in self.systems if system.ours}

    def _alone(self, system: System, *arguments: str | Path) -> dict[str, Any]:
        """What a process of its own answers, and its peak memory; nothing but the reason where it fails."""
        command = ["timeout", str(LONGEST_SECONDS), *self.command(system), *map(str, arguments)]
        answer = benchmark.timed(command)
        if answer["code"]:
            return {"seconds": None, "peak_mib": answer["peak_mib"], "reason": last_line(answer["said"])}
        return {"peak_mib": answer["peak_mib"], **json.loads(answer["stdout"].splitlines()[-1])}


def gemm(threads: int) -> Mapping[str, float]:
    """The machine's peaks, see `gemm.py`."""
    found = benchmark.timed([sys.executable, str(Path(__file__).with_name("gemm.py")), str(threads)])
    peaks: dict[str, float] = json.loads(found["stdout"])
    return peaks
