"""The command `bge`: results on stdout, progress and reports on stderr."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from bge_onnx.cli.command_line import run_command, split_devices
from bge_onnx.cli.embed import embed
from bge_onnx.cli.rank import rank

if TYPE_CHECKING:
    from bge_onnx.bundle.bundle import Bundle


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bge-onnx")
def cli() -> None:
    """Embed texts with a BGE bundle: a folder that `bge-export run` wrote, or a Hub repository that holds one.

    \b
    Example:
      echo "what is BM25?" | bge embed bge-small --query
    """


cli.add_command(embed)
cli.add_command(rank)


@cli.command()
@click.argument("bundle")
@click.argument("query")
@click.argument("passages", nargs=-1, required=True, metavar="PASSAGE...")
@click.option("--threads", type=click.IntRange(min=1), help="Cores to use; all by default.")
@click.option("--weights", nargs=3, type=float, metavar="DENSE SPARSE COLBERT", help="Of a bundle with three heads.")
def score(
    bundle: str, query: str, passages: tuple[str, ...], threads: int | None, weights: tuple[float, ...] | None
) -> None:
    """Rank PASSAGEs by their similarity to QUERY: JSON lines, best first.

    A bundle with three heads ranks by their weighted mean, and prints the score of each head. A mean whose weights add
    up to 0 is printed as `null`.

    \b
    Example:
      bge score bge-small "what is BM25?" "BM25 is a ranking function." "Tea is a drink."
      bge score bge-m3 "what is BM25?" "BM25 ranks." "Tea is a drink." --weights 0.4 0.2 0.4
    """
    from bge_onnx.embedder import Embedder
    from bge_onnx.vectors.scores import EQUAL, top_k

    embedder = Embedder.open(bundle, threads=threads)
    if weights is not None or len(embedder.bundle.outputs) == 3:
        scores = embedder.score([(query, passage) for passage in passages], weights=weights or EQUAL)
        main = scores["colbert+sparse+dense"]
    else:
        scores, main = {}, embedder.similarity([query], passages)[0]
    for place in top_k(main[None], len(passages))[0]:
        record = {"score": round(float(main[place]), 6), "index": int(place), "passage": passages[place]}
        record |= {mode: _number(values[place]) for mode, values in scores.items()}
        click.echo(json.dumps(record, ensure_ascii=False, allow_nan=False))


@cli.command()
@click.argument("bundle")
@click.option("--verify", is_flag=True, help="Also compare the hash of every file.")
@click.option("--json", "as_json", is_flag=True, help="The whole manifest as one JSON object.")
def info(bundle: str, *, verify: bool, as_json: bool) -> None:
    """Say what a bundle is, and where it runs. The graph is loaded for that. On a GPU, also list its attention kernels.

    \b
    Example:
      bge info bge-small --verify
    """
    from bge_onnx.bundle.bundle import Bundle
    from bge_onnx.bundle.hub import find_bundle
    from bge_onnx.errors import OperatorsError, ProviderError
    from bge_onnx.model import open_model
    from bge_onnx.run.cuda import CUDA
    from bge_onnx.run.devices import attention_kernels
    from bge_onnx.run.kernels import instruction_set
    from bge_onnx.run.threads import available_threads

    manifest, kernels = Bundle.open(find_bundle(bundle), verify=verify), {}
    provider, why_not = None, None
    try:
        session = open_model(manifest.folder).session
        if manifest.provider == CUDA:
            kernels = attention_kernels(manifest.folder)  # before this process loads it
        provider = session.load(session.threads).get_providers()[0]
    except (OperatorsError, ProviderError) as error:  # what it is can be told all the same
        why_not = str(error)
    if as_json:
        record = {**manifest.to_json(), "session_provider": provider, "attention_kernels": kernels}
        click.echo(json.dumps({**record, "does_not_run": why_not}, ensure_ascii=False))
        return
    size_mb = sum(record.size_bytes for record in manifest.files.values()) / 1e6
    parity = manifest.parity.heads if manifest.parity else {}
    source = manifest.source
    runs = f"runs on {provider} with {available_threads()} threads" if provider else "does not run here"
    facts = {
        "model": f"{manifest.model} ({manifest.licence or 'licence unknown'})",
        "weights": f"{source.kind} {source.revision or source.sha256 or source.seed}",
        "target": f"{manifest.target}, {runs}",
        **({"because": why_not.replace("\n", "\n" + " " * 9)} if why_not else {}),
        "stored": f"matrices in {_storage(manifest)}, calibration {manifest.calibration or 'none'}",
        **({"activations": f"{manifest.activations} bits"} if manifest.activations else {}),
        **({"operators": f"{', '.join(manifest.kernels)}, {instruction_set()}"} if manifest.kernels else {}),
        "heads": ", ".join(f"{head} ({width})" for head, width in manifest.dims.items()),
        "pooling": f"{manifest.pooling}{', normalised' if manifest.normalized else ''}",
        "similarity": manifest.similarity,
        **({"cut to": f"{manifest.truncate_dim} components"} if manifest.truncate_dim else {}),
        "max tokens": str(manifest.max_tokens),
        **{name: repr(prompt) for name, prompt in manifest.prompts.items()},
        "files": f"{len(manifest.files)}, {size_mb:,.1f} MB{', hashes compared' if verify else ''}",
        **{f"attention {kernel}": f"{nodes} nodes" for kernel, nodes in kernels.items()},
        **{
            f"{head} error": f"{found.max_error:.1e} of {found.limit:.1e} allowed ({found.measure})"
            for head, found in parity.items()
        },
        **{f"on {task}": _quality(values) for task, values in manifest.quality.items()},
    }
    for name, fact in facts.items():
        click.echo(f"{name:12} {fact}")


@cli.command("warm-up")
@click.argument("bundle")
@click.option("--threads", type=click.IntRange(min=1), help="Cores to use; all by default.")
@click.option("--devices", callback=split_devices, metavar="N,…", help="For GPU bundles: GPU numbers, as 0,1.")
def warm_up(bundle: str, threads: int | None, devices: list[int] | None) -> None:
    """Load a bundle and run it once (on GPUs, in each replayed size). Shows that it runs here, and how long that takes.

    Afterwards its files are in the page cache. What a GPU has recorded is lost when the process ends, so a service
    should call `Embedder.warm_up()` itself.

    \b
    Example:
      bge warm-up bge-base-cuda-fp16 --devices 0,1
    """
    from bge_onnx.model import open_model

    start = time.perf_counter()
    model = open_model(bundle, threads=threads, devices=devices)
    model.warm_up()
    model.session.close()
    click.echo(json.dumps({"bundle": model.bundle.name, "seconds": round(time.perf_counter() - start, 3)}))


def _number(value: float) -> float | None:
    """Six digits; None, which is `null`, for the mean of scores that weigh nothing: JSON has no NaN."""
    return round(float(value), 6) if math.isfinite(value) else None


def _storage(bundle: Bundle) -> str:
    """How a bundle's matrices are stored."""
    from bge_onnx.bundle.targets import facts_of

    bits = facts_of(bundle.target).bits
    return f"{bits} bits, other weights in {bundle.weights}" if bits else bundle.weights


def _quality(values: Mapping[str, float]) -> str:
    """An evaluation's values, each beside float32 PyTorch's where it has one."""
    ours = {name: value for name, value in values.items() if not name.startswith("reference_")}
    beside = {name: f" (PyTorch {values[f'reference_{name}']:.4f})" for name in ours if f"reference_{name}" in values}
    return ", ".join(f"{name} {value:.4f}{beside.get(name, '')}" for name, value in ours.items())


def main() -> None:
    """Run the command."""
    run_command(cli)
