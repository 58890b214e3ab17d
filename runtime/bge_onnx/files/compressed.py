"""Decompressed bytes of a file or of stdin. A reader may look at their beginning and put it back."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import sys
from pathlib import Path
from typing import Any, cast

from bge_onnx.errors import InputError, InstallationError
from bge_onnx.files.json_file import shortened

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
"""What such files begin with."""

BLOCK_BYTES = 16384


def opened(path: Path, name: str, stack: contextlib.ExitStack) -> io.BufferedReader:
    """The file's bytes as they are; `-` is stdin. Raises InputError: there are none to read."""
    if str(path) == "-":
        if sys.stdin is None:
            raise InputError(f"{name}: expected texts, found it closed.")
        stdin: Any = sys.stdin.buffer
        return stdin if isinstance(stdin, io.BufferedReader) else io.BufferedReader(stdin)
    try:
        return stack.enter_context(path.open("rb"))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{name}: expected a file of texts, found none.") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InputError(f"{name}: expected a file that can be read, found {shortened(str(error))}.") from None


def decompressed(raw: io.BufferedReader, name: str) -> tuple[io.BufferedReader, bool]:
    """The bytes without gzip or zstd, which their first bytes tell; and whether they were compressed."""
    first = b""
    while any(magic.startswith(first) and magic != first for magic in (GZIP, ZSTD)) and (byte := raw.read(1)):
        first += byte
    raw = put_back(raw, first)
    if first == GZIP:
        return io.BufferedReader(cast("Any", gzip.GzipFile(fileobj=raw))), True
    if first == ZSTD:
        return io.BufferedReader(_Zstd(raw, name)), True
    return raw, False


def put_back(file: io.BufferedReader, start: bytes) -> io.BufferedReader:
    """The file as it was before `start` was read from it: a pipe too."""
    if is_on_disk(file):
        file.seek(-len(start), io.SEEK_CUR)
        return file
    return io.BufferedReader(_Ahead(start, file))


def is_on_disk(file: io.BufferedReader) -> bool:
    """Whether the file's bytes can be read in any order, as they are."""
    return isinstance(file.raw, io.FileIO) and file.seekable()


class _Ahead(io.RawIOBase):
    """Bytes that were read already, and then the rest."""

    def __init__(self, start: bytes, rest: io.BufferedReader) -> None:
        self._start, self._rest = start, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block, self._start = self._start[: len(buffer)], self._start[len(buffer) :]
        block = block or self._rest.read1(len(buffer))
        buffer[: len(block)] = block
        return len(block)


class _Zstd(io.RawIOBase):
    """What zstd frames hold, one after another. Raises OSError: they are damaged. EOFError: the last one is cut."""

    def __init__(self, raw: io.BufferedReader, name: str) -> None:
        self._raw, self._zstd = raw, _zstd(name)
        self._frame: Any = None
        self._unused = self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left and (block := self._unused or self._raw.read1(BLOCK_BYTES)):
            if self._frame is None or self._frame.eof:
                self._frame = new_frame(self._zstd)
            try:
                self._left = self._frame.decompress(block)
            except self._zstd.ZstdError as error:
                raise OSError(str(error)) from None
            self._unused = self._frame.unused_data if self._frame.eof else b""
        if not self._left and not self._frame.eof:
            raise EOFError("it ended within a zstd frame")
        block, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(block)] = block
        return len(block)


def _zstd(name: str) -> Any:
    """Python's own module from 3.14 on, or the package."""
    for module in ("compression.zstd", "zstandard"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(module)
    raise InstallationError(
        f"{name}: expected the package zstandard, which reads zstd, found none.\n"
        "    Install it: pip install 'bge-onnx[files]'"
    )


def new_frame(module: Any) -> Any:
    """A decompressor of one frame, which has `decompress`, `eof` and `unused_data` in both modules."""
    decompressor = module.ZstdDecompressor()
    return decompressor.decompressobj() if hasattr(decompressor, "decompressobj") else decompressor
