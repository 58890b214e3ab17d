"""Texts from files: what a file holds is known or asked for, never guessed, and errors name file, line and field."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from bge_onnx import InputError
from bge_onnx.cli.embed import FORMATS
from bge_onnx.files.text_bytes import FORMATS as ALL_FORMATS
from bge_onnx.files.text_files import Fields, LeftOut, read_examples, read_records

ROWS = [{"_id": "a1", "title": "T", "text": "one"}, {"_id": 7, "title": None, "text": 'two, "2"\nlines'}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
WANTED = [("T one", "a1"), ('two, "2"\nlines', "7")]
CSV = '_id,title,text\r\na1,T,one\r\n7,,"two, ""2""\nlines"\r\n'


def read(path, **fields):
    return [(record.text, record.id) for record in read_records(path, Fields(**fields))]


def refusal(path, **fields):
    with pytest.raises(InputError) as caught:
        read(path, **fields)
    return str(caught.value)


@pytest.mark.parametrize("name", ["x.jsonl", "x.JSONL", "x.ndjson", "x.json", "x", "x.JSONL.gz", "x.gz"])
def test_json_lines(tmp_path, name):
    """JSON lines are known by every usual ending in any case, and without one by their first line."""
    content = LINES.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(tmp_path / name) == WANTED


@pytest.mark.parametrize("name", ["x.json", "x"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list(tmp_path, name, indent):
    """A list in one line or many; its entries may be bare strings too."""
    (tmp_path / name).write_text(json.dumps([*ROWS, "bare"], indent=indent))
    assert read(tmp_path / name) == [*WANTED, ("bare", None)]


def test_csv_and_tsv(tmp_path):
    """A header names the columns; quotes hold commas and newlines in CSV, and are letters in TSV."""
    (tmp_path / "x.csv").write_text(CSV, newline="")
    assert read(tmp_path / "x.csv") == WANTED
    (tmp_path / "x.tsv").write_text('text\tid\n"one" two\t1\n')
    assert read(tmp_path / "x.tsv") == [('"one" two', "1")]


def test_parquet(tmp_path):
    """Parquet is known by its first bytes, whatever the name says."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([{**row, "_id": str(row["_id"])} for row in ROWS]), tmp_path / "x.data")
    assert read(tmp_path / "x.data") == WANTED
    assert "expected one column body, found _id, title, text" in refusal(tmp_path / "x.data", text="body")
    rows = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    parquet.write_table(pa.table({"text": rows}), tmp_path / "z.parquet")
    assert "z.parquet, row 0 or one of the next 1024: expected UTF-8, found invalid start byte." in refusal(
        tmp_path / "z.parquet"
    )
    (tmp_path / "y.parquet").write_bytes(b"PAR1 and no more")
    assert f"{tmp_path}/y.parquet: expected a Parquet file, found " in refusal(tmp_path / "y.parquet")


def test_zstd(tmp_path):
    """zstd is known by its first bytes."""
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "x.jsonl.zst").write_bytes(zstandard.compress(LINES.encode()))
    assert read(tmp_path / "x.jsonl.zst") == WANTED
    (tmp_path / "two.jsonl.zst").write_bytes(2 * zstandard.compress(LINES.encode()))
    assert read(tmp_path / "two.jsonl.zst") == 2 * WANTED


def test_zstd_that_is_cut_or_damaged(tmp_path):
    """Texts are never lost in silence: a frame that ends too early is an error, and a damaged one too."""
    zstandard = pytest.importorskip("zstandard")
    lines = "\n".join(hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(9000))
    whole = zstandard.compress(lines.encode())
    (tmp_path / "x.txt").write_bytes(whole)
    assert [text for text, _ in read(tmp_path / "x.txt")] == lines.split("\n")
    (tmp_path / "x.txt").write_bytes(whole[:-3000])
    assert "expected a compressed file that is whole, found it ended within a zstd frame." in refusal(
        tmp_path / "x.txt"
    )
    (tmp_path / "x.txt").write_bytes(whole[:4] + b"damaged" + whole[11:])
    assert "expected a compressed file that is whole, found zstd decompress" in refusal(tmp_path / "x.txt")


