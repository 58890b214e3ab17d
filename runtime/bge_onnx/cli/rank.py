"""The command `bge rank`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import click

from bge_onnx.cli.command_line import split_devices
from bge_onnx.cli.embed import FORMATS


@click.command()
@click.argument("bundle")
@click.argument("query")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
@click.option("--top-k", type=click.IntRange(min=1), help="Print so many passages; all by default.")
@click.option("--normalize", is_flag=True, help="Scores from 0 to 1, through the sigmoid, instead of the model's own.")
@click.option("--max-tokens", type=click.IntRange(min=5), help="Cut passages so that a pair fits; the model's limit.")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="What FILE holds, where its ending does not say it.")
@click.option("--text-field", default="text", show_default=True, help="The field or column of the passages.")
@click.option("--title-field", default="title", show_default=True, help="Its text stands in front. Empty for none.")
@click.option("--id-field", help="The field of the ids; _id or id by default, where there is one. Empty for none.")
@click.option("--threads", type=click.IntRange(min=1), help="Cores to use; all by default.")
@click.option("--devices", callback=split_devices, metavar="N,…", help="For GPU bundles: GPU numbers, as 0,1.")
def rank(
    bundle: str,
    query: str,
    file: Path,
    top_k: int | None,
    *,
    normalize: bool,
    max_tokens: int | None,
    kind: str | None,
    text_field: str,
    title_field: str,
    id_field: str | None,
    threads: int | None,
    devices: list[int] | None,
) -> None:
    """Rank the passages of FILE (or stdin) for QUERY with a reranker: JSON lines, best first.

    FILE is plain text, one passage a line, or any other form that `bge embed` reads. A reranker reads the query and
    each passage together, so take the best hundred of a search, not a corpus.

    \b
    Examples:
      bge rank bge-reranker-v2-m3 "what is BM25?" passages.txt --top-k 10
      bge rank bge-reranker-base "what is BM25?" hits.jsonl --normalize
    """
    from bge_onnx.files.text_files import Fields, LeftOut, read_records
    from bge_onnx.reranker import Reranker

    fields = Fields(format=kind, text=text_field, title=title_field, id=id_field)  # type: ignore[arg-type]  # click checked it
    reranker = Reranker.open(bundle, threads=threads, devices=devices)
    records = list(read_records(file, fields, LeftOut(stop=True)))
    texts = [record.text for record in records]
    ranked = reranker.rank(query, texts, normalize=normalize, max_tokens=max_tokens) if texts else []
    for place in itertools.islice(ranked, top_k):
        record = records[place.index]
        named = {} if record.id is None else {"id": record.id}
        line = {"score": round(place.score, 6), "index": place.index, **named, "passage": record.text}
        click.echo(json.dumps(line, ensure_ascii=False, allow_nan=False))
