"""On a CUDA GPU: parity of the bundles, the kernels they get, and speed beside PyTorch; weights are seeded random ones.

    scripts/gpu                                      everything
    scripts/gpu --parts parity --models small,m3     a part of it
    scripts/gpu --dry-run                            builds every bundle and lists the checks; needs no GPU
    scripts/gpu --print bench/results/NVIDIA-H200.json

Exits with 1 where vectors are not PyTorch's. Each system has a process of its own; they take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from tokenizers import Tokenizer

from bge_export.checkpoint import catalog
from bge_export.export import export
from bge_export.models import random_checkpoint
from bge_export.request import Request
from bge_onnx import ProviderError
from bge_onnx.run.cuda import CUDA
from bge_onnx.run.devices import attention_kernels
from bge_onnx.run.onnx_runtime import ort
from harness import benchmark
from harness.gpu_tables import table
from harness.summary import summaries
from harness.systems import worker_of
from harness.workers import Worker, WorkerError
from harness.workloads import gpu_workloads

PARTS = ("parity", "kernels", "speed")
MODELS = {
    "small": "bge-small-en-v1.5",
    "base": "bge-base-en-v1.5",
    "large": "bge-large-en-v1.5",
    "m3": "bge-m3",
    "reranker": "bge-reranker-base",
    "icl": "bge-en-icl",
    "gemma2": "bge-multilingual-gemma2",
    "code": "bge-code-v1",
    "qwen3": "Qwen3-Embedding-0.6B",
}
LAYERS = {"icl": 2, "gemma2": 2, "code": 4, "qwen3": 4}  # at their true width: all layers take minutes to write
TARGETS = {  # the last one is timed
    "small": ("cuda-fp32", "cuda-fp16"),
    "base": ("cuda-fp16",),
    "large": ("cuda-fp16",),
    "m3": ("cuda-fp16",),
    "reranker": ("cuda-fp32", "cuda-fp16"),
    "icl": ("cuda-fp16",),
    "gemma2": ("cuda-bf16",),
    "code": ("cuda-bf16",),
    "qwen3": ("cuda-bf16",),
}
SCALE = {  # of the number of texts
    "small": 1, "base": 0.5, "large": 0.25, "m3": 0.25, "reranker": 0.5, **dict.fromkeys(LAYERS, 0.125)
}  # fmt: skip
SENTENCE_TRANSFORMERS = "sentence-transformers"
ENCODER_SYSTEMS = (
    "ours", "ours, no CUDA graphs", "PyTorch", "PyTorch, compiled", "PyTorch, unpadded", SENTENCE_TRANSFORMERS,
)  # fmt: skip
SYSTEMS = {
    **dict.fromkeys(MODELS, ENCODER_SYSTEMS),
    "m3": (*ENCODER_SYSTEMS, "ours, 3 heads", "PyTorch, 3 heads"),
    "reranker": ("ours", "PyTorch"),
    **dict.fromkeys(LAYERS, ("ours", "PyTorch", "PyTorch, unpadded")),
}
COMPILED = ("base",)  # torch.compile takes a minute
MOST_DIFFERENCE = 0.02  # of unit vectors in float16, ours and PyTorch's
ROUNDS = 3
FAILED = "FAILED: "  # in the place of a kernel's name
WARM_UP = ("mix", "one 16", "one 128")  # what is compiled or recorded


def checkpoint_of(model: str, folder: Path) -> Path:
    """A checkpoint of the true sizes, but maybe fewer layers, with seeded weights; written once."""
    entry = catalog.find(MODELS[model])
    assert entry
    checkpoint = folder / model / "checkpoint"
    if not checkpoint.is_dir():
        checkpoint.mkdir(parents=True)
        config = {**entry.config, "num_hidden_layers": LAYERS.get(model, entry.config["num_hidden_layers"])}
        random_checkpoint.write(checkpoint, config, seed=0, lower_case=entry.lower_case, heads=entry.heads)
    return checkpoint


def bundle_of(model: str, target: str, folder: Path, *, check: bool) -> tuple[Path, dict[str, Any]]:
    """A bundle, and what its export's check found; one that fails is written all the same, to see more of it."""
    out = folder / model / target
    request = Request(model=MODELS[model], target=target, checkpoint=checkpoint_of(model, folder), check=check)
    start = time.perf_counter()
    try:
        bundle = export(request, out, force=True)
    except Exception as error:  # noqa: BLE001 - whatever ONNX Runtime raises is what this is to find out
        export(dataclasses.replace(request, check=False), out, force=True)
        return out, {"passed": False, "error": str(error), "seconds": time.perf_counter() - start}
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "checked": check}
    if bundle.parity:
        found |= {"passed": bundle.parity.passed, "heads": asdict(bundle.parity)["heads"], "texts": bundle.parity.texts}
    return out, found


def systems(model: str) -> list[str]:
    """Those that can run here: unpadded attention needs the package flash-attn, and so on."""
    left_out = set() if importlib.util.find_spec("flash_attn") else {"PyTorch, unpadded"}
    left_out |= set() if model in COMPILED else {"PyTorch, compiled"}
    left_out |= set() if importlib.util.find_spec("sentence_transformers") else {SENTENCE_TRANSFORMERS}
    return [name for name in SYSTEMS[model] if name not in left_out]


