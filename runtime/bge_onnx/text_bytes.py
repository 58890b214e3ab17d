"""What a file of texts holds, by its ending and its first bytes: compression, encoding, format."""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from bge_onnx.errors import InputError, InstallationError
from bge_onnx.json_file import parse_json, shortened

Format = Literal["text", "jsonl", "json", "csv", "tsv", "parquet"]
FORMATS: tuple[Format, ...] = ("text", "jsonl", "json", "csv", "tsv", "parquet")

ENDINGS: dict[str, Format] = {
    ".txt": "text", ".text": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
COMPRESSED = (".gz", ".zst", ".zstd")
GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
"""What such files begin with."""

PEEKED_BYTES = 4096


def opened(path: Path, name: str, stack: contextlib.ExitStack) -> tuple[io.BufferedReader, bool]:
    """The file's bytes, decompressed, and whether they were compressed."""
    if name == "stdin":
        if sys.stdin is None:
            raise InputError("stdin: expected texts, found it closed.")
        stdin: Any = sys.stdin.buffer
        raw = stdin if isinstance(stdin, io.BufferedReader) else io.BufferedReader(stdin)
    else:
        try:
            raw = stack.enter_context(path.open("rb"))
        except (FileNotFoundError, IsADirectoryError):
            raise InputError(f"{path}: expected a file of texts, found none.") from None
        except OSError as error:
            raise InputError(f"{path}: expected a file that can be read, found {error.strerror}.") from None
    first = raw.peek(4)[:4]
    if first.startswith(GZIP):
        return io.BufferedReader(cast("Any", gzip.GzipFile(fileobj=raw))), True
    if first == ZSTD:
        return io.BufferedReader(_zstd(raw, name)), True
    return raw, False


def _zstd(raw: BinaryIO, name: str) -> Any:
    try:
        import zstandard  # noqa: PLC0415 - an extra
    except ImportError:
        raise InstallationError(
            f"{name}: expected the package zstandard, which reads zstd, found none.\n"
            "    Install it: pip install 'bge-onnx[files]'"
        ) from None
    return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)


def format_of(path: Path, file: io.BufferedReader, name: str) -> Format:
    """What a file holds: by its ending; where that says nothing, by its first line if that leaves no doubt."""
    start = file.peek(PEEKED_BYTES)[:PEEKED_BYTES]
    if start.startswith(PARQUET):
        return "parquet"
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    text = start.decode(_encoding(start), errors="replace").lstrip("\ufeff \t\r\n")
    if endings and endings[-1] in ENDINGS:
        kind = ENDINGS[endings[-1]]
        return "jsonl" if kind == "json" and text.startswith("{") and _is_json(_first_line(text)) else kind
    if not text.startswith(("{", "[", '"')):
        return "text"
    line = _first_line(text)
    if text.startswith("{") and (_is_json(line) or (len(start) == PEEKED_BYTES and "\n" not in text)):
        return "jsonl"
    if text.startswith("[") and (line.strip() == "[" or _is_json(line)):
        return "json"
    raise InputError(
        f"{name}: expected an ending that tells what the file holds, as .txt or .jsonl, found a first line that begins "
        f"like JSON and may be plain text: {shortened(line, 60)}\n    Say which it is: --format text or --format jsonl."
    )


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0]


def _is_json(line: str) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _encoding(start: bytes) -> str:
    """UTF-16 by its mark or by zero bytes beside ASCII, else UTF-8."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if len(start) >= 4 and start[1] == 0 and start[3] == 0 and start[0]:
        return "utf-16-le"
    if len(start) >= 4 and start[0] == 0 and start[2] == 0 and start[1]:
        return "utf-16-be"
    return "utf-8"


def lines_of(file: io.BufferedReader, name: str) -> Iterator[str]:
    """The lines with their ends. Raises InputError: bytes of another encoding, with line and position."""
    encoding = _encoding(file.peek(4)[:4])
    if encoding != "utf-8":
        text = io.TextIOWrapper(cast("Any", file), encoding=encoding, newline="\n")
        try:
            for number, line in enumerate(text):
                yield line.removeprefix("\ufeff") if not number else line
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: expected {encoding}, found {error.reason}.") from None
        finally:
            text.detach()
        return
    for number, content in enumerate(file, 1):
        try:
            line = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number}: expected UTF-8, found byte 0x{content[error.start]:02x} at position "
                f"{error.start}.\n    Convert the file to UTF-8."
            ) from None
        yield line.removeprefix("\ufeff") if number == 1 else line
