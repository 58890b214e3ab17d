"""Files of evaluation data: rows of a table or of JSON lines, each with where it stands, and what is wrong with it."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bge_onnx.errors import InputError
from bge_onnx.files.json_file import parse_json, shortened

T = TypeVar("T")

PAIR_COLUMNS = ("sentence1", "sentence2", "score")
JUDGEMENT_COLUMNS = ("query-id", "corpus-id", "score")
JUDGEMENT_ORDERS = {3: (0, 1, 2), 4: (0, 2, 3)}
"""Where query, passage and score stand without a header: BEIR's three columns, TREC's four with an iteration."""

LARGEST_WHOLE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a file with its number, counted from 1."""

    path: Path
    number: int
    value: Any

    def wrong(self, wanted: str, found: object) -> InputError:
        """The error that names this line."""
        return InputError(f"{self.path}, line {self.number}: expected {wanted}, found {shortened(str(found), 80)}.")


def text_in(path: Path) -> str:
    """The text of a file, which may be compressed with gzip. Raises InputError: it cannot be read, or is not UTF-8."""
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            content = file.read()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        raise InputError(f"{path}, line {number}: expected UTF-8, found byte 0x{byte:02x}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: expected a file that can be read, found {shortened(str(error))}.") from None


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers; blank ones are left out. Raises InputError."""
    for number, line in enumerate(io.StringIO(text_in(path)), 1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def json_rows(path: Path) -> Iterator[Row]:
    """The JSON objects of a file, one a line. Raises InputError: a line is none."""
    for number, line in lines(path):
        try:
            value = parse_json(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: expected a JSON object, found {error}.") from None
        row = Row(path, number, value)
        if not isinstance(value, dict):
            raise row.wrong("a JSON object", line)
        yield row


def text_of(row: Row, key: str, *, optional: bool = False) -> str:
    """A text of a JSON object; empty where it is missing or null and `optional`. Raises InputError: it is no text."""
    value = row.value.get(key)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise row.wrong(f"a text as {key}", "nothing" if value is None else repr(value))
    _check_characters(row, key, value)
    return value


def _check_characters(row: Row, key: str, text: str) -> None:
    """Raise InputError: half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise row.wrong(f"whole characters in {key}", ascii(text))


def texts_by_id(path: Path, text: Callable[[Row], str]) -> dict[str, str]:
    """`text` of every JSON object by its `_id`. Raises InputError: no id, or one that occurs twice."""
    found: dict[str, str] = {}
    for row in json_rows(path):
        given = row.value.get("_id")
        if not isinstance(given, str | int) or isinstance(given, bool) or given == "":
            raise row.wrong("a text as _id", "nothing" if given is None else repr(given))
        name = str(given)
        _check_characters(row, "_id", name)
        if name in found:
            raise row.wrong("an _id that occurs once", repr(name))
        found[name] = text(row)
    return found


def number_of(row: Row, name: str, value: Any, *, whole: bool) -> float:
    """A number, as text or not. Raises InputError: it is none, or no whole one of 32 bits."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool) and "_" not in str(value):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number) or (whole and (number != int(number) or abs(number) > LARGEST_WHOLE)):
        raise row.wrong(f"a {'whole ' * whole}number as {name}", "nothing" if value is None else repr(value))
    return number


def table(path: Path, delimiter: str) -> Iterator[Row]:
    """The rows of a CSV or TSV file as lists of cells. In CSV a cell in quotes may hold newlines. Raises InputError."""
    text = io.StringIO(text_in(path), newline="")
    plain = delimiter == "\t"  # a quote is a letter like any other there
    reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL, strict=True)
    number = 1
    try:
        for cells in reader:
            if cells:
                yield Row(path, number, cells)
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {number}: expected a row of cells, found that {error}.") from None


def pairs(path: Path) -> list[tuple[str, str, float]]:
    """Two sentences and their gold score of every row: CSV or TSV, with a header or without, or JSON lines.

    Raises InputError naming the line: another form.
    """
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if plain.suffix.lower() not in (".csv", ".tsv"):
        return [
            (
                text_of(row, "sentence1"),
                text_of(row, "sentence2"),
                number_of(row, "score", row.value.get("score"), whole=False),
            )
            for row in json_rows(path)
        ]
    rows = list(table(path, "\t" if plain.suffix.lower() == ".tsv" else ","))
    order, width = _header(rows[0].value, PAIR_COLUMNS) if rows else (None, 0)
    if order is None:
        order, width = (0, 1, 2), len(PAIR_COLUMNS)
    else:
        rows = rows[1:]
    found = []
    for row in rows:
        if len(row.value) != width:
            raise row.wrong(f"{width} cells, with {', '.join(PAIR_COLUMNS)}", row.value)
        left, right, gold = (row.value[place] for place in order)
        found.append((left, right, number_of(row, "score", gold, whole=False)))
    return found


def _header(cells: Sequence[str], names: Sequence[str]) -> tuple[Sequence[int] | None, int]:
    """Where the columns of these names stand, None where the row is no header; and how many cells a row has."""
    found = [cell.strip().lower().replace("_", "-") for cell in cells]
    return ([found.index(name) for name in names] if set(names) <= set(found) else None), len(cells)


def judgements(path: Path) -> dict[str, dict[str, int]]:
    """The relevance of passages to queries, 0 too: BEIR's three columns, with a header or without, or TREC's four.

    Raises InputError naming the line: another form, a blank id, a second judgement that contradicts the first.
    """
    relevance: dict[str, dict[str, int]] = {}
    order, width = None, 0
    for index, (number, line) in enumerate(lines(path)):
        cells = [cell.strip() for cell in (line.split("\t") if "\t" in line else line.split())]
        row = Row(path, number, cells)
        if index == 0:
            order, width = _header(cells, JUDGEMENT_COLUMNS)
            if order is not None:
                continue
        query, passage, score = _judgement(row, order or JUDGEMENT_ORDERS.get(len(cells)), width if order else None)
        known = relevance.setdefault(query, {})
        if known.setdefault(passage, score) != score:
            raise row.wrong(f"one score of {passage!r} for {query!r}", f"{known[passage]} before and {score} here")
    return relevance


def _judgement(row: Row, order: Sequence[int] | None, width: int | None) -> tuple[str, str, int]:
    """Query, passage and score of a row. `width` is the header's. Raises InputError."""
    if order is None or (width is not None and len(row.value) != width):
        raise row.wrong("query-id, corpus-id and score, or TREC's four columns", " ".join(row.value))
    query, passage, score = (row.value[place] for place in order)
    for name, given in (("query-id", query), ("corpus-id", passage)):
        if not given:
            raise row.wrong(f"a text as {name}", "nothing")
    return query, passage, int(number_of(row, "score", score, whole=True))