def started(
    commands: Mapping[str, list[str]], folder: Path, plans_file: Path
) -> tuple[dict[str, Worker], dict[str, str]]:
    """The systems' processes, warmed up, and what those that ended said."""
    workers = {
        system: Worker(command, plans_file, folder / f"{number}.npy")
        for number, (system, command) in enumerate(commands.items())
    }
    failed = {}
    for system, worker in list(workers.items()):
        try:
            worker.ready()
            for name in WARM_UP:
                worker.run(name)
        except WorkerError as error:
            failed[system] = str(error)
            del workers[system]
    return workers, failed


def speed_of(model: str, bundle: Path, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Seconds of every workload by every system in turn, and how far the vectors of the mix are from PyTorch's."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    plans = gpu_workloads(tokenizer, scale=SCALE[model], max_tokens=8192 if model == "m3" else 512)
    plans_file = folder / f"{model}-workloads.json"
    plans_file.write_text(json.dumps([asdict(plan) for plan in plans]))
    places = {system: bundle if system.startswith("ours") else checkpoint for system in systems(model)}
    commands = {system: [*worker_of("cuda"), system, str(place), "1"] for system, place in places.items()}
    workers, failed = started(commands, folder / model, plans_file)
    vectors = {system: np.load(worker.vectors) for system, worker in workers.items()}
    wanted = vectors.get("PyTorch", np.float32("nan"))
    errors = {system: float(np.abs(found - wanted).max()) for system, found in vectors.items()}
    wrong = {system: error for system, error in errors.items() if not error <= MOST_DIFFERENCE}  # NaN too
    failed |= {system: f"vectors {error} off PyTorch's" for system, error in wrong.items()}
    plans = plans if "PyTorch" in workers else []  # nothing to compare with
    seconds: dict[str, dict[str, list[list[float]]]] = {plan.name: {name: [] for name in workers} for plan in plans}
    for plan in plans:
        for number in range(ROUNDS):
            order = [*workers][number % len(workers) :] + [*workers][: number % len(workers)]
            for system in order:
                seconds[plan.name][system].append(workers[system].run(plan.name)["seconds"])
    for worker in workers.values():
        worker.stop()
    config = json.loads((checkpoint / "config.json").read_text())
    workloads = {plan.name: plan.facts for plan in plans}
    kept = summaries(seconds, workloads)
    record = {"workloads": workloads, "results": kept, "difference": errors, "config": config}
    return {**record, "failed": failed}


def peak_tflops() -> float:
    """What a large float16 product reaches here, the median of ten."""
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    times = []
    for _ in range(13):
        torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times[3:]) / 1e12


def device() -> dict[str, Any]:
    """The GPU and the libraries."""
    found = torch.cuda.get_device_properties(0)
    return {
        "name": torch.cuda.get_device_name(0),
        "memory_gib": found.total_memory / 2**30,
        "cuda": torch.version.cuda,
        "peak_tflops": peak_tflops(),
    }


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    parts, dry = arguments.parts.split(","), arguments.dry_run
    require(gpu=not dry)
    record: dict[str, Any] = {"device": None if dry else device(), **{part: {} for part in PARTS}}
    if arguments.out and arguments.out.is_file() and not dry:  # what an earlier part found
        earlier = json.loads(arguments.out.read_text())
        record |= {part: earlier[part] for part in PARTS}
    for model in arguments.models.split(","):
        for part, found in measure(model, parts, folder, dry=dry):
            record[part][model] = found
            print(f"{model} {part}: {json.dumps(found)[:500]}", flush=True)
            if arguments.out and not dry:  # what is known so far, should time run out
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps({"machine": benchmark.machine(), **record}, indent=1) + "\n")
    return record


def measure(model: str, parts: Sequence[str], folder: Path, *, dry: bool) -> Iterator[tuple[str, Any]]:
    """The parts asked for and what each found."""
    targets = TARGETS[model] if "parity" in parts else TARGETS[model][-1:]
    made = {target: bundle_of(model, target, folder, check="parity" in parts and not dry) for target in targets}
    bundle = made[targets[-1]][0]
    if "parity" in parts:
        yield "parity", {target: found for target, (_, found) in made.items()}
    if dry:
        heads = ", ".join(json.loads((bundle / "bundle.json").read_text())["outputs"])
        print(f"{model}: {heads} of {' and '.join(targets)} to compare; {', '.join(parts)} to run", flush=True)
        return
    if "kernels" in parts:
        try:
            yield "kernels", attention_kernels(bundle)
        except ProviderError as error:
            yield "kernels", {f"{FAILED}{error}": 0}
    if "speed" in parts:
        yield "speed", speed_of(model, bundle, checkpoint_of(model, folder), folder)


def require(*, gpu: bool) -> None:
    """End here, not minutes later, where something is missing or too old."""
    numbers = tuple(map(int, onnx_ir.__version__.split(".")[:2]))
    if numbers < (1, 1):
        sys.exit(f"scripts/gpu: expected onnx-ir 1.1 or newer, found {onnx_ir.__version__} at {onnx_ir.__file__}")
    if gpu and not torch.cuda.is_available():
        sys.exit("scripts/gpu: expected a CUDA GPU, found none. --dry-run needs none.")
    if gpu and CUDA not in ort.get_available_providers():
        sys.exit(f"scripts/gpu: expected onnxruntime-gpu, found {ort.__version__} without CUDA at {ort.__file__}")


def main() -> None:
    parser = benchmark.new_parser(__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--dry-run", action="store_true")
    record = benchmark.main(parser, run, table, needs=[])
    failed = [found for targets in record["parity"].values() for found in targets.values() if "error" in found]
    failed += [found["failed"] for found in record["speed"].values() if found["failed"]]
    for kernels in record["kernels"].values():
        failed += [name for name in kernels or (FAILED,) if name.startswith(FAILED)]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
