"""Writing a bundle's folder whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bge_onnx.errors import BundleError
from bge_onnx.files.json_file import read_json
from bge_onnx.files.replace import new_folder, put_folder, restore

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_folder(out: Path, *, size_bytes: int, force: bool = False) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends well, and is removed when it does not.

    size_bytes  about what will be written; refused at once where the disk has less
    force       replace an `out` that exists, at the very end; of a link, the folder that it points to

    What a killed process left behind is removed by the next export to the same place.
    Raises BundleError: `out` exists or appears in the meantime, another process is writing it, it cannot be replaced,
    the disk is full.
    """
    out = Path(os.path.realpath(out)) if os.path.islink(out) else out.absolute()  # noqa: PTH114 - never fails
    parents = [parent for parent in out.parents if not parent.exists()]
    try:
        require_free(out, force=force)
        out.parent.mkdir(parents=True, exist_ok=True)
        with alone(out):
            restore(out)
            _require_room(out, size_bytes)
            with new_folder(out) as partial:
                yield partial
                require_free(out, force=force)
                put_folder(partial, out, force=force)
    except OSError as error:
        raise _refusal(out, size_bytes, error) from error
    finally:
        for parent in parents:
            with suppress(OSError):  # it holds the new folder, or somebody else's files
                parent.rmdir()


@contextmanager
def alone(out: Path, *, wait_s: float = 0) -> Iterator[None]:
    """Hold the lock beside the folder `out`, which every process on every machine with this disk sees.

    Raises BundleError: another process holds it for longer than `wait_s` seconds. OSError: no place for a lock.
    """
    lock = FileLock(out.with_name(f".{out.name.encode()[:100].decode(errors='ignore')}.lock"), timeout=wait_s)
    try:
        lock.acquire()
    except Timeout:
        raise BundleError(
            f"{out}: another process is writing this folder.\n    Wait for it, or choose another --out."
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: filelock notices that
        lock.release()


def require_free(out: Path, *, force: bool) -> None:
    """Raise BundleError: `out` exists and may not be replaced, or cannot be."""
    try:
        exists = os.path.lexists(out)
        if exists and not force:
            raise BundleError(
                f"{out}: expected a folder that does not exist yet, found one.\n    Add --force to replace it."
            )
        if exists and not _is_bundle(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
            raise BundleError(f"{out}: --force replaces bundles only, and this is none.\n    Choose another --out.")
        if exists and os.path.ismount(out):
            raise BundleError(
                f"{out}: expected a folder that can be replaced, found a mount point.\n"
                f"    Choose a folder in it: --out {out / 'bundle'}"
            )
    except OSError as error:
        raise _refusal(out, 0, error) from error


def _refusal(out: Path, size_bytes: int, error: OSError) -> BundleError:
    if error.errno in FULL:
        return BundleError(
            f"{out}: expected room for about {_megabytes(size_bytes)}, found the disk full ({error.strerror}).\n"
            "    Nothing was left behind. Free some space, or choose another --out."
        )
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return BundleError(
            f"{out}: expected nothing at this place, found something that appeared during the export.\n"
            "    It was left as it is, and nothing was written. Choose another --out, or add --force."
        )
    place = f" ({error.filename})" if error.filename else ""
    return BundleError(
        f"{out}: expected a place for a bundle, found: {error.strerror or error}{place}.\n"
        "    Nothing was left behind. Choose another --out."
    )


def _require_room(out: Path, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(out.parent).free
    if free_bytes < size_bytes:
        raise BundleError(
            f"{out}: expected {_megabytes(size_bytes)} of free disk, found {_megabytes(free_bytes)}.\n"
            "    Free some space, or choose another --out."
        )


def _is_bundle(folder: Path) -> bool:
    try:
        return "format_version" in read_json(folder / "bundle.json")
    except (OSError, ValueError, TypeError):
        return False


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