def test_a_cell_of_any_length(tmp_path):
    """Python's limit of 131,072 characters a cell is none of ours."""
    (tmp_path / "x.csv").write_text("text\n" + "w " * 100_000 + "\n")
    assert read(tmp_path / "x.csv") == [("w " * 100_000, None)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_encodings(tmp_path, encoding, name):
    """UTF-8 and UTF-16, with a byte order mark or without, give the same texts, and no text too many."""
    texts = ["abc 中文", "é", "last"]
    lines = texts if name == "x.txt" else [json.dumps(text, ensure_ascii=False) for text in texts]
    (tmp_path / name).write_bytes(("\n".join(lines) + "\n").encode(encoding))
    assert [text for text, _ in read(tmp_path / name)] == texts


@pytest.mark.parametrize("start", ["中 abc", "中文", "é"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_what_encoding_it_is_may_be_an_error(tmp_path, start, encoding):
    """Bytes of another encoding give the right texts or an error, never other texts."""
    texts = [start, "second line", "中文"]
    (tmp_path / "x.txt").write_bytes(("\n".join(texts) + "\n").encode(encoding))
    try:
        assert [text for text, _ in read(tmp_path / "x.txt")] == texts
    except InputError as error:
        assert "expected UTF-8, found " in str(error)  # noqa: PT017 - one or the other


def test_utf_16_that_is_cut(tmp_path):
    """Half a character at the end is an error that says where, and half a pair is one of its line."""
    (tmp_path / "x.txt").write_bytes("one\ntwo".encode("utf-16")[:-1])
    assert "x.txt, after line 1: expected utf-16, found truncated data." in refusal(tmp_path / "x.txt")
    (tmp_path / "x.txt").write_bytes("one\nt\ud800o\n".encode("utf-16", "surrogatepass"))
    assert "x.txt, line 2: expected utf-16, found half a pair at 1." in refusal(tmp_path / "x.txt")


def test_lines_of_text(tmp_path):
    """In a text file every line is a text but for blank ones, which are counted; places are those of the file."""
    (tmp_path / "x.txt").write_bytes(b"one\r\n\n three \n \t\n{ no JSON")
    left_out = LeftOut()
    records = list(read_records(tmp_path / "x.txt", left_out=left_out))
    assert [record.text for record in records] == ["one", " three ", "{ no JSON"]
    assert [record.place for record in records] == [f"{tmp_path}/x.txt, line {line}" for line in (1, 3, 5)]
    assert left_out.blank_lines == 2


def test_blank_lines_are_no_records(tmp_path):
    """Blank lines of JSON lines and CSV are left out; an empty text is a text."""
    (tmp_path / "x.jsonl").write_text('\n{"text": ""}\n  \n{"text": "b"}\n')
    assert [text for text, _ in read(tmp_path / "x.jsonl")] == ["", "b"]
    (tmp_path / "x.csv").write_text("text,n\n\na,1\n\n")
    assert [text for text, _ in read(tmp_path / "x.csv")] == ["a"]


@pytest.mark.parametrize(
    "content",
    ["[1] A footnote.\nmore\n", "{a} set\n", '"Quoted," she said.\n', "<!DOCTYPE html>\n", '<?xml version="1.0"?>\n'],
)
def test_what_may_be_text_or_json_is_asked_for(tmp_path, content):
    """A file without an ending that begins like JSON or markup and is none that we know is not guessed."""
    (tmp_path / "x").write_text(content)
    assert "Say what it holds: --format text, jsonl, json, csv, tsv, parquet." in refusal(tmp_path / "x")
    assert [text for text, _ in read(tmp_path / "x", format="text")] == content.splitlines()


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('"one"\n"two"\n', ["one", "two"]),
        ('[{"text": "one"},\n {"text": "two"}]\n', ["one", "two"]),
        ('\n\n{"text": "one"}\n', ["one"]),
        (json.dumps([{"text": "w " * 5000}] * 3), ["w " * 5000] * 3),
        (json.dumps({"text": "w " * 600_000}), ["w " * 600_000]),
        (json.dumps([{"text": "w " * 600_000}, "b"]), ["w " * 600_000, "b"]),
    ],
    ids=["strings", "list in lines", "blank first", "long line", "longer than is looked at", "list longer than that"],
)
def test_json_without_an_ending(tmp_path, content, texts):
    """JSON is known by its first line, however long that is, also where it comes from a pipe bit by bit."""
    (tmp_path / "x").write_text(content)
    assert [text for text, _ in read(tmp_path / "x")] == texts
    os.mkfifo(tmp_path / "pipe")

    def write():
        with (tmp_path / "pipe").open("w") as pipe:
            for part in (content[:3], content[3:9], content[9:]):
                pipe.write(part)
                pipe.flush()
                time.sleep(0.05)

    thread = threading.Thread(target=write)
    thread.start()
    assert [text for text, _ in read(tmp_path / "pipe")] == texts
    thread.join()


def test_json_that_is_called_text(tmp_path):
    """Records in a file that is named .txt are never embedded as they are, unless that is asked for."""
    (tmp_path / "x.txt").write_text(LINES)
    assert "expected an ending that says JSON, found JSON in the first line" in refusal(tmp_path / "x.txt")
    assert read(tmp_path / "x.txt", format="jsonl") == WANTED
    (tmp_path / "y.txt").write_text('[1]\n"quoted"\n')
    assert [text for text, _ in read(tmp_path / "y.txt")] == ["[1]", '"quoted"']


def test_fields_are_chosen(tmp_path):
    """The text's, the title's and the id's field; without a title field texts stand alone."""
    (tmp_path / "x.jsonl").write_text('{"body": "b", "head": "h", "key": 3, "id": "i", "title": "t"}\n')
    assert read(tmp_path / "x.jsonl", text="body", title="head", id="key") == [("h b", "3")]
    assert read(tmp_path / "x.jsonl", text="body", title="") == [("b", "i")]
    assert read(tmp_path / "x.jsonl", text="body", id="") == [("t b", None)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", '"a"\n{"body": "b"}\n', "line 2: expected a text in the field text, found the fields body."),
        ("x.jsonl", '{"text": 7}\n', "x.jsonl, line 1: expected a text in the field text, found 7."),
        ("x.jsonl", '{"text": "\\ud800"}\n', "line 1: expected a text in the field text, found a lone surrogate"),
        ("x.jsonl", '{"title": 1, "text": ""}\n', "x.jsonl, line 1: expected a text in the field title, found 1."),
        ("x.jsonl", "[" * 100_000, "x.jsonl, line 1: expected JSON, found JSON that is nested too deep."),
        ("x.jsonl", "[1]\n", 'x.jsonl, line 1: expected {"text": "…"}, found [1]'),
        ("x.json", '{"texts": 1\n}', "x.json: expected a JSON list, found {'texts': 1}."),
        ("x.json", "[1, ", "x.json: expected a JSON list of texts or records, found no JSON: Expecting value"),
        ("x.csv", "body,n\na,1\n", "x.csv: expected one column text, found body, n.\n    Name the column"),
        ("x.csv", "text,n\na,1\nb\n", "x.csv, line 3: expected 2 cells, as the header has, found 1."),
        ("x.csv", 'text,n\n"a"x,1\n', "x.csv, line 2: expected a row of cells, found that ',' expected after '\"'."),
        ("x.csv", "text,text\na,b\n", "x.csv: expected one column text, found text, text."),
        ("x.jsonl", '{"_id": {"$oid": "5"}, "text": "a"}', "line 1: expected a string or a number as id in"),
        ("x.txt", "one\ntw\0o\n", "x.txt, line 2: expected UTF-8, found a zero byte"),
        ("x.txt.gz", "no gzip \ufffd", None),
    ],
)  # fmt: skip
def test_a_fault_is_named(tmp_path, name, content, said):
    """Every fault is one error with the file, the line and the field; gzip is known by its bytes, not by its name."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    if said is None:
        assert [text for text, _ in read(tmp_path / name)] == [content]
    else:
        assert said in refusal(tmp_path / name)
        assert refusal(tmp_path / name).startswith(f"{tmp_path / name}")


def test_a_line_far_down_is_named(tmp_path):
    """The number is the file's, not that of a window of a stream."""
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' * 4500 + '{"text": null}\n')
    assert "x.jsonl, line 4501: expected a text in the field text" in refusal(tmp_path / "x.jsonl")


