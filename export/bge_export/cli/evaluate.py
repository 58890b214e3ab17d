"""The command `bge-export evaluate`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bge_export.evaluate.scoring import Scores
    from bge_export.evaluate.tasks import Task
    from bge_onnx import Embedder


@click.command()
@click.argument("bundle")
@click.option("--task", required=True, help="stsb, scifact, a folder in BEIR's form, or a file of sentence pairs.")
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Holds eval-stsb/ and eval-scifact/."
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Score float32 PyTorch too, and compare.",
)
@click.option(
    "--split",
    help="Judgements to use in a folder, as dev for qrels/dev.tsv. By default qrels.tsv, else test, else the only one.",
)
@click.option("--name", help="Name of the result in `bge info`; by default the task's or the folder's name.")
@click.option(
    "--rerank", "rerankers", multiple=True, metavar="BUNDLE",
    help="Also rank each query's best passages by this reranker. Given twice, the first is compared with the second.",
)  # fmt: skip
@click.option(
    "--top-k", type=click.IntRange(1, 100), default=100, show_default=True, help="How many passages --rerank ranks."
)
@click.option("--threads", type=click.IntRange(min=1), help="Cores to use; all by default.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def evaluate(
    bundle: str,
    task: str,
    data: Path | None,
    checkpoint: Path | None,
    split: str | None,
    name: str | None,
    rerankers: tuple[str, ...],
    top_k: int,
    threads: int | None,
    *,
    as_json: bool,
) -> None:
    """Score a bundle on real data: Spearman for sentence pairs, nDCG@10 and recall@100 for retrieval.

    With --checkpoint, it also tells how close the bundle's vectors and rankings are to float32 PyTorch's. `bge info`
    then prints that.

    Passages with equal scores are ranked by descending id, as in trec_eval. A passage with the query's own id is left
    out, as in BEIR. A query without relevant passages scores 0. PyTorch's scores are kept in BGE_CACHE (else
    ~/.cache/bge-onnx) and are not computed again.

    The tasks stsb and scifact read the folders eval-stsb and eval-scifact under --data or BGE_EVAL_DATA. Without
    either, they come from the Hub.

    \b
    Examples:
      bge-export evaluate bge-small --task stsb
      bge-export evaluate my-bundle --task ./my-beir-folder --checkpoint ./my-model --json
      bge-export evaluate bge-m3 --task scifact --rerank reranker-int8 --rerank reranker-fp32
    """
    from bge_export.bundle import writer
    from bge_export.evaluate import reranking, scoring
    from bge_export.evaluate.tasks import open_task
    from bge_onnx import BundleError, Embedder

    if len(rerankers) > 2:
        raise click.UsageError("--rerank: give one reranker, or two to compare")
    opened = open_task(task, data, split=split, name=name)
    embedder = Embedder.open(bundle, threads=threads)
    prompts = embedder.bundle.prompts
    wanted, close = None, {}
    if checkpoint is not None:
        wanted = _of_pytorch(embedder, checkpoint, opened)
    candidates = wanted.best if wanted else None
    reranking.require_retrieval(opened, rerankers)
    scores = scoring.evaluate(opened, scoring.bundle_system(embedder), prompts, candidates=candidates)
    if wanted:
        close = scoring.fidelity(scores, wanted)
    if rerankers:
        scores = _reranked(opened, scores, rerankers, top_k, threads)
    _print_scores(opened.name, scores, wanted, close, as_json=as_json)
    if wanted and Path(bundle).is_dir():  # not in the Hub's cache
        reference = {f"reference_{name}": value for name, value in wanted.values.items()}
        try:
            values = {**scores.values, **reference, **close}
            writer.record(embedder.bundle, quality={opened.name: values})
        except OSError as error:
            raise BundleError(
                f"{bundle}: expected a manifest that scores can be written to, found {error.strerror}.\n"
                "    They are printed above; `bge info` does not show them."
            ) from error


def _reranked(task: Any, scores: Scores, names: Sequence[str], top_k: int, threads: int | None) -> Scores:
    """The scores, with nDCG@10 of the first reranker's ranking, and how close it is to the second's."""
    from bge_export.evaluate import reranking
    from bge_onnx import Reranker

    assert scores.best is not None
    candidates = scores.best[:, :top_k]
    found = [reranking.rerank(task, candidates, Reranker.open(name, threads=threads)) for name in names[:2]]
    values = {"reranked_ndcg_at_10": found[0].ndcg_at_10}
    if len(found) == 2:
        values["other_reranked_ndcg_at_10"] = found[1].ndcg_at_10
        values |= {f"rerankers_{name}": value for name, value in reranking.closeness(*found).items()}
    return dataclasses.replace(scores, values={**scores.values, **values})


def _of_pytorch(embedder: Embedder, checkpoint: Path, task: Task) -> Scores:
    """What float32 PyTorch reaches with the checkpoint, computed now or kept from an earlier time."""
    import torch

    from bge_export.checkpoint import adapter
    from bge_export.evaluate import reference_cache, scoring
    from bge_export.recheck import recipe_of, require_same_weights
    from bge_onnx.text.examples import QUERY_TOKENS, Prompt

    with adapter.merged(checkpoint) as (whole, sha256):
        require_same_weights(embedder.bundle, whole, sha256)
        recipe = recipe_of(embedder.bundle, whole)

        def compute() -> Scores:
            torch.set_num_threads(embedder.session.threads)
            query_ids = None
            if embedder.takes_examples:
                query_ids = lambda texts: Prompt().token_ids(embedder.tokenizer, texts, max_tokens=QUERY_TOKENS)  # noqa: E731
            system = scoring.reference_system(whole, recipe, progress=sys.stderr.isatty(), query_ids=query_ids)
            return scoring.evaluate(task, system, embedder.bundle.prompts)

        return reference_cache.scores_of(reference_cache.checkpoint_key(whole), recipe, task, compute)


def _print_scores(
    task: str, scores: Scores, wanted: Scores | None, close: Mapping[str, float], *, as_json: bool
) -> None:
    if as_json:
        record = {"task": task, "metric": scores.metric, "score": scores.score}
        record |= {"reference_score": wanted.score if wanted else None, "texts": scores.texts}
        record |= {"all": dict(scores.values), "reference_all": dict(wanted.values) if wanted else None}
        click.echo(json.dumps({**record, "fidelity": close or None}))
        return
    for metric, value in scores.values.items():
        beside = f"   PyTorch {wanted.values[metric]:.5f}" if wanted and metric in wanted.values else ""
        click.echo(f"{task}   {metric}   {value:.5f}{beside}   {scores.texts} texts")
    for name, value in close.items():
        click.echo(f"{task}   {name}   {value:.5f}")
