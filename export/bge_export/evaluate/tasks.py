"""Evaluation data: pairs of sentences with a gold score, or a corpus with queries and judgements."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bge_export.evaluate import task_files
from bge_onnx.bundle.hub import hub_errors
from bge_onnx.errors import InputError, first_line

DATA_VARIABLE = "BGE_EVAL_DATA"
QRELS = "qrels.tsv or qrels/test.tsv"
ENDINGS = (".gz", ".csv", ".tsv", ".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePairs:
    """Semantic textual similarity: sentence pairs and how alike people found them."""

    name: str
    left: Sequence[str]
    right: Sequence[str]
    gold: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """BEIR's form: passages and queries by id, and the relevance of passages to queries, 0 for none."""

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


def open_task(task: str, data: Path | None, *, split: str | None = None, name: str | None = None) -> Task:
    """A known task, a folder in BEIR's form, or a CSV, TSV or JSON-lines file of sentence pairs.

    data   folder that holds the known tasks' folders; None takes BGE_EVAL_DATA, and where that is not set the Hub
    split  of the judgements in a folder: dev for qrels/dev.tsv
    name   under which results are kept; None for the task's own, or the folder's or file's name
    Raises InputError: nothing usable there; the file and the line that is wrong are named.
    """
    if name is not None and not (name.strip() and name.isprintable()):
        raise InputError(f"name: expected letters that can be printed, found {name!r:.60}.")
    if task not in KNOWN:
        path = Path(task)
        try:
            return _open_path(path, name or _name_of(path), split)
        except OSError as error:  # a name too long, a folder that may not be read
            raise InputError(
                f"{task:.200}: expected a file or folder that can be read, found {error.strerror}."
            ) from None
    known = KNOWN[task]
    data = data or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if data is not None:
        folder = data / known.folder
        return _open_path(folder / known.pairs if known.pairs else folder, name or task, split)
    folder = _download(known)
    return _open_path(folder / known.files[0] if len(known.files) == 1 else folder, name or task, split)


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


def _name_of(path: Path) -> str:
    """A folder's name, or a file's without its endings."""
    name = Path(os.path.normpath(path.absolute())).name  # a link's own name
    if path.is_file():
        for ending in ENDINGS:
            name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return name or str(path)


def _open_path(path: Path, name: str, split: str | None) -> Task:
    if path.is_file():
        if split is not None:
            raise InputError(f"{path}: expected a folder where --split is given, found a file of sentence pairs.")
        return _sentence_pairs(path, name)
    corpus, queries, qrels = _jsonl_file(path, "corpus"), _jsonl_file(path, "queries"), _qrels(path, split)
    if not corpus or not queries or not qrels:
        raise InputError(_nothing_usable(path, split, {"corpus": corpus, "queries": queries, "judgements": qrels}))
    relevance = task_files.judgements(qrels)
    texts = task_files.texts_by_id(queries, lambda row: task_files.text_of(row, "text"))
    passages = task_files.texts_by_id(corpus, _passage)
    asked = {query: texts[query] for query in relevance if query in texts}
    if not asked or not passages:
        raise InputError(
            f"{path}: expected queries that {qrels.name} has judgements of, and passages; found {len(relevance)} "
            f"judged queries, {len(asked)} of them with a text, and {len(passages)} passages."
        )
    relevant = {passage for query in asked for passage, score in relevance[query].items() if score > 0}
    if relevant and not relevant & passages.keys():
        raise InputError(
            f"{path}: expected passages that {qrels.name} calls relevant, found none of {len(relevant)} in "
            f"{corpus.name}.\n    Compare the ids: corpus-id {min(relevant)!r:.60} there, "
            f"_id {next(iter(passages))!r:.60} here."
        )
    return Retrieval(name=name, corpus=passages, queries=asked, relevance=relevance)


def _nothing_usable(path: Path, split: str | None, files: Mapping[str, Path | None]) -> str:
    """The error for a path that is no task: which files are missing if some were found, else what is possible."""
    wanted = QRELS if split is None else f"qrels/{split}.tsv"
    missing = [what for what, file in files.items() if file is None]
    found = "none of these" if len(missing) == len(files) else f"no {', no '.join(missing)}"
    splits = sorted(file.stem for file in path.glob("qrels/*.tsv"))
    advice = f"\n    Splits there: {', '.join(splits)}." if splits and "judgements" in missing else ""
    return (
        f"{path}: expected a task ({', '.join(KNOWN)}), a folder with corpus.jsonl[.gz], queries.jsonl[.gz] and "
        f"{wanted}, or a file of sentence pairs; found {found}.{advice}"
    )


def _passage(row: task_files.Row) -> str:
    title, text = task_files.text_of(row, "title", optional=True), task_files.text_of(row, "text")
    return f"{title} {text}".strip()


def _qrels(folder: Path, split: str | None) -> Path | None:
    """The judgements of a split. Without a split: qrels.tsv, or the test split's, or the only ones there are."""
    if split is not None:
        names = [f"qrels/{split}.tsv", f"qrels.{split}.tsv", f"{split}.tsv"]
        return next((folder / name for name in names if (folder / name).is_file()), None)
    for name in ("qrels.tsv", "qrels/test.tsv"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("qrels/*.tsv"))
    if len(found) > 1:
        raise InputError(
            f"{folder}: expected one file of judgements, found {', '.join(path.stem for path in found)}.\n"
            "    Choose one with --split."
        )
    return found[0] if found else None


def _jsonl_file(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz") if path.is_file()), None)


def _sentence_pairs(path: Path, name: str) -> SentencePairs:
    rows = task_files.pairs(path)
    if not rows:
        raise InputError(f"{path}: expected pairs of sentences with their scores, found none.")
    left, right, gold = zip(*rows, strict=True)
    return SentencePairs(name=name, left=left, right=right, gold=gold)
