"""Files of evaluation data: every form that is read, and what is said of a file that is wrong."""

from __future__ import annotations

import gzip
import json

import pytest

from bge_export.evaluate.tasks import KNOWN, open_task
from bge_onnx import InputError


def write_beir(folder, compressed):
    rows = '{"_id": "d1", "title": "T", "text": "abc"}\n{"_id": "d2", "text": "xyz"}\n'
    folder.mkdir()
    if compressed:
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
        (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    else:
        (folder / "corpus.jsonl").write_text(rows)
        (folder / "qrels").mkdir()
        (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "ab"}\n{"_id": "q2", "text": "unjudged"}\n')


@pytest.mark.parametrize("compressed", [True, False])
def test_beir_folders(tmp_path, compressed):
    """Both usual layouts are read; titles stand before texts; queries without judgements are left out."""
    write_beir(tmp_path / "set", compressed)
    task = open_task(str(tmp_path / "set"), None)
    assert task.corpus == {"d1": "T abc", "d2": "xyz"}
    assert task.queries == {"q1": "ab"}
    assert task.relevance == {"q1": {"d1": 2, "d2": 0}}


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl", "pairs.jsonl.gz"])
def test_sentence_pair_files(tmp_path, name):
    """CSV without a header and JSON lines, compressed or not, are read."""
    row = json.dumps({"sentence1": "a", "sentence2": "b", "score": 2.5}).encode()
    text = b"a,b,2.5\n" if name.endswith(".csv") else row
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    task = open_task(str(tmp_path / name), None)
    assert (task.left, task.right, task.gold) == (("a",), ("b",), (2.5,))


def test_an_unknown_task_is_refused(tmp_path):
    """A task that is neither known nor a folder says what is possible."""
    with pytest.raises(InputError, match=r"nothere: expected a task \(stsb, scifact\), a folder with corpus.jsonl"):
        open_task("nothere", None)


JSON_PAIRS = """{"sentence1": "a", "sentence2": "b", "score": "1"}
{"sentence1": "c", "sentence2": "d", "score": 2}
"""


def refusal(path, **options):
    """What `open_task` says of a file or a folder."""
    with pytest.raises(InputError) as caught:
        open_task(str(path), None, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.csv", "sentence1,sentence2,score\na,b,1\nc,d,2\n"),
        ("pairs.csv", "\ufeffscore,sentence2,sentence1\r\n1,b,a\r\n2,d,c\r\n"),
        ("pairs.CSV", "a,b,1\n\nc,d,2\n"),
        ("pairs.tsv", "a\tb\t1\nc\td\t2\n"),
        ("pairs.tsv", "score\tsentence1\tsentence2\n1.0\ta\tb\n2.0\tc\td\n"),
        ("pairs.csv", "Sentence1,Genre,Score,Sentence2\na,news,1,b\nc,news,2,d\n"),
        ("pairs.jsonl", JSON_PAIRS),
    ],
)
def test_forms_of_sentence_pairs(tmp_path, name, content):
    """CSV and TSV with a header in any order or without, a byte order mark, blank lines, scores as text."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    task = open_task(str(tmp_path / name), None)
    assert (task.left, task.right, task.gold) == (("a", "c"), ("b", "d"), (1, 2))


def test_quotes_of_csv(tmp_path):
    """A cell in quotes holds commas and newlines."""
    (tmp_path / "pairs.csv").write_text('"a, ""b""\nc",d,1\ne,f,2\n')
    assert open_task(str(tmp_path / "pairs.csv"), None).left == ('a, "b"\nc', "e")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pairs.csv", b"", "pairs.csv: expected pairs of sentences with their scores, found none."),
        (
            "pairs.csv",
            b"a,b\n",
            "pairs.csv, line 1: expected 3 cells, with sentence1, sentence2, score, found ['a', 'b'].",
        ),
        (
            "pairs.csv",
            b"a, 5, 3, 2.5\n",
            "pairs.csv, line 1: expected 3 cells, with sentence1, sentence2, score, found",
        ),
        ("pairs.csv", b"sentence1,sentence2,score\na,5,3,2\n", "pairs.csv, line 2: expected 3 cells, with sentence1"),
        ("pairs.csv", b'a,b,1\nc,d,"2\n', "pairs.csv, line 2: expected a row of cells, found that unexpected end"),
        ("pairs.csv", b'a,"b" c,1\n', "pairs.csv, line 1: expected a row of cells, found that ',' expected after"),
        ("pairs.csv", b"a,b,1_0\n", "pairs.csv, line 1: expected a number as score, found '1_0'."),
        (
            "pairs.jsonl",
            b'{"sentence1": "a", "sentence2": "b", "score": true}',
            "pairs.jsonl, line 1: expected a number as score, found True.",
        ),
        (
            "pairs.jsonl",
            b'{"sentence1": "a", "sentence2": "\\ud800", "score": 1}',
            "pairs.jsonl, line 1: expected whole characters in sentence2, found '\\ud800'.",
        ),
        ("pairs.csv", b"a,b,1\n\nc,d,high\n", "pairs.csv, line 3: expected a number as score, found 'high'."),
        ("pairs.csv", b"a,b,nan\n", "pairs.csv, line 1: expected a number as score, found 'nan'."),
        ("pairs.csv", b"a,\xff,1\n", "pairs.csv, line 1: expected UTF-8, found byte 0xff."),
        ("pairs.jsonl", b"[1]\n", "pairs.jsonl, line 1: expected a JSON object, found [1]."),
        ("pairs.jsonl", b"\n{a}\n", "pairs.jsonl, line 2: expected a JSON object, found no JSON: Expecting property"),
        ("pairs.jsonl", b"[" * 100_000, "pairs.jsonl, line 1: expected a JSON object, found JSON that is nested too"),
        ("pairs.jsonl", b'{"sentence1": null}', "pairs.jsonl, line 1: expected a text as sentence1, found nothing."),
        ("pairs.jsonl.gz", b"no gzip", "pairs.jsonl.gz: expected a file that can be read, found Not a gzipped file"),
    ],
)
def test_a_broken_file_of_pairs_is_refused(tmp_path, name, content, said):
    """Every fault is one error with the file, the line and the field."""
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path}/{said}" in refusal(tmp_path / name)


def beir(folder, **files):
    """A folder in BEIR's form; the files that are not given are sound."""
    sound = {
        "corpus.jsonl": '{"_id": "d1", "title": null, "text": "abc"}\n{"_id": 2, "text": "xyz"}\n',
        "queries.jsonl": '{"_id": "q1", "text": "ab"}\n{"_id": "q2", "text": "xy"}\n',
        "qrels.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
    }
    for name, content in {**sound, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t2.0\nq2\t2\t0\n",
        "q1\td1\t2\nq2\t2\t0\n",
        "q1 0 d1 2\nq2 0 2 0\n",
        "\ufeffq1\t0\td1\t2\r\nq2\tQ0\t2\t0\r\n",
        "corpus_id\tquery_id\tscore\nd1\tq1\t2\n2\tq2\t0\n",
        "query-id\titeration\tcorpus-id\tscore\nq1\t0\td1\t2\nq2\t0\t2\t0\n",
        "q1\td1\t2\nq2\t2\t0\nq1\td1\t2\n",
    ],
)
def test_forms_of_judgements(tmp_path, content):
    """BEIR's columns with a header or without, TREC's four, 2.0 for 2, ids that are numbers, null for no title."""
    task = open_task(str(beir(tmp_path / "set", **{"qrels.tsv": content})), None)
    assert task.relevance == {"q1": {"d1": 2}, "q2": {"2": 0}}
    assert task.corpus == {"d1": "abc", "2": "xyz"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("qrels.tsv", "q1\td1\t0.5\n", "qrels.tsv, line 1: expected a whole number as score, found '0.5'."),
        ("qrels.tsv", "q1\td1\n", "qrels.tsv, line 1: expected query-id, corpus-id and score, or TREC's four columns"),
        ("qrels.tsv", "q1\td1\t1e30\n", "qrels.tsv, line 1: expected a whole number as score, found '1e30'."),
        ("qrels.tsv", "q1\t\t1\n", "qrels.tsv, line 1: expected a text as corpus-id, found nothing."),
        (
            "qrels.tsv",
            "q1\td1\t1\nq1\td1\t0\n",
            "qrels.tsv, line 2: expected one score of 'd1' for 'q1', found 1 before and 0 here.",
        ),
        (
            "qrels.tsv",
            "q1\tD1\t1\n",
            "relevant, found none of 1 in corpus.jsonl.\n    Compare the ids: corpus-id 'D1' there, _id 'd1' here.",
        ),
        ("corpus.jsonl", None, "or a file of sentence pairs; found no corpus."),
        ("corpus.jsonl", '{"_id": "", "text": "a"}\n', "corpus.jsonl, line 1: expected a text as _id, found ''."),
        (
            "corpus.jsonl",
            '{"_id": "d", "text": "\\ud800"}\n',
            "corpus.jsonl, line 1: expected whole characters in text",
        ),
        ("qrels.tsv", "", ": expected queries that qrels.tsv has judgements of, and passages; found 0 judged queries"),
        ("corpus.jsonl", '{"text": "a"}\n', "corpus.jsonl, line 1: expected a text as _id, found nothing."),
        (
            "corpus.jsonl",
            '{"_id": "d", "text": null}\n',
            "corpus.jsonl, line 1: expected a text as text, found nothing.",
        ),
        ("corpus.jsonl", '{"_id": "d", "text": "a"}\n' * 2, "corpus.jsonl, line 2: expected an _id that occurs once"),
        ("queries.jsonl", '{"_id": "q1", "text": 7}\n', "queries.jsonl, line 1: expected a text as text, found 7."),
    ],
)
def test_a_broken_folder_is_refused(tmp_path, name, content, said):
    """Every fault of a folder in BEIR's form is one error with the file, the line and the field."""
    assert said in refusal(beir(tmp_path / "set", **{name: content}))


