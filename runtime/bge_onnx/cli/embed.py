"""The command `bge embed`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bge_onnx.cli.command_line import report, split_devices

if TYPE_CHECKING:
    from bge_onnx.embedder import Embedder
    from bge_onnx.files.text_files import LeftOut, Record
    from bge_onnx.vectors.embeddings import Embeddings
    from bge_onnx.vectors.vector_files import Chunk

FORMATS = ("text", "jsonl", "json", "csv", "tsv", "parquet")
# text_bytes.FORMATS, without importing numpy for --help; a test compares


@click.command()
@click.argument("bundle")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
@click.option("--query", is_flag=True, help="The texts are queries: put the model's query instruction in front.")
@click.option("--prompt", help="Put this in front of every text, instead of the model's own instruction.")
@click.option("--heads", default="dense", show_default=True, help="Out of dense,sparse,colbert, with commas between.")
@click.option("--instruction", help="The texts are queries of this task (bge-en-icl, bge-multilingual-gemma2).")
@click.option(
    "--examples", type=click.Path(path_type=Path), help="Few-shot examples in front of them: a JSON list (bge-en-icl)."
)
@click.option("--mcls", is_flag=True, help="Long texts as the mean over a CLS token every 256 tokens.")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="What FILE holds, where its ending does not say it.")
@click.option("--text-field", default="text", show_default=True, help="The field or column of the texts.")
@click.option(
    "--title-field", default="title", show_default=True,
    help="The field of the titles. A title goes in front of its text, with a space between. Empty for none.",
)  # fmt: skip
@click.option(
    "--id-field",
    help="The field of the ids, which results keep; _id or id by default, where there is one. Empty for none.",
)
@click.option(
    "--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True,
    help="What to do at a record without a text. skip: leave it out, and say so at the end. stop: end with an error, "
    "and keep the vectors before it.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write F.npz or F.jsonl instead of JSON lines on stdout.")
@click.option("--threads", type=click.IntRange(min=1), help="Cores to use; all by default.")
@click.option("--devices", callback=split_devices, metavar="N,…", help="For GPU bundles: GPU numbers, as 0,1.")
@click.option("--force", is_flag=True, help="Replace a file that is at --out already.")
def embed(
    bundle: str, file: Path, out: Path | None, *, threads: int | None, devices: list[int] | None, **options: Any
) -> None:
    """Embed the texts of FILE (or stdin).

    FILE is plain text, one text a line, or JSON lines, a JSON list, CSV or TSV with a header, or Parquet; each may be
    compressed with gzip or zstd. The file's ending says which; without an ending the first line does, or --format.
    Records have the texts in the field "text". Their ids are kept. Blank lines are left out in every format; for plain
    text the command says how many. A record with an empty text is kept.

    Results keep the texts' order: JSON lines with `index`, `id` and each head, or arrays in an .npz file: `ids`;
    `dense` (N, D); `sparse_ids` and `sparse_weights`, text i's from `sparse_starts[i]` to `sparse_starts[i + 1]`; rows
    `colbert`, likewise with `colbert_starts`. JSON lines are written as they get ready, so FILE may be larger than
    memory.

    \b
    Examples:
      bge embed bge-small texts.txt --out vectors.npz
      echo "what is BM25?" | bge embed bge-small --query
      bge embed bge-m3 corpus.jsonl.gz --heads dense,sparse --out vectors.npz
      bge embed bge-small articles.csv --text-field body --id-field number
      bge embed bge-en-icl queries.txt --instruction "Given a question, retrieve its answer." --examples examples.json
    """
    from bge_onnx.embedder import Embedder
    from bge_onnx.files.text_files import Fields, LeftOut, read_records
    from bge_onnx.vectors.vector_files import vector_file, write_vectors

    fields = Fields(
        format=options["kind"], text=options["text_field"], title=options["title_field"], id=options["id_field"]
    )
    left_out = LeftOut(stop=options["on_error"] == "stop")
    with vector_file(out, force=options["force"]) as partial:
        embedder = Embedder.open(bundle, threads=threads, devices=devices)
        embed_texts, window = _way(embedder, options)
        chunks = _chunks(read_records(file, fields, left_out), embed_texts, window)
        count = write_vectors(chunks, partial, arrays=out is not None and out.suffix == ".npz")
    _report(left_out)
    if out is not None:
        report(f"wrote {out}: {count} vectors")


def _report(left_out: LeftOut) -> None:
    """Say on stderr what has no vector."""
    for error in left_out.shown:
        report(f"skipped {error}")
    if left_out.errors:
        report(f"skipped {left_out.errors} records that have no text")
    if left_out.blank_lines:
        report(f"left out {left_out.blank_lines} blank lines: vectors are counted without them")


def _way(embedder: Embedder, options: dict[str, Any]) -> tuple[Callable[[list[str]], Embeddings], int]:
    """How texts are embedded, and how many at a time."""
    from bge_onnx.embed.few_shot import STREAM_QUERIES
    from bge_onnx.embedder import STREAM_TEXTS
    from bge_onnx.files.text_files import read_examples

    query, instruction, examples, mcls = (options[name] for name in ("query", "instruction", "examples", "mcls"))
    heads = tuple(head.strip() for head in options["heads"].split(","))
    if options["prompt"] is not None and (query or instruction is not None or examples is not None):
        raise click.UsageError("--prompt takes the place of --query, --instruction and --examples: give one of them")
    if embedder.takes_examples and (query or instruction is not None or examples is not None):
        if mcls or heads != ("dense",):
            raise click.UsageError("few-shot queries have dense vectors only: leave --heads and --mcls out")
        few_shot = embedder.with_examples(read_examples(examples) if examples else (), instruction=instruction)
        return (lambda texts: few_shot.embed(texts, progress=False)), STREAM_QUERIES
    if examples is not None:
        embedder.with_examples()  # says which models take examples
    prompt = embedder.bundle.prompts.get("query" if query else "passage", "")
    if instruction is not None:
        prompt = embedder.task_prompt(instruction)
    if options["prompt"] is not None:
        prompt = options["prompt"]
    return (lambda texts: embedder.embed(texts, heads=heads, prompt=prompt, mcls=mcls, progress=False)), STREAM_TEXTS


def _chunks(records: Iterable[Record], embed_texts: Callable[[list[str]], Embeddings], window: int) -> Iterator[Chunk]:
    """Vectors and ids of the records, `window` at a time; one empty chunk where there are none."""
    left = iter(records)
    chunk = list(itertools.islice(left, window))
    while True:
        yield embed_texts([record.text for record in chunk]), [record.id for record in chunk]
        chunk = list(itertools.islice(left, window))
        if not chunk:
            return
