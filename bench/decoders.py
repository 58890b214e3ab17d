"""bge-en-icl on seeded random weights: queries per second zero-shot and behind examples, with and without prefix reuse.

    bench/run decoders.py --model full --examples .../MTEB_SciFact.json .../MTEB_TRECCOVID.json \\
        --tokenizer .../tokenizer.model --out F.json
    bench/run decoders.py --model 1b …    one billion parameters, beside FlagEmbedding

Each measurement is a process of its own under /usr/bin/time; its peak memory is the process's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from harness import benchmark

FLAG_PYTHON = Path(".venv-flagembedding/bin/python").absolute()
SHRUNK = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 7168,
}
TASK = "Given a scientific claim, retrieve documents that support or refute the claim."
QUERIES = (
    "Aspirin lowers the risk of colon cancer.",
    "Vitamin D deficiency is unrelated to birth weight.",
    "Taxation of sugar-sweetened beverages reduces obesity.",
    "Statins increase blood cholesterol.",
    "Macrophages are found in the gut.",
    "Smoking raises the incidence of lung disease.",
    "Exercise improves memory in old age.",
    "Antibiotics change the composition of gut bacteria.",
)
EXAMPLES = 5
SAME = 0.95  # least cosine of a text's vectors with a prefix and without: random weights make much of rounding
ROUNDS = 3


def ours(folder: str, examples: list[dict[str, str]], *, reuse: bool) -> Any:
    from bge_onnx import Embedder
    from bge_onnx.text.examples import Prompt, examples_text

    bge = Embedder.open(folder)
    if reuse:
        few_shot = bge.with_examples(examples, instruction=TASK)
        return lambda queries: few_shot.embed(queries, progress=False).dense
    prompt = Prompt(examples=examples_text(examples, TASK) if examples else "", instruction=TASK)
    return lambda queries: (
        bge.embed_token_ids(prompt.token_ids(bge.tokenizer, queries, max_tokens=512), progress=False).dense
    )


def flag_embedding(folder: str, examples: list[dict[str, str]]) -> Any:
    from FlagEmbedding import FlagICLModel

    model = FlagICLModel(
        folder, query_instruction_for_retrieval=TASK, examples_for_task=examples or None, use_fp16=False, devices="cpu"
    )
    return lambda queries: model.encode_queries(list(queries))


def work(system: str, folder: str, examples_file: str, count: int) -> None:
    """A process: open, one query, then rounds of `count` queries; JSON on stdout."""
    examples = json.loads(Path(examples_file).read_text()) if examples_file != "none" else []
    start = time.perf_counter()
    if system == "FlagEmbedding":
        embed = flag_embedding(folder, examples)
    else:
        embed = ours(folder, examples, reuse=system == "ours, prefix reused")
    opened = time.perf_counter() - start
    vector = embed(QUERIES[:1])[0]
    first = time.perf_counter() - start
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        embed(QUERIES[:count])
        seconds.append((time.perf_counter() - start) / count)
    found = {"open_seconds": opened, "first_seconds": first, "seconds_per_query": statistics.median(seconds)}
    print(json.dumps({**found, "vector": vector.tolist()}))


def measure(system: str, folder: Path, examples: Path | None, count: int) -> dict[str, Any]:
    python = str(FLAG_PYTHON) if system == "FlagEmbedding" else sys.executable
    answer = benchmark.timed([python, __file__, "--work", system, str(folder), str(examples or "none"), str(count)])
    if answer["code"]:
        raise SystemExit(f"{system} on {folder} ended with {answer['code']}")
    return {**json.loads(answer["stdout"]), "peak_mib": answer["peak_mib"]}


def prepare(model: str, target: str, folder: Path, tokenizer: Path) -> dict[str, Any]:
    """The bundle of a target in `folder`, and what its export took, which is kept beside it."""
    kept = folder / f"{model}-{target}.json"
    if not kept.exists():
        weights, out = checkpoint(model, folder, tokenizer), folder / f"{model}-{target}"
        kept.write_text(json.dumps(benchmark.export("BAAI/bge-en-icl", target, weights, out)))
    return json.loads(kept.read_text())


def checkpoint(model: str, folder: Path, tokenizer: Path) -> Path:
    """A checkpoint of the true size, or of one billion parameters, made once."""
    from bge_export.checkpoint import catalog
    from bge_export.models import random_checkpoint

    out = folder / f"{model}-checkpoint"
    if not (out / "tokenizer.json").exists():  # written last
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        entry = catalog.find("bge-en-icl")
        assert entry
        config = entry.config | (SHRUNK if model == "1b" else {})
        random_checkpoint.write(out, config, seed=0, lower_case=False, sentencepiece_model=tokenizer)
    return out


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    targets = arguments.targets.split(",")
    exports = {target: prepare(arguments.model, target, folder, arguments.tokenizer) for target in targets}
    few_shot = [example for file in arguments.examples for example in json.loads(file.read_text())][:EXAMPLES]
    if len(few_shot) < EXAMPLES:
        raise SystemExit(f"--examples: expected {EXAMPLES} examples, found {len(few_shot)}")
    examples_file = folder / "examples.json"
    examples_file.write_text(json.dumps(few_shot))
    rows = []
    for examples in (None, examples_file):
        shots = "zero-shot" if examples is None else f"{EXAMPLES} examples"
        systems = [(target, system, folder / f"{arguments.model}-{target}") for target in targets for system in OURS]
        if arguments.model == "1b":
            systems.append(("float32", "FlagEmbedding", folder / f"{arguments.model}-checkpoint"))
        for target, system, bundle in systems:
            count = len(QUERIES) if examples is None or system == OURS[1] else arguments.few
            found = measure(system, bundle, examples, count)
            vector = np.array(found.pop("vector"))
            if system == OURS[0]:
                whole = vector
            found["cosine_to_whole"] = float(vector @ whole)  # FlagEmbedding's to the last target's
            if system == OURS[1] and found["cosine_to_whole"] < SAME:
                raise SystemExit(f"{target}, {system}: another vector than of whole texts, cosine {vector @ whole:.4f}")
            rows.append({"target": target, "system": system, "shots": shots, **found})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return {"model": arguments.model, "exports": exports, "rows": rows}


OURS = ("ours, whole texts", "ours, prefix reused")


def table(record: dict[str, Any]) -> str:
    rows = [
        [
            row["target"],
            row["system"],
            row["shots"],
            f"{1 / row['seconds_per_query']:.3f}",
            f"{row['open_seconds']:.1f}",
            f"{row['first_seconds']:.1f}",
            f"{row['peak_mib']:.0f}",
            f"{row['cosine_to_whole']:.5f}" if "cosine_to_whole" in row else "",  # older results have none
        ]
        for row in record["rows"]
    ]
    headers = ["target", "system", "", "queries/s", "open s", "to first vector s", "peak MiB", "cosine to whole"]
    exports = [benchmark.export_line(target, found) for target, found in record["exports"].items()]
    rows_table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return "\n".join([rows_table, "", *exports, "", benchmark.machine_line(record["machine"])])


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:5], int(sys.argv[5]))
        return
    parser = benchmark.new_parser(__doc__)
    parser.add_argument("--model", choices=("full", "1b"), default="1b")
    parser.add_argument("--targets", default="cpu-int8,cpu-int4", help="comma-separated")
    parser.add_argument("--examples", type=Path, nargs="+", help="JSON lists; the first five are taken")
    parser.add_argument("--tokenizer", type=Path, help="Mistral's tokenizer.model")
    parser.add_argument("--few", type=int, default=2, help="queries a round where whole few-shot texts are computed")
    benchmark.main(parser, run, table, needs=["examples", "tokenizer"])


if __name__ == "__main__":
    main()