def test_a_compressed_file_that_is_cut(tmp_path):
    """A file that ends too early is an error, after the texts that it holds."""
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(LINES.encode())[:-12])
    assert "expected a compressed file that is whole" in refusal(tmp_path / "x.jsonl.gz")


def test_faults_may_be_noted(tmp_path):
    """Whoever wants to skip is told of each fault, and gets the other records."""
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n{}\nno\n"\xff"\n{"text": "d"}\n')
    left_out = LeftOut(stop=False)
    found = [record.text for record in read_records(tmp_path / "x.jsonl", left_out=left_out)]
    assert found == ["a", "d"]
    assert [str(e).split(":")[0] for e in left_out.shown] == [f"{tmp_path}/x.jsonl, line {line}" for line in (2, 3, 4)]


def test_of_many_faults_some_are_kept(tmp_path):
    """All are counted, the first 20 are kept."""
    (tmp_path / "x.jsonl").write_text("{}\n" * 1000)
    left_out = LeftOut(stop=False)
    assert list(read_records(tmp_path / "x.jsonl", left_out=left_out)) == []
    assert (left_out.errors, len(left_out.shown)) == (1000, 20)


def test_a_pipe_is_read_as_it_comes(tmp_path):
    """The first records of a pipe are given while more are being written."""
    os.mkfifo(tmp_path / "x")
    go_on = threading.Event()

    def write():
        with (tmp_path / "x").open("w") as pipe:
            pipe.write('{"text": "first"}\n')
            pipe.flush()
            go_on.wait(20)
            pipe.write('{"text": "second"}\n')

    thread = threading.Thread(target=write)
    thread.start()
    records = read_records(tmp_path / "x")
    assert next(records).text == "first"
    go_on.set()
    assert [record.text for record in records] == ["second"]
    thread.join()


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_examples_may_begin_with_a_mark(tmp_path, name):
    """A byte order mark in front of few-shot examples is no error."""
    rows = [{"query": "q", "response": "r"}]
    content = json.dumps(rows) if name == "x.json" else json.dumps(rows[0])
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert read_examples(tmp_path / name) == rows


def test_stdin_may_be_closed():
    """Without a standard input there is one clear error."""
    code = (
        "import sys; sys.stdin = None; from pathlib import Path; from bge_onnx.files.text_files import read_records\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "list(read_records(Path('-')))"], capture_output=True, text=True, check=False
    )
    assert "InputError: stdin: expected texts, found it closed." in done.stderr


def test_formats_are_named_once():
    """--help names every format."""
    assert FORMATS == ALL_FORMATS