def test_a_split_is_chosen(tmp_path):
    """--split names the judgements; a folder that has one split needs none."""
    folder = beir(tmp_path / "set", **{"qrels.tsv": None, "qrels/dev.tsv": "q2\td1\t1\n"})
    assert open_task(str(folder), None).relevance == {"q2": {"d1": 1}}
    beir(folder, **{"qrels.tsv": None, "qrels/train.tsv": "q1\td1\t1\n"})
    assert "expected one file of judgements, found dev, train.\n    Choose one with --split." in refusal(folder)
    assert open_task(str(folder), None, split="train").relevance == {"q1": {"d1": 1}}
    said = refusal(folder, split="test")
    assert "qrels/test.tsv, or a file of sentence pairs; found no judgements.\n    Splits there: dev, train." in said


def test_a_split_of_sentence_pairs_is_refused(tmp_path, data):
    """A file of pairs is one split: another that is asked for is never scored in its place."""
    (tmp_path / "pairs.csv").write_text("a,b,1\n")
    wanted = "expected a folder where --split is given, found a file of sentence pairs."
    assert wanted in refusal(tmp_path / "pairs.csv", split="dev")
    with pytest.raises(InputError, match="stsb-en-test.csv: " + wanted):
        open_task("stsb", data, split="dev")


