"""Vectors to files: all that can fail is tried before the work, and what was computed is never lost."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bge_onnx import InputError
from bge_onnx.vectors.vector_files import vector_file, write_vectors


def write(chunks, out, *, force=False, then=lambda: None):
    """Write vectors to a file, and do something before it takes its place."""
    with vector_file(out, force=force) as partial:
        count = write_vectors(chunks, partial, arrays=out.suffix == ".npz")
        then()
        return count


def begin(out):
    with vector_file(out, force=True):
        pytest.fail("the work began")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("x.bin", "expected a name that ends in .npz or .jsonl, found .bin."),
        ("x", "expected a name that ends in .npz or .jsonl, found no ending."),
        ("none/x.npz", "expected a file that can be written, found: No such file or directory."),
        ("file/x.npz", "expected a file that can be written, found: Not a directory."),
        ("folder.npz", "expected a file's name, found a folder.\n    Name a file in it: --out "),
        ("dangling.npz", "expected a file that can be written, found: No such file or directory."),
        ("loop.npz", "expected a file that can be written, found: "),
        ("x" * 252 + ".npz", "expected a file that can be written, found: File name too long."),
        ("é" * 126 + ".npz", "expected a file that can be written, found: File name too long."),
        ("x.npz\0", "expected a name that ends in .npz or .jsonl, found .npz"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(tmp_path, name, found):
    """Each is one InputError before any text is embedded, with --force too, and leaves nothing."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "dangling.npz").symlink_to(tmp_path / "none/x.npz")
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as caught:
        begin(tmp_path / name)
    assert found in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["x" * 250 + ".npz", "é" * 124 + ".jsonl"])
def test_names_of_254_bytes(tiny, tmp_path, name):
    """The longest names that the file system allows can be written."""
    assert write([(tiny.embed(["ab"]), [None])], tmp_path / name) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_appears_at_the_end(tiny, tmp_path):
    """Where the last step fails the finished file is kept, and the error names it."""
    out = tmp_path / "x.npz"
    embeddings = tiny.embed(["ab"])
    with pytest.raises(InputError, match=r"Is a directory; what was written is kept as .*\.finished\.") as caught:
        write([(embeddings, [None])], out, force=True, then=out.mkdir)
    kept = next(path for path in tmp_path.iterdir() if path != out)
    assert str(kept) in str(caught.value)
    np.testing.assert_array_equal(np.load(kept)["dense"], embeddings.dense)


def test_a_file_that_appears_is_left_alone(tiny, tmp_path):
    """Without --force a file that appears at --out during the work stays as it is, and so do the vectors."""
    out = tmp_path / "x.jsonl"
    with pytest.raises(InputError, match="File exists; what was written is kept as"):
        write([(tiny.embed(["ab"]), [None])], out, then=lambda: out.write_text("another's"))
    assert out.read_text() == "another's"
    kept = next(path for path in tmp_path.iterdir() if path != out)
    assert json.loads(kept.read_text())["index"] == 0


def test_an_error_on_the_way_leaves_nothing(tiny, tmp_path):
    """Whatever ends the work, no part of a file is left, and an older file stays."""
    (tmp_path / "x.jsonl").write_text("old")

    def chunks():
        yield tiny.embed(["ab"]), [None]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(chunks(), tmp_path / "x.jsonl", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
    assert (tmp_path / "x.jsonl").read_text() == "old"


@pytest.mark.parametrize("ids", [["a", None], [None, None]])
def test_ids(tiny, tmp_path, ids):
    """Ids stand beside the vectors where texts have them; an .npz file has an empty one where one has none."""
    embeddings = tiny.embed(["ab", "cd"])
    assert write([(embeddings, ids)], tmp_path / "x.npz") == 2
    assert write([(embeddings, ids)], tmp_path / "x.jsonl") == 2
    found = np.load(tmp_path / "x.npz")
    assert found["ids"].tolist() == ["a", ""] if ids[0] else "ids" not in found
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [row.get("id") for row in rows] == ids
