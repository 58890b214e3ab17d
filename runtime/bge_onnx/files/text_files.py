"""Texts from files: plain lines, JSON, CSV and Parquet, compressed or not, each with where it stands."""

from __future__ import annotations

import contextlib
import csv
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bge_onnx.errors import InputError, InstallationError
from bge_onnx.files.compressed import decompressed, is_on_disk, opened
from bge_onnx.files.json_file import parse_json, read_json, shortened
from bge_onnx.files.text_bytes import Format, encoding_of, format_of, lines_of, look

IDS = ("_id", "id")
"""Fields that are taken for the id where no field is named."""

ERRORS_SHOWN = 20

MOST_CELL_CHARS = 1 << 27
"""Of a cell in CSV; Python's own limit is 131,072."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Which fields of a record are read, and how the file is to be taken.

    format  None for what the file's ending and its first bytes say
    text    the field of the text
    title   stands in front of the text with a blank between, where a record has it; empty for none
    id      None takes `_id` or `id` where a record has one; empty for none
    """

    format: Format | None = None
    text: str = "text"
    title: str = "title"
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A text, its id if it has one, and where it stands: for errors."""

    text: str
    id: str | None
    place: str


@dataclass(slots=True)
class LeftOut:
    """What was left out of a file: blank lines, and records with errors if reading goes on (the first few are kept).

    stop  the first error ends the reading
    """

    stop: bool = True
    errors: int = 0
    shown: list[InputError] = field(default_factory=list)
    blank_lines: int = 0

    def fault(self, error: InputError) -> None:
        """Note an error, or raise it."""
        if self.stop:
            raise error
        self.errors += 1
        if len(self.shown) < ERRORS_SHOWN:
            self.shown.append(error)


def read_records(path: Path, fields: Fields | None = None, left_out: LeftOut | None = None) -> Iterator[Record]:
    """The texts of a file, one by one; `-` is stdin. Files of any size but for `json` are read bit by bit.

    Blank lines are no texts, whatever the format; an empty text of a record is one.
    Raises InputError: no such file, a format that is not clear, or (unless `left_out` says otherwise) a record without
    a text, with its file, line and field. InstallationError: the package that reads Parquet or zstd is missing.
    """
    with contextlib.ExitStack() as stack:
        name = "stdin" if str(path) == "-" else str(path)
        yield from records_in(opened(path, name, stack), path, fields, left_out)


def records_in(
    raw: io.BufferedReader, path: Path, fields: Fields | None = None, left_out: LeftOut | None = None
) -> Iterator[Record]:
    """The texts in the bytes of the file `path`, which may be compressed. Raises like `read_records`."""
    name = "stdin" if str(path) == "-" else str(path)
    source = _Source(name, fields or Fields(), left_out or LeftOut())
    compressed = False
    try:
        file, compressed = decompressed(raw, name)
        start, file = look(file)
        kind = source.fields.format or format_of(path, start, name)
        if kind == "parquet":
            yield from _parquet(file, source)
            return
        by_line = kind in ("text", "jsonl")  # in other formats, a missing line would garble the rest
        lines = lines_of(file, encoding_of(start), name, source.left_out.fault if by_line else LeftOut().fault)
        yield from READERS[kind](lines, source)
    except (OSError, EOFError, zlib.error) as error:
        what = "a compressed file that is whole" if compressed else "a file that can be read"
        raise InputError(f"{name}: expected {what}, found {shortened(str(error))}.") from None


def read_examples(path: Path) -> list[Any]:
    """Few-shot examples of a file: a JSON list of objects with instruct, query and response, or one a line (.jsonl).

    Raises InputError: no such file, no JSON, something else than a list.
    """
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            text = path.read_bytes().decode("utf-8-sig")
            return [parse_json(line) for line in text.split("\n") if line.strip()]
        found = read_json(path)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file of examples, found none.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, found {shortened(str(error))}.") from None
    if not isinstance(found, list):
        raise InputError(f"{path}: expected a JSON list of examples, found {shortened(repr(found), 60)}.")
    return found


@dataclass(frozen=True, slots=True)
class _Source:
    """What readers need to make records: the file's name, the fields, and what was left out."""

    name: str
    fields: Fields
    left_out: LeftOut

    def record(self, value: Any, place: str) -> Iterator[Record]:
        """The record of a JSON object, a row or a bare string; none where the fault was noted."""
        try:
            yield self._record(value, f"{self.name}, {place}")
        except InputError as error:
            self.left_out.fault(error)

    def _record(self, value: Any, place: str) -> Record:
        fields = self.fields
        if isinstance(value, str):
            value = {fields.text: value}
        if not isinstance(value, dict):
            raise InputError(f'{place}: expected {{"{fields.text}": "…"}}, found {shortened(repr(value), 60)}')
        text = _text(value.get(fields.text), place, fields.text, value)
        title = value.get(fields.title) if fields.title else None
        if title is not None and title != "":
            text = f"{_text(title, place, fields.title, value)} {text}".strip()
        return Record(text, self._id(value, place), place)

    def _id(self, value: dict[str, Any], place: str) -> str | None:
        names = IDS if self.fields.id is None else (self.fields.id,) if self.fields.id else ()
        name = next((name for name in names if value.get(name) is not None), None)
        if name is None and self.fields.id:
            raise InputError(f"{place}: expected an id in the field {self.fields.id}, found {_keys(value)}.")
        if name is None:
            return None
        if isinstance(value[name], bool | dict | list | bytes):
            raise InputError(
                f"{place}: expected a string or a number as id in the field {name}, found "
                f"{shortened(repr(value[name]), 60)}.\n    Name another field: --id-field NAME, or '' for none."
            )
        return str(value[name])