def test_a_name_is_chosen(tmp_path, monkeypatch):
    """A task is called after its folder or file without endings; --name tells two folders with one name apart."""
    assert open_task(str(beir(tmp_path / "de")), None).name == "de"
    assert open_task(str(tmp_path / "de"), None, name="germanquad").name == "germanquad"
    assert open_task(str(beir(tmp_path / "set-v1.5")), None).name == "set-v1.5"
    (tmp_path / "my.pairs.CSV.gz").write_bytes(gzip.compress(b"a,b,1\n"))
    assert open_task(str(tmp_path / "my.pairs.CSV.gz"), None).name == "my.pairs"
    monkeypatch.chdir(tmp_path / "de/")
    assert open_task(".", None).name == "de"


@pytest.mark.parametrize("name", ["", " ", "a\nb"])
def test_a_name_that_cannot_be_printed_is_refused(tmp_path, name):
    """A report's name is a line of `bge info`."""
    beir(tmp_path / "de")
    assert refusal(tmp_path / "de", name=name) == f"name: expected letters that can be printed, found {name!r}."


def test_a_path_too_long_is_refused():
    """What the system says of a path is an error of ours."""
    assert "expected a file or folder that can be read, found File name too long." in refusal("a" * 5000)


def test_known_tasks_read_the_variable(data, monkeypatch):
    """BGE_EVAL_DATA stands in for --data."""
    monkeypatch.setenv("BGE_EVAL_DATA", str(data))
    assert len(open_task("stsb", None).gold) == 1379
    scifact = open_task("scifact", None)
    assert (len(scifact.corpus), len(scifact.queries)) == (5183, 300)
    assert set(KNOWN) == {"stsb", "scifact"}
