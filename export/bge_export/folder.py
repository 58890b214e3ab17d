"""Writing a folder whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bge_onnx.errors import BundleError


@contextmanager
def atomic_folder(out: Path, *, size_bytes: int, force: bool = False) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends well, and is removed when it does not.

    size_bytes  about what will be written; refused at once where the disk has less
    force       replace an `out` that exists, at the very end

    What a killed process left behind is removed by the next export to the same place.
    Raises BundleError: `out` exists, another process is writing it, or the disk is full.
    """
    out = out.absolute()
    lock = FileLock(_lock_path(out), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BundleError(
            f"{out}: another process is writing this folder.\n    Wait for it, or choose another --out."
        ) from None
    partial = out.with_name(f".{out.name}.partial")
    parents = [parent for parent in out.parents if not parent.exists()]
    try:
        require_free(out, force=force)
        _prepare(out, partial, size_bytes)
        yield partial
        _put_in_place(partial, out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise BundleError(
            f"{out}: expected room for about {_megabytes(size_bytes)}, found the disk full ({error.strerror}).\n"
            "    Nothing was left behind. Free some space, or choose another --out."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in parents:
            with suppress(OSError):  # it holds the new folder, or somebody else's files
                parent.rmdir()
        lock.release()


def require_free(out: Path, *, force: bool) -> None:
    """Raise BundleError: `out` exists and may not be replaced."""
    if out.exists() and not force:
        raise BundleError(
            f"{out}: expected a folder that does not exist yet, found one.\n    Add --force to replace it."
        )
    if out.exists() and not _is_bundle(out) and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: --force replaces bundles only, and this is none.\n    Choose another --out.")


def _prepare(out: Path, partial: Path, size_bytes: int) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    free_bytes = shutil.disk_usage(out.parent).free
    if free_bytes < size_bytes:
        raise BundleError(
            f"{out}: expected {_megabytes(size_bytes)} of free disk, found {_megabytes(free_bytes)}.\n"
            "    Free some space, or choose another --out."
        )
    partial.mkdir()


def _put_in_place(partial: Path, out: Path) -> None:
    replaced = out.with_name(f".{out.name}.replaced")
    if out.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
    try:
        partial.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _is_bundle(folder: Path) -> bool:
    try:
        return "format_version" in json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _lock_path(out: Path) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    key = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"bge-onnx-{user}-{key}.lock"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
