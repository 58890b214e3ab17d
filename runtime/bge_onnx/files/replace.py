"""Putting a new file or folder in a place: whole or not at all, whatever ends the process."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

PARTIAL, FINISHED, UNFINISHED, LOCK = ".partial", ".finished", ".unfinished", ".lock"
WAIT_S = 10  # a cleaner may take a new lock for an old one, and lets it go at once
AT_FDCWD = -100  # Linux: paths are relative to the working directory
NO_REPLACE, EXCHANGE = 1, 2  # flags of Linux's renameat2
RENAME_EXCL, RENAME_SWAP = 4, 2  # flags of macOS's renamex_np


@contextmanager
def replacing(path: Path, *, force: bool = True) -> Iterator[Path]:
    """A new file beside `path` that takes its place when the block ends well, and is removed when it does not.

    The file is on the disk before it is renamed. What a killed process left for the same `path` is removed.
    force  replace a file that is at `path`; without it, a file that appears there in the meantime is left alone

    Raises OSError: the folder cannot be written, or the disk is full. OSError, FileExistsError: what is at `path`
    cannot or must not be replaced. What was written is kept then, and the error names it.
    """
    path = path.absolute()
    remove_abandoned(path)
    partial = partial_of(path)
    with _held(partial, wait_s=WAIT_S):
        try:
            with partial.open("xb"):
                pass
            yield partial
            sync(partial)
            _take_place(partial, path, force=force)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def _take_place(partial: Path, path: Path, *, force: bool) -> None:
    """Rename a finished file. Where that fails it is kept under another name, which the error tells."""
    try:
        if force or not _rename(partial, path, exchange=False):
            if not force and os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            partial.replace(path)
    except OSError as error:
        kept = partial.with_suffix(FINISHED)
        partial.rename(kept)
        raise OSError(error.errno, f"{error.strerror}; what was written is kept as {kept}", str(path)) from error


def partial_of(path: Path) -> Path:
    """A name beside `path` that nobody else takes. A long name is cut: file systems allow 255 bytes."""
    stem = path.name.encode()[:100].decode(errors="ignore")
    return path.with_name(f".{stem}.{secrets.token_hex(4)}{PARTIAL}")


@contextmanager
def _held(partial: Path, *, wait_s: float = 0) -> Iterator[None]:
    """Hold the lock that tells a partial file that is being written from one that was left behind.

    Raises Timeout: another process holds it for longer than `wait_s` seconds.
    """
    partial.parent.stat()  # filelock would make the folder
    lock = FileLock(lock_of(partial), timeout=wait_s)
    with lock:
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: filelock notices that


def lock_of(partial: Path) -> Path:
    """The file that is locked while `partial` is written."""
    return partial.with_suffix(LOCK)


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left beside `path`: partial files and folders whose lock nobody holds, and these
    locks.
    """
    stem = partial_of(path).name[: -len(PARTIAL) - 8]
    ours = re.compile(f"{re.escape(stem)}[0-9a-f]{{8}}({PARTIAL}|{LOCK})")
    with suppress(OSError):
        left = {found.with_suffix(PARTIAL) for found in path.parent.iterdir() if ours.fullmatch(found.name)}
        for partial in left:
            with suppress(Timeout, OSError), _held(partial):
                if partial.is_dir() and not partial.is_symlink():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to write into, removed when the block ends unless it was moved away.

    What a killed process left for the same `path` is removed. Raises OSError.
    """
    path = path.absolute()
    remove_abandoned(path)
    partial = partial_of(path)
    with _held(partial, wait_s=WAIT_S):
        try:
            partial.mkdir()
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def put_folder(partial: Path, path: Path, *, force: bool) -> None:
    """Move the folder `partial` to `path`. With `force` another folder may be there: it is at `partial` afterwards.

    Everything in `partial` is synced to the disk first. Readers see the old folder or the new one, where the system can
    exchange names (Linux, macOS); elsewhere there is a moment without either.
    Raises FileExistsError: something is at `path`, and no `force`. OSError.
    """
    for folder, _, files in os.walk(partial):
        for name in files:
            sync(Path(folder) / name)
        sync(Path(folder))
    if force and os.path.lexists(path):
        if not _rename(partial, path, exchange=True):
            _exchange_in_steps(partial, path)
    elif not _rename(partial, path, exchange=False):
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        partial.rename(path)
    sync(path.parent)


def _exchange_in_steps(partial: Path, path: Path) -> None:
    """Exchange two folders on systems that cannot do it at once; `restore` mends what a kill in between leaves."""
    replaced = replaced_of(path)
    shutil.rmtree(replaced, ignore_errors=True)
    path.rename(replaced)
    try:
        partial.rename(path)
    except BaseException:
        replaced.rename(path)
        raise
    replaced.rename(partial)


def restore(path: Path) -> None:
    """Put back a folder that a process was killed in the middle of replacing."""
    if replaced_of(path).is_dir() and not os.path.lexists(path):
        replaced_of(path).rename(path)


def replaced_of(path: Path) -> Path:
    """Where a folder is kept while another takes its place in steps."""
    return path.with_name(f".{path.name}.replaced")


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk. A system that cannot sync a folder need not."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _rename(source: Path, target: Path, *, exchange: bool) -> bool:
    """Exchange two names, or rename where nothing is; False where this system or file system cannot.

    Raises OSError, FileExistsError among them.
    """
    rename = _system_rename()
    if rename is None:
        return False
    if sys.platform == "darwin":
        failed = rename(os.fsencode(source), os.fsencode(target), RENAME_SWAP if exchange else RENAME_EXCL)
    else:
        flags = EXCHANGE if exchange else NO_REPLACE
        failed = rename(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags)
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(target))


@cache
def _system_rename() -> ctypes._FuncPointer | None:
    """The system's call, loaded once; None where it has none."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        call = library.renamex_np if sys.platform == "darwin" else library.renameat2
    except (OSError, AttributeError, TypeError):
        return None
    return call
