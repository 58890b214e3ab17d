"""Evaluation data: pairs of sentences with a gold score, or a corpus with queries and judgements."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_onnx.errors import InputError, first_line
from bge_onnx.hub import hub_errors

DATA_VARIABLE = "BGE_EVAL_DATA"


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePairs:
    """Semantic textual similarity: sentence pairs and how alike people found them."""

    name: str
    left: Sequence[str]
    right: Sequence[str]
    gold: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """BEIR's form: passages and queries by id, and the relevance (> 0) of passages to queries."""

    name: str
    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    relevance: Mapping[str, Mapping[str, int]]


Task = SentencePairs | Retrieval


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A task known by name: its folder under --data, or a Hub data set at a pinned revision."""

    folder: str
    repository: str
    revision: str
    files: tuple[str, ...]
    pairs: str | None = None  # the file of sentence pairs in the folder


KNOWN = {
    "stsb": Known(
        folder="eval-stsb",
        repository="mteb/stsbenchmark-sts",
        revision="b0fddb56ed78048fa8b90373c8a3cfc37b684831",
        files=("test.jsonl.gz",),
        pairs="stsb-en-test.csv",
    ),
    "scifact": Known(
        folder="eval-scifact",
        repository="mteb/scifact",
        revision="0228b52cf27578f30900b9e5271d331663a030d7",
        files=("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"),
    ),
}


def open_task(task: str, data: Path | None) -> Task:
    """A known task, a folder in BEIR's form, or a CSV or JSON-lines file of sentence pairs.

    data  folder that holds the known tasks' folders; None takes BGE_EVAL_DATA, and where that is not set the Hub
    Raises InputError: nothing usable there.
    """
    if task not in KNOWN:
        return _open_path(Path(task), Path(task).stem)
    known = KNOWN[task]
    data = data or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if data is not None:
        folder = data / known.folder
        return _open_path(folder / known.pairs if known.pairs else folder, task)
    folder = _download(known)
    return _open_path(folder / known.files[0] if len(known.files) == 1 else folder, task)


def _download(known: Known) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - local data must not need it

    try:
        path = snapshot_download(
            known.repository, repo_type="dataset", revision=known.revision, allow_patterns=list(known.files)
        )
    except hub_errors() as error:
        raise InputError(
            f"{known.repository}: expected this data set on the Hub, found {first_line(error)}\n"
            f"    Give the folder that holds {known.folder}/ with --data or {DATA_VARIABLE}."
        ) from error
    return Path(path)


def _open_path(path: Path, name: str) -> Task:
    if path.is_file():
        return _sentence_pairs(path, name)
    corpus, queries = _jsonl_file(path, "corpus"), _jsonl_file(path, "queries")
    qrels = next((file for file in (path / "qrels.tsv", path / "qrels/test.tsv") if file.is_file()), None)
    if not corpus or not queries or not qrels:
        raise InputError(
            f"{path}: expected a task ({', '.join(KNOWN)}), a folder with corpus.jsonl[.gz], queries.jsonl[.gz] and "
            "qrels.tsv or qrels/test.tsv, or a file of sentence pairs; found none of these."
        )
    relevance = _relevance(qrels)
    texts = {row["_id"]: row["text"] for row in _rows(queries)}
    return Retrieval(
        name=name,
        corpus={row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in _rows(corpus)},
        queries={query: texts[query] for query in relevance if query in texts},
        relevance=relevance,
    )


def _jsonl_file(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz") if path.is_file()), None)


def _sentence_pairs(path: Path, name: str) -> SentencePairs:
    """CSV without a header (sentence1, sentence2, score), or JSON lines with those keys."""
    try:
        if ".csv" in path.suffixes:
            with path.open(encoding="utf-8", newline="") as file:
                rows = [(left, right, float(score)) for left, right, score in csv.reader(file)]
        else:
            rows = [(row["sentence1"], row["sentence2"], float(row["score"])) for row in _rows(path)]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{path}: expected rows of sentence1, sentence2 and score, found another form ({error})."
        ) from None
    left, right, gold = zip(*rows, strict=True)
    return SentencePairs(name=name, left=left, right=right, gold=gold)


def _relevance(path: Path) -> dict[str, dict[str, int]]:
    relevance: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if int(row["score"]) > 0:
                relevance.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    return relevance


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)
