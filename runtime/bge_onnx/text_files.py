"""Texts from files: plain lines, JSON, CSV and Parquet, compressed or not, each with where it stands."""

from __future__ import annotations

import contextlib
import csv
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_onnx.errors import InputError, InstallationError
from bge_onnx.json_file import parse_json, read_json, shortened
from bge_onnx.text_bytes import Format, format_of, lines_of, opened

IDS = ("_id", "id")
"""Fields that are taken for the id where no field is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Which fields of a record are read, and how the file is to be taken.

    format  None for what the file's ending and its first bytes say
    text    the field of the text
    title   stands in front of the text with a blank between, where a record has it; empty for none
    id      None takes `_id` or `id` where a record has one
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


Fault = Callable[[InputError], None]
"""Is told of a record that cannot be read; raises the error, or notes it and returns."""


def stop(error: InputError) -> None:
    """A Fault that ends with the first error."""
    raise error


def read_records(path: Path, fields: Fields | None = None, fault: Fault = stop) -> Iterator[Record]:
    """The texts of a file, one by one; `-` is stdin. Files of any size but for `json` are read bit by bit.

    In a text file every line is a text, an empty one too; blank lines of JSON lines and CSV are no records.
    Raises InputError: no such file, a form that is not clear, and by `stop` the first record without a text, with the
    file, line and field. InstallationError: Parquet or zstd without the package that reads it.
    """
    fields = fields or Fields()
    name = "stdin" if str(path) == "-" else str(path)
    with contextlib.ExitStack() as stack:
        file, compressed = opened(path, name, stack)
        try:
            kind = fields.format or format_of(path, file, name)
            if kind == "parquet":
                yield from _parquet(file, name, fields, fault)
            else:
                yield from READERS[kind](lines_of(file, name), _Source(name, fields, fault))
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
    """What readers need to make records: the file's name, the fields, and whom to tell of faults."""

    name: str
    fields: Fields
    fault: Fault

    def record(self, value: Any, place: str) -> Iterator[Record]:
        """The record of a JSON object, a row or a bare string; none where the fault was noted."""
        try:
            yield self._record(value, f"{self.name}, {place}")
        except InputError as error:
            self.fault(error)

    def _record(self, value: Any, place: str) -> Record:
        fields = self.fields
        if isinstance(value, str):
            value = {fields.text: value}
        if not isinstance(value, dict):
            raise InputError(f'{place}: expected {{"{fields.text}": "…"}}, found {shortened(repr(value), 60)}')
        text = _text(value.get(fields.text), place, fields.text, value)
        title = value.get(fields.title) if fields.title else None
        if title is not None and title != "":
            text = f"{_text(title, place, fields.title, value)} {text}"
        names = IDS if fields.id is None else (fields.id,)
        found = next((value[name] for name in names if value.get(name) is not None), None)
        if fields.id is not None and found is None:
            raise InputError(f"{place}: expected an id in the field {fields.id}, found {_keys(value)}.")
        return Record(text, None if found is None else str(found), place)


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


def _text_lines(lines: Iterable[str], source: _Source) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        yield Record(line.rstrip("\r\n"), None, f"{source.name}, line {number}")


def _json_lines(lines: Iterable[str], source: _Source) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            source.fault(InputError(f"{source.name}, line {number}: expected JSON, found {error}."))
            continue
        yield from source.record(value, f"line {number}")


def _json_list(lines: Iterable[str], source: _Source) -> Iterator[Record]:
    try:
        values = parse_json("".join(lines))
    except ValueError as error:
        raise InputError(f"{source.name}: expected a JSON list of texts or records, found {error}.") from None
    if not isinstance(values, list):
        raise InputError(f"{source.name}: expected a JSON list, found {shortened(repr(values), 60)}.")
    for index, value in enumerate(values):
        yield from source.record(value, f"entry {index}")


def _csv_rows(lines: Iterable[str], source: _Source, *, tabs: bool = False) -> Iterator[Record]:
    reader = csv.reader(
        iter(lines),
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
                    source.fault(InputError(found))
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{source.name}, line {number}: expected a row of cells, found that {error}.") from None


def _tsv_rows(lines: Iterable[str], source: _Source) -> Iterator[Record]:
    return _csv_rows(lines, source, tabs=True)


def _require_column(source: _Source, columns: list[str]) -> None:
    if source.fields.text not in columns:
        raise InputError(
            f"{source.name}: expected a column {source.fields.text}, found {shortened(', '.join(columns), 80)}.\n"
            "    Name the column of the texts: --text-field NAME."
        )


def _parquet(file: io.BufferedReader, name: str, fields: Fields, fault: Fault) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException  # noqa: PLC0415 - an extra
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415
    except ImportError:
        raise InstallationError(
            f"{name}: expected the package pyarrow, which reads Parquet, found none.\n"
            "    Install it: pip install 'bge-onnx[files]'"
        ) from None
    source = _Source(name, fields, fault)
    try:
        opened = ParquetFile(file if file.seekable() else io.BytesIO(file.read()))
        columns = list(opened.schema_arrow.names)
        _require_column(source, columns)
        wanted = [column for column in columns if column in (fields.text, fields.title, fields.id, *IDS)]
        row = 0
        for batch in opened.iter_batches(batch_size=1024, columns=wanted):
            for value in batch.to_pylist():
                yield from source.record(value, f"row {row}")
                row += 1
    except ArrowException as error:
        raise InputError(f"{name}: expected a Parquet file, found {shortened(str(error))}.") from None


READERS: dict[Format, Callable[[Iterable[str], _Source], Iterator[Record]]] = {
    "text": _text_lines,
    "jsonl": _json_lines,
    "json": _json_list,
    "csv": _csv_rows,
    "tsv": _tsv_rows,
}
