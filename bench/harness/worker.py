"""One system in a process of its own, by a peer's adapter: `load(variant, folder, threads)` gives what embeds texts.

python worker.py ADAPTER.py VARIANT FOLDER THREADS [what]; without `what`, embed one text and leave: start-up time

--text FILE                     embed that file as one text
--memory TEXTS.json             embed them, say what memory was held
--serve WORKLOADS.json V.npy    a workload's name a line on stdin

python worker.py ADAPTER.py --prepare CHECKPOINT FOLDER writes what `load` opens.

Answers are JSON lines. It runs in the peer's environment, and imports nothing but its adapter and numpy.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Embed = Callable[[Sequence[str]], np.ndarray]
MEMORY_EVERY = 1000
REST = 2.0  # seconds, after which idle memory is read


def adapter(path: str) -> Any:
    """The module at a path."""
    spec = importlib.util.spec_from_file_location("adapter", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(embed: Embed, workload: Mapping[str, Any], vectors_file: str) -> list[float]:
    """Seconds of each call: of each text where they are single, of all texts where they go together."""
    texts, callers = workload["texts"], workload["callers"]
    if callers > 1:
        start = time.perf_counter()
        list(pool_of(callers).map(lambda text: embed([text]), texts))
        return [time.perf_counter() - start]
    seconds = []
    for chunk in [[text] for text in texts] if workload["single"] else [texts]:
        start = time.perf_counter()
        vectors = embed(chunk)
        seconds.append(time.perf_counter() - start)
    if not workload["single"]:
        np.save(vectors_file, vectors)
    return seconds


@functools.cache
def pool_of(callers: int) -> ThreadPoolExecutor:
    """The same threads in every round, as a service has them."""
    return ThreadPoolExecutor(callers)


def mib_of(kind: str) -> float:
    """This process's memory, mapped files among it: VmRSS, what it has, or VmHWM, the most it had.

    getrusage's maximum is no less than the parent's when it forked.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def own_mib() -> float:
    """Of this process's memory what no other process of the same files can share: pages that were written to."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def serve(embed: Embed, workloads_file: str, vectors_file: str) -> None:
    workloads = {row["name"]: row for row in json.loads(Path(workloads_file).read_text())}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if line.strip() == "idle":
            time.sleep(REST)
            print(json.dumps({"held_mib": mib_of("VmRSS"), "own_mib": own_mib()}), flush=True)
            continue
        seconds = run(embed, workloads[line.strip()], vectors_file)
        print(json.dumps({"seconds": seconds, "peak_mib": mib_of("VmHWM")}), flush=True)


def memory(embed: Embed, texts_file: str) -> None:
    """Memory held after every thousand texts."""
    texts = json.loads(Path(texts_file).read_text())
    held = []
    for start in range(0, len(texts), MEMORY_EVERY):
        embed(texts[start : start + MEMORY_EVERY])
        held.append(mib_of("VmRSS"))
    print(json.dumps({"held_mib": held, "peak_mib": mib_of("VmHWM")}))


def main() -> None:
    path, *arguments = sys.argv[1:]
    if arguments[0] == "--prepare":
        adapter(path).prepare(Path(arguments[1]), Path(arguments[2]))
        return
    variant, folder, threads, *rest = arguments
    embed: Embed = adapter(path).load(variant, Path(folder), int(threads))
    if not rest:
        embed(["what is BM25?"])
    elif rest[0] == "--serve":
        serve(embed, *rest[1:])
    elif rest[0] == "--memory":
        memory(embed, rest[1])
    else:
        text = Path(rest[1]).read_text(encoding="utf-8")
        start = time.perf_counter()
        embed([text])
        print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
