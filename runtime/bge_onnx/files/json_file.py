"""JSON from outside: whatever is wrong with a file becomes one error, short enough to read."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""A surrogate, as text that was cut or misread has it: no UTF-8 can be made of it."""

QUOTED_CHARS = 200
"""An error quotes so much of what it found: a cause may be megabytes long."""


def read_json(path: Path, *, most_bytes: int = 1 << 30) -> Any:
    """The value in a JSON file, a byte order mark skipped.

    most_bytes  a larger file is refused before it is read

    Raises FileNotFoundError: there is no such file. ValueError, with one short line: everything else that is wrong, as
    no regular file (a FIFO would be waited for), no permission, bytes that are not UTF-8, no JSON, values nested too
    deep, numbers with thousands of digits.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("no regular file")
        if found.st_size > most_bytes:
            raise ValueError(f"{found.st_size} bytes, more than the {most_bytes} that are read")
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(error.strerror or type(error).__name__) from None


def parse_json(content: bytes | str) -> Any:
    """The value of JSON text, bytes as UTF-8. Raises ValueError, with one short line."""
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte 0x{error.object[error.start]:02x} at {error.start}, which is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
    except ValueError as error:  # Python refuses to read integers with thousands of digits
        raise ValueError(f"JSON that cannot be read: {shortened(str(error))}") from None


def shortened(text: str, most: int = QUOTED_CHARS) -> str:
    """The text in one line, cut where it is long."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else f"{line[:most]}…"
