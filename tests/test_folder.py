"""A bundle's folder is written whole or not at all, whatever happens to the process or the disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from bge_export.bundle.folder import atomic_folder
from bge_export.checkpoint import hub
from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.request import Request
from bge_onnx import Bundle, BundleError
from bge_onnx.files import replace
from tiny import write_checkpoint, write_json

WAIT_S = 60


@pytest.fixture(scope="module", autouse=True)
def _torch_on_one_core():
    """Spinning threads of a tiny model only wait for each other where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_request(tiny_checkpoint):
    return Request(model="tiny", target="cpu-fp32", checkpoint=tiny_checkpoint, options=Options(pooling="cls"))


def write(out, **options):
    """Write a folder with one file to `out`."""
    with atomic_folder(out, size_bytes=10, **options) as partial:
        (partial / "bundle.json").write_text("new")


def fail(out, error, **options):
    """Begin to write a folder to `out`, then meet `error`."""
    with atomic_folder(out, size_bytes=7_000_000, **options) as partial:
        (partial / "bundle.json").write_text("half")
        raise error


def refusal(out, **options):
    """The text of the BundleError that writing to `out` ends with."""
    with pytest.raises(BundleError) as caught:
        write(out, **options)
    return str(caught.value)


def place(path, kind):
    """Put something where a bundle is wanted."""
    if kind == "file":
        path.write_text("precious")
        return path
    path.mkdir()
    if kind == "bundle":
        write_json(path / "bundle.json", {"format_version": 1, "name": "old"})
        (path / "model.onnx").write_text("old")
    elif kind == "folder of another":
        (path / "thesis.tex").write_text("precious")
    elif kind == "folder of another with a bundle.json":
        write_json(path / "bundle.json", {"entry": "index.js"})
        (path / "index.js").write_text("precious")
    return path


def contents(path):
    """The text of a file, or of all files in a folder."""
    if path.is_file():
        return path.read_text()
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def names(folder):
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def child(code, *arguments, **options):
    """A Python process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def test_a_finished_block_leaves_the_folder_alone(tmp_path):
    """What the block wrote is at the wanted place afterwards and not before, and nothing is beside it."""
    with atomic_folder(tmp_path / "out", size_bytes=10) as partial:
        (partial / "onnx").mkdir()
        (partial / "onnx/model.onnx").write_text("graph")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    assert contents(tmp_path / "out") == {"onnx/model.onnx": "graph"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, BundleError])
@pytest.mark.parametrize("force", [False, True])
def test_an_error_in_the_block_leaves_nothing(tmp_path, error, force):
    """Ctrl-C or any error inside the block passes through unchanged and leaves nothing behind."""
    with pytest.raises(error, match=r"^stop$"):
        fail(tmp_path / "out", error("stop"), force=force)
    assert names(tmp_path) == []


def test_an_interrupted_replacement_keeps_the_old_bundle(tmp_path):
    """With force, the bundle that is there stays as it is until the new one is whole."""
    out = place(tmp_path / "out", "bundle")
    before = contents(out)
    with pytest.raises(KeyboardInterrupt):
        fail(out, KeyboardInterrupt(), force=True)
    assert names(tmp_path) == ["out"]
    assert contents(out) == before


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no luck"), KeyboardInterrupt()], ids=["EIO", "Ctrl-C"])
@pytest.mark.parametrize("system", [True, False], ids=["at once", "in steps"])
def test_a_failed_swap_keeps_the_old_bundle(tmp_path, monkeypatch, error, system):
    """With force, an error while two folders change places leaves the old one, whether that is one step or several."""
    out = place(tmp_path / "out", "bundle")
    before = contents(out)
    rename = Path.rename

    def failing(self, *arguments):
        if system or self.name.endswith(".partial"):
            raise error
        return rename(self, *arguments)

    if not system:
        monkeypatch.setattr(replace, "_system_rename", lambda: None)
    monkeypatch.setattr(*((replace, "_rename") if system else (Path, "rename")), lambda *a, **_: failing(*a))
    with pytest.raises(BundleError if isinstance(error, OSError) else KeyboardInterrupt):
        write(out, force=True)
    assert names(tmp_path) == ["out"]
    assert contents(out) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["empty folder", "file", "folder of another"])
def test_what_appears_during_an_export_is_kept(tmp_path, kind, force):
    """What somebody puts at the place in the meantime stays as it is; only --force takes an empty folder's place."""
    out = tmp_path / "out"

    def during():
        with atomic_folder(out, size_bytes=10, force=force) as partial:
            (partial / "bundle.json").write_text("new")
            place(out, kind)

    if force and kind == "empty folder":
        during()
        assert contents(out) == {"bundle.json": "new"}
        return
    with pytest.raises(BundleError):
        during()
    assert contents(out) == {"empty folder": {}, "file": "precious"}.get(kind, {"thesis.tex": "precious"})
    assert names(tmp_path) == ["out"]