Lines = Iterable[tuple[int, str]]
"""Lines with their numbers."""


def _text(value: Any, place: str, field: str, record: dict[str, Any]) -> str:
    if not isinstance(value, str):
        found = _keys(record) if value is None else shortened(repr(value), 60)
        raise InputError(f"{place}: expected a text in the field {field}, found {found}.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{place}: expected a text in the field {field}, found a lone surrogate (half a character) at position "
                f"{error.start}; was the text cut or misdecoded?"
            ) from None
    return value


def _keys(record: dict[str, Any]) -> str:
    return f"the fields {shortened(', '.join(map(str, record)), 80) or 'of none'}"


def _text_lines(lines: Lines, source: _Source) -> Iterator[Record]:
    for number, line in lines:
        if not line.strip():
            source.left_out.blank_lines += 1
            continue
        yield Record(line.rstrip("\r\n"), None, f"{source.name}, line {number}")


def _json_lines(lines: Lines, source: _Source) -> Iterator[Record]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            source.left_out.fault(InputError(f"{source.name}, line {number}: expected JSON, found {error}."))
            continue
        yield from source.record(value, f"line {number}")


def _json_list(lines: Lines, source: _Source) -> Iterator[Record]:
    try:
        values = parse_json("".join(line for _, line in lines))
    except ValueError as error:
        raise InputError(f"{source.name}: expected a JSON list of texts or records, found {error}.") from None
    if not isinstance(values, list):
        raise InputError(f"{source.name}: expected a JSON list, found {shortened(repr(values), 60)}.")
    for index, value in enumerate(values):
        yield from source.record(value, f"entry {index}")


def _csv_rows(lines: Lines, source: _Source, *, tabs: bool = False) -> Iterator[Record]:
    csv.field_size_limit(MOST_CELL_CHARS)
    reader = csv.reader(
        (line for _, line in lines),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,  # a quote is a letter like any other in TSV
        strict=True,
    )
    header: list[str] | None = None
    number = 1
    try:
        for cells in reader:
            if cells and header is None:
                header = cells
                _require_column(source, header)
            elif cells and header is not None:
                if len(cells) == len(header):
                    yield from source.record(dict(zip(header, cells, strict=True)), f"line {number}")
                else:
                    wanted = f"{len(header)} cells, as the header has"
                    found = f"{source.name}, line {number}: expected {wanted}, found {len(cells)}."
                    source.left_out.fault(InputError(found))
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{source.name}, line {number}: expected a row of cells, found that {error}.") from None


def _tsv_rows(lines: Lines, source: _Source) -> Iterator[Record]:
    return _csv_rows(lines, source, tabs=True)


def _require_column(source: _Source, columns: list[str]) -> None:
    fields = source.fields
    twice = [name for name in (fields.text, fields.title, fields.id, *IDS) if name and columns.count(name) > 1]
    if fields.text not in columns or twice:
        wanted = f"one column {(twice or [fields.text])[0]}"
        raise InputError(
            f"{source.name}: expected {wanted}, found {shortened(', '.join(columns), 80)}.\n"
            "    Name the column of the texts: --text-field NAME."
        )


def _parquet(file: io.BufferedReader, source: _Source) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException  # noqa: PLC0415 - an extra
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415
    except ImportError:
        raise InstallationError(
            f"{source.name}: expected the package pyarrow, which reads Parquet, found none.\n"
            "    Install it: pip install 'bge-onnx[files]'"
        ) from None
    fields, row = source.fields, 0
    try:
        table = ParquetFile(file if is_on_disk(file) else io.BytesIO(file.read()))
        columns = list(table.schema_arrow.names)
        _require_column(source, columns)
        wanted = [column for column in columns if column in (fields.text, fields.title, fields.id, *IDS)]
        for batch in table.iter_batches(batch_size=1024, columns=wanted):
            for value in batch.to_pylist():
                yield from source.record(value, f"row {row}")
                row += 1
    except ArrowException as error:
        raise InputError(f"{source.name}: expected a Parquet file, found {shortened(str(error))}.") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source.name}, row {row} or one of the next 1024: expected UTF-8, found {error.reason}."
        ) from None


READERS: dict[Format, Callable[[Lines, _Source], Iterator[Record]]] = {
    "text": _text_lines,
    "jsonl": _json_lines,
    "json": _json_list,
    "csv": _csv_rows,
    "tsv": _tsv_rows,
}
