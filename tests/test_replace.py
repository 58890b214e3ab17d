"""A file or folder takes its place whole or not at all, and what others put there is never lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from threading import Timer

import pytest
from filelock import FileLock

from bge_onnx.files import replace
from bge_onnx.files.replace import new_folder, put_folder, replacing, restore


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(path, then):
    """Write a file to `path`, and do something before its block ends."""
    with replacing(path) as partial:
        partial.write_text("new")
        then()


def fail(error):
    raise error


def test_a_file_takes_its_place_when_the_block_ends(tmp_path):
    """What was at the path stays until the new file is whole; nothing is left beside it."""
    path = tmp_path / "x.npz"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["x.npz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_file_that_is_not_finished_leaves_nothing(tmp_path, error):
    """An error in the block passes on, and the folder is as it was."""
    with pytest.raises(error):
        write(tmp_path / "x.npz", lambda: fail(error))
    assert names(tmp_path) == []


def test_a_finished_file_is_kept_where_it_cannot_be_renamed(tmp_path):
    """A folder that appears at the path keeps the rename from working: the error names the file that was written."""
    path = tmp_path / "x.npz"
    with pytest.raises(OSError, match=r"what was written is kept as .*\.finished") as caught:
        write(path, path.mkdir)
    (kept,) = tmp_path.glob(".x.npz.*.finished")
    assert kept.read_text() == "new"
    assert str(kept) in str(caught.value)


def test_a_name_of_250_bytes(tmp_path):
    """A name as long as file systems allow has a partial file too."""
    path = tmp_path / ("x" * 251 + ".npz")
    with replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


KILLED = """
import os, sys
from pathlib import Path
from bge_onnx.files.replace import new_folder, replacing
kind = {"file": replacing, "folder": new_folder}[sys.argv[1]]
with kind(Path(sys.argv[2])) as partial:
    if partial.is_dir():
        (partial / "weights").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path, kind):
    """The next one to write there removes what nobody holds any more, and leaves the others alone."""
    path = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, kind, str(path)]
    writing = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.stdout.readline() for process in writing] == [b"writing\n"] * 2
    writing[0].send_signal(signal.SIGKILL)
    writing[0].wait()
    assert len(list(tmp_path.glob("*.partial"))) == 2
    with new_folder(path):
        pass
    assert len(list(tmp_path.glob("*.partial"))) == 1
    writing[1].communicate(timeout=60)
    assert writing[1].returncode == 0
    assert [path.name for path in tmp_path.glob(".*")] == []


def folder(path, text):
    path.mkdir()
    (path / "bundle.json").write_text(text)
    return path


@pytest.mark.parametrize("system", [True, False], ids=["at once", "in steps"])
def test_a_folder_replaces_another_only_when_it_is_told_to(tmp_path, monkeypatch, system):
    """Without force whatever is at the path stays, an empty folder too; with force it is left where the new one was."""
    if not system:
        monkeypatch.setattr(replace, "_system_rename", lambda: None)
    out = tmp_path / "out"
    put_folder(folder(tmp_path / "first", "first"), out, force=False)
    assert (out / "bundle.json").read_text() == "first"
    with pytest.raises(FileExistsError):
        put_folder(folder(tmp_path / "second", "second"), out, force=False)
    assert (out / "bundle.json").read_text() == "first"
    put_folder(tmp_path / "second", out, force=True)
    assert (out / "bundle.json").read_text() == "second"
    assert (tmp_path / "second/bundle.json").read_text() == "first"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError):
        put_folder(folder(tmp_path / "third", "third"), tmp_path / "empty", force=False)


def test_a_replacement_in_steps_that_was_killed_is_mended(tmp_path):
    """A folder that was moved aside and whose place is empty is put back."""
    folder(tmp_path / ".out.replaced", "old")
    restore(tmp_path / "out")
    assert (tmp_path / "out/bundle.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_json_of_a_fifo_is_not_waited_for(tmp_path):
    """Something that is no regular file is refused, where reading it would never end."""
    from bge_onnx.files.json_file import read_json

    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(ValueError, match=r"^no regular file$"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "JSON that is nested too deep"),
        (b"9" * 5000, "JSON that cannot be read: Exceeds the limit"),
        (b"\xff\xfe1", "byte 0xff at 0, which is not UTF-8"),
        (b"{'a': 1}", "no JSON: Expecting property name"),
        (b"", "no JSON: Expecting value"),
    ],
    ids=["deep", "digits", "bytes", "quotes", "empty"],
)
def test_json_that_is_none(content, reason):
    """Whatever is wrong is one short line."""
    from bge_onnx.files.json_file import parse_json

    with pytest.raises(ValueError, match=f"^{reason}") as caught:
        parse_json(content)
    assert len(str(caught.value)) < 300


def test_json_with_a_byte_order_mark():
    """A byte order mark in front is no part of the value."""
    from bge_onnx.files.json_file import parse_json

    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_locks_of_killed_processes_are_removed(tmp_path):
    """A kill between the lock and the file leaves a lock alone; the next writer removes it, and no other name."""
    (tmp_path / ".x.npz.0123abcd.lock").touch()
    (tmp_path / ".x.npz.mine.lock").touch()
    with replacing(tmp_path / "x.npz") as partial:
        partial.write_text("new")
    assert names(tmp_path) == [".x.npz.mine.lock", "x.npz"]


def test_a_cleaner_that_takes_a_new_lock_for_an_old_one(tmp_path, monkeypatch):
    """Another writer may hold the lock of a file that is only beginning to be written: it is waited for."""
    monkeypatch.setattr(replace, "partial_of", lambda path: path.with_name(f".{path.name}.0123abcd.partial"))
    monkeypatch.setattr(replace, "remove_abandoned", lambda _: None)
    lock = FileLock(tmp_path / ".x.npz.0123abcd.lock", thread_local=False)
    lock.acquire()
    Timer(0.2, lock.release).start()
    with replacing(tmp_path / "x.npz") as partial:
        partial.write_text("new")
    assert (tmp_path / "x.npz").read_text() == "new"