def test_processes_with_their_own_temporary_folders_see_each_other(tmp_path):
    """Two containers that share a volume, and nothing else, do not write one folder together."""
    out = tmp_path / "out"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with child(HOLD, out, stdin=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path / "one")}) as first:
        assert first.stdout.readline() == "ready\n"
        environment = {**os.environ, "TMPDIR": str(tmp_path / "two")}
        with child(HOLD, out, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as second:
            said = second.communicate(timeout=WAIT_S)[1]
        assert "another process is writing this folder." in said
        first.stdin.close()
        assert first.wait(WAIT_S) == 0
    assert contents(out) == {"bundle.json": "child", "model.onnx_data": "begun"}
    assert names(tmp_path) == ["one", "out", "two"]


def test_a_replacement_that_was_killed_in_the_middle(tmp_path):
    """An old bundle that was moved aside is put back by the next export, whatever becomes of that."""
    place(tmp_path / ".out.replaced", "bundle")
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "out", ZeroDivisionError(), force=True)
    assert names(tmp_path) == ["out"]
    assert contents(tmp_path / "out")["model.onnx"] == "old"


def test_the_working_directory_is_replaced(tmp_path, monkeypatch, tiny_request):
    """`--out . --force` succeeds, and the bundle is at the place that the folder had."""
    out = place(tmp_path / "out", "bundle")
    monkeypatch.chdir(out)
    assert export(tiny_request, Path(), force=True).folder == out
    monkeypatch.chdir(tmp_path)
    assert Bundle.open(out, verify=True).name == "tiny-cpu-fp32"


def test_a_mount_point_is_refused_beforehand(tmp_path, monkeypatch):
    """A folder that cannot be renamed is told before the work, with a place that can be written."""
    out = place(tmp_path / "out", "bundle")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == out)
    assert refusal(out, force=True) == (
        f"{out}: expected a folder that can be replaced, found a mount point.\n"
        f"    Choose a folder in it: --out {out / 'bundle'}"
    )


def test_a_name_that_is_too_long(tmp_path):
    """A place that the file system cannot have is one clear error."""
    out = tmp_path / ("x" * 300)
    assert refusal(out).startswith(f"{out}: expected a place for a bundle, found: File name too long")


@pytest.mark.parametrize("kind", ["bundle", "empty folder", "file", "folder of another"])
def test_what_exists_is_refused(tmp_path, kind):
    """Without force nothing that exists is touched, and the error names the place and the option."""
    out = place(tmp_path / "out", kind)
    before = contents(out)
    wanted = f"{out}: expected a folder that does not exist yet, found one.\n    Add --force to replace it."
    assert refusal(out) == wanted
    assert names(tmp_path) == ["out"]
    assert contents(out) == before


def test_what_exists_is_refused_before_a_download(tmp_path, monkeypatch):
    """A place that is taken is said before the Hub is asked for gigabytes."""
    monkeypatch.setattr(hub, "download", lambda *_: pytest.fail("a download began"))
    with pytest.raises(BundleError, match="expected a folder that does not exist yet"):
        export(Request(model="BAAI/bge-small-en", target="cpu-fp32"), place(tmp_path / "out", "bundle"))


@pytest.mark.parametrize("kept", [True, False])
def test_folders_made_on_the_way_go_again(tmp_path, kept):
    """Parents of the place that were made for it are removed when the block fails, but not with other files in them."""
    out = tmp_path / "a/b/out"
    with pytest.raises(ZeroDivisionError), atomic_folder(out, size_bytes=1):  # noqa: PT012
        if kept:
            (tmp_path / "a/other").touch()
        raise ZeroDivisionError
    assert names(tmp_path) == (["a"] if kept else [])
    assert not out.parent.exists()


