"""What a file of texts holds, by its ending and its first line: format, encoding, lines."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

from bge_onnx.errors import InputError
from bge_onnx.files.compressed import put_back
from bge_onnx.files.json_file import parse_json, shortened

Format = Literal["text", "jsonl", "json", "csv", "tsv", "parquet"]
FORMATS: tuple[Format, ...] = ("text", "jsonl", "json", "csv", "tsv", "parquet")

ENDINGS: dict[str, Format] = {
    ".txt": "text", ".text": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
COMPRESSED = (".gz", ".zst", ".zstd")
PARQUET = b"PAR1"
MARKS = b"\xef\xbb\xbf\xff\xfe\0"  # byte order marks, and what UTF-16 has beside ASCII
MARKUP = ("<?xml", "<!doctype", "<html")

MOST_START_BYTES = 1 << 20
"""A first line is looked at so far."""

Fault = Callable[[InputError], None]
"""Is told of a line or record that cannot be read: raises the error, or notes it and returns."""


def look(file: io.BufferedReader) -> tuple[bytes, io.BufferedReader]:
    """The bytes up to the end of the first line that is not blank; and the file, put back to where it was."""
    start = b""
    while len(start) < MOST_START_BYTES and (line := file.readline(MOST_START_BYTES - len(start))):
        start += line
        if line.strip(MARKS + b" \t\r\n"):
            break
    return start, put_back(file, start)


def format_of(path: Path, start: bytes, name: str) -> Format:
    """What a file that begins with `start` holds: by its ending, else by its first line if that leaves no doubt.

    Raises InputError: a first line that may be text or JSON, JSON or markup where text is expected.
    """
    if start.startswith(PARQUET):
        return "parquet"
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    by_ending = ENDINGS.get(endings[-1]) if endings else None
    line = start.decode(encoding_of(start), errors="replace").lstrip("\ufeff").strip()
    cut = len(start) == MOST_START_BYTES
    by_line = _json_format(line, cut=cut) if line.startswith(("{", "[", '"')) else None
    if by_ending == "json" and line.startswith("{") and by_line:
        return "jsonl"
    if by_ending == "text" and by_line and line.startswith(("{", "[{")):
        raise _unclear(name, "an ending that says JSON, found JSON in the first line", line)
    if by_ending:
        return by_ending
    if line[:9].lower().startswith(MARKUP):
        raise _unclear(name, "text or records, found markup in the first line", line)
    if line.startswith(("{", "[", '"')) and not by_line:
        found = "an ending as .txt or .jsonl, found a first line that begins like JSON and is none"
        raise _unclear(name, found, line)
    return by_line or "text"


def _unclear(name: str, expected: str, line: str) -> InputError:
    return InputError(
        f"{name}: expected {expected}: {shortened(line, 60)}\n    Say what it holds: --format {', '.join(FORMATS)}."
    )


def _json_format(line: str, *, cut: bool) -> Format | None:
    """The format of a first line that begins like JSON; None if it is no JSON. `cut`: its end was not read."""
    kind: Format = "json" if line.startswith("[") else "jsonl"
    if cut:
        return kind if re.match(r'\{\s*"|\[\s*(\{\s*)?"', line) else None
    if kind == "json" and (line == "[" or line.endswith(",")):  # a list in many lines
        line = line.removesuffix(",") + "]"
    try:
        parse_json(line)
    except ValueError:
        return None
    return kind


def encoding_of(start: bytes) -> str:
    """UTF-16 by its mark, or by zeros beside ASCII in one half of the bytes; else UTF-8."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    even, odd = start[::2].count(0), start[1::2].count(0)
    newline = start.find(b"\n")
    if odd * 4 >= len(start) > 0 and not even and (newline < 0 or newline % 2 == 0):
        return "utf-16-le"
    if even * 4 >= len(start) > 0 and not odd and (newline < 0 or newline % 2 == 1):
        return "utf-16-be"
    return "utf-8"


def lines_of(file: io.BufferedReader, encoding: str, name: str, fault: Fault) -> Iterator[tuple[int, str]]:
    """The lines with their numbers and ends; `fault` is told of bytes of another encoding, with line and position."""
    lines = _utf_8(file, name, fault) if encoding == "utf-8" else _utf_16(file, encoding, name, fault)
    for number, line in lines:
        if "\0" in line:
            fault(
                InputError(
                    f"{name}, line {number}: expected UTF-8, found a zero byte, as binary files, UTF-16 and UTF-32 "
                    "have it.\n    Convert the file to UTF-8."
                )
            )
        else:
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def _utf_8(file: io.BufferedReader, name: str, fault: Fault) -> Iterator[tuple[int, str]]:
    for number, content in enumerate(file, 1):
        try:
            line = content.decode("utf-8")
        except UnicodeDecodeError as error:
            fault(
                InputError(
                    f"{name}, line {number}: expected UTF-8, found byte 0x{content[error.start]:02x} at position "
                    f"{error.start}.\n    Convert the file to UTF-8."
                )
            )
        else:
            yield number, line


def _utf_16(file: io.BufferedReader, encoding: str, name: str, fault: Fault) -> Iterator[tuple[int, str]]:
    text = io.TextIOWrapper(cast("Any", file), encoding=encoding, errors="surrogatepass", newline="\n")
    number = 0
    try:
        for number, line in enumerate(text, 1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                fault(InputError(f"{name}, line {number}: expected {encoding}, found half a pair at {error.start}."))
            else:
                yield number, line
    except UnicodeDecodeError as error:
        raise InputError(f"{name}, after line {number}: expected {encoding}, found {error.reason}.") from None
    finally:
        with contextlib.suppress(ValueError):  # the file was closed by whoever opened it
            text.detach()