@pytest.mark.parametrize("kind", ["file", "folder of another", "folder of another with a bundle.json"])
def test_force_never_replaces_what_is_no_bundle(tmp_path, kind):
    """--force leaves a file, or a folder that is no bundle, exactly as it is."""
    out = place(tmp_path / "out", kind)
    before = contents(out)
    assert refusal(out, force=True) == (
        f"{out}: --force replaces bundles only, and this is none.\n    Choose another --out."
    )
    assert names(tmp_path) == ["out"]
    assert contents(out) == before


@pytest.mark.parametrize("kind", ["bundle", "empty folder"])
def test_force_replaces_a_bundle(tmp_path, kind):
    """--force puts the new bundle in the place of an old one, whose files are all gone."""
    out = place(tmp_path / "out", kind)
    write(out, force=True)
    assert names(tmp_path) == ["out"]
    assert contents(out) == {"bundle.json": "new"}


@pytest.mark.parametrize("out", ["bundle", "a/b/bundle", "./bundle"])
def test_a_relative_place_works(tmp_path, monkeypatch, tiny_request, out):
    """A relative --out means the folder one is in, and its parents are made."""
    monkeypatch.chdir(tmp_path)
    assert export(tiny_request, Path(out)).parity.passed
    assert Bundle.open(tmp_path / out, verify=True).name == "tiny-cpu-fp32"
    assert names((tmp_path / out).parent) == ["bundle"]


def test_a_relative_place_is_the_one_of_the_beginning(tmp_path, monkeypatch):
    """A block that changes the working directory does not move its own folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with atomic_folder(Path("out"), size_bytes=10):
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert names(tmp_path) == ["elsewhere", "out"]
    assert names(tmp_path / "elsewhere") == []


def test_a_second_export_is_refused_at_once(tmp_path, tiny_request):
    """While one export writes a folder, another to the same place ends in an error at once; the first is not hurt."""
    out = tmp_path / "out"
    with atomic_folder(out, size_bytes=10) as partial:
        (partial / "bundle.json").write_text("first")
        with pytest.raises(BundleError) as caught:
            export(tiny_request, out, force=True)
    assert str(caught.value) == (
        f"{out}: another process is writing this folder.\n    Wait for it, or choose another --out."
    )
    assert names(tmp_path) == ["out"]
    assert contents(out) == {"bundle.json": "first"}


def test_one_of_many_threads_wins(tmp_path):
    """Of eight threads that want one folder together exactly one gets it; the others fail while it still writes."""
    out, start, lost = tmp_path / "out", threading.Barrier(8), threading.Semaphore(0)

    def compete(number):
        start.wait(WAIT_S)
        try:
            with atomic_folder(out, size_bytes=10) as partial:
                (partial / "bundle.json").write_text(str(number))
                return [lost.acquire(timeout=WAIT_S) for _ in range(7)]
        except BundleError as error:
            lost.release()
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(compete, range(8)))
    winners = [number for number, result in enumerate(results) if result == [True] * 7]
    losers = [result for result in results if "another process is writing this folder." in result]
    assert (len(winners), len(losers)) == (1, 7)
    assert contents(out) == {"bundle.json": str(winners[0])}


HOLD = """
import sys
from pathlib import Path
from bge_export.bundle.folder import atomic_folder
with atomic_folder(Path(sys.argv[1]), size_bytes=10) as partial:
    (partial / "model.onnx_data").write_text("begun")
    print("ready", flush=True)
    sys.stdin.read()
    (partial / "bundle.json").write_text("child")
"""


def test_another_process_is_noticed(tmp_path):
    """A folder that another process writes is refused at once, and that process finishes it unhurt."""
    out = tmp_path / "out"
    with child(HOLD, out, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        text = refusal(out)
        process.stdin.close()
        assert process.wait(WAIT_S) == 0
    assert "another process is writing this folder." in text
    assert names(tmp_path) == ["out"]
    assert contents(out) == {"bundle.json": "child", "model.onnx_data": "begun"}


def test_a_killed_export_leaves_no_bundle(tmp_path, tiny_request):
    """After SIGKILL nothing is at the wanted place, and the next export succeeds and removes the remains."""
    out = tmp_path / "out"
    with child(HOLD, out, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.wait(WAIT_S) == -signal.SIGKILL
    assert not out.exists()
    assert names(tmp_path) != [], "nothing was begun"
    export(tiny_request, out)
    assert names(tmp_path) == ["out"]
    assert names(out) == ["bundle.json", "model.onnx", "model.onnx_data", "tokenizer.json"]


def test_a_disk_without_room_is_refused_beforehand(tmp_path, monkeypatch, tiny_request):
    """An export that cannot fit is refused before anything is written."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 100_000, 100_000))
    with pytest.raises(BundleError) as caught:
        export(tiny_request, tmp_path / "out")
    assert f"{tmp_path / 'out'}: expected " in str(caught.value)
    assert "of free disk, found 0 MB.\n    Free some space, or choose another --out." in str(caught.value)
    assert names(tmp_path) == []


def test_the_room_needed_is_told(tmp_path, monkeypatch):
    """The error tells the room needed and the room found, in megabytes; the block is never entered."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**10, 0, 5_000_000))
    with (
        pytest.raises(BundleError, match="expected 1,340 MB of free disk, found 5 MB"),
        atomic_folder(tmp_path / "out", size_bytes=1_340_000_000),
    ):
        pytest.fail("the block was entered")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, number):
    """A full disk, a quota or a size limit met while writing is an error that says so; nothing is left."""
    with pytest.raises(BundleError) as caught:
        fail(tmp_path / "out", OSError(number, os.strerror(number)))
    assert str(caught.value) == (
        f"{tmp_path / 'out'}: expected room for about 7 MB, found the disk full ({os.strerror(number)}).\n"
        "    Nothing was left behind. Free some space, or choose another --out."
    )
    assert names(tmp_path) == []


def test_another_disk_error_is_not_called_full(tmp_path):
    """An input/output error is told as what it is, and leaves nothing either."""
    with pytest.raises(BundleError, match=f"expected a place for a bundle, found: {os.strerror(errno.EIO)}"):
        fail(tmp_path / "out", OSError(errno.EIO, os.strerror(errno.EIO)))
    assert names(tmp_path) == []


FILL = """
import json, resource, sys
from pathlib import Path
import torch
from bge_export.checkpoint import hub
from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.request import Request
torch.set_num_threads(1)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for case in json.loads(sys.argv[1]):
    checkpoint, options = Path(case["checkpoint"]), Options(pooling="cls")
    request = Request(model="tiny", target=case["target"], checkpoint=checkpoint, options=options)
    resource.setrlimit(resource.RLIMIT_FSIZE, (case["size_bytes"], hard))  # Python ignores SIGXFSZ: writes fail
    try:
        text = export(request, Path(case["out"])).name
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(json.dumps(text), flush=True)
"""

# The checkpoint's weights take 136 kB and its tokenizer.json 155 kB or more.
FULL = {
    "a weight": {"target": "cpu-fp32", "size_bytes": 100_000},
    "the tokenizer": {"target": "cpu-fp32", "size_bytes": 150_000},
    "the tokenizer, portable": {"target": "portable", "size_bytes": 150_000},
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """What exports end with whose files must not grow beyond a size, and the folder that each was to write to."""
    folder = tmp_path_factory.mktemp("filled")
    sizes = {"hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4, "max_position_embeddings": 16}
    checkpoint = write_checkpoint(folder / "checkpoint", vocab_size=8400, **sizes)
    assert (checkpoint / "tokenizer.json").stat().st_size > 155_000
    assert (checkpoint / "model-00000.safetensors").stat().st_size < 145_000
    outs = {"checkpoint": str(checkpoint)}
    cases = [case | outs | {"out": str(folder / name / "out")} for name, case in FULL.items()]
    with child(FILL, json.dumps(cases)) as process:
        lines = process.communicate(timeout=4 * WAIT_S)[0].splitlines()
    assert process.returncode == 0
    return {name: (json.loads(line), folder / name) for name, line in zip(FULL, lines, strict=True)}


@pytest.mark.parametrize("name", FULL)
def test_an_export_onto_a_disk_that_fills_up(filled, name):
    """A disk that fills up at any file of an export is an error that says so and how much room is needed."""
    text, folder = filled[name]
    assert not folder.exists()  # it was made for the export
    assert text.startswith(f"BundleError: {folder / 'out'}: expected room for about ")
    assert "found the disk full" in text
    assert "Nothing was left behind. Free some space, or choose another --out." in text


def test_a_link_is_written_through(tiny_request, tmp_path):
    """--force at a link replaces the bundle that it points to, and the link stays."""
    export(tiny_request, tmp_path / "real")
    (tmp_path / "current").symlink_to("real")
    before = (tmp_path / "real").stat().st_ino
    export(tiny_request, tmp_path / "current", force=True)
    assert (tmp_path / "real").stat().st_ino != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "real"]
    assert (tmp_path / "current").is_symlink()
