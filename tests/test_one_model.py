"""An Embedder is one model from `open` to the end, whatever happens to the folder that it was opened from."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bge_export.bundle import writer as bundle_writer
from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.models import random_checkpoint
from bge_export.request import Request
from bge_onnx import Bundle, BundleError, Embedder
from tiny import edit_manifest, write_checkpoint

TEXTS = ["what is bm25?", *(f"text {number} about tea and coffee and more" * 3 for number in range(400))]
"""Enough work for a second session: it is loaded when they are embedded, long after the bundle was opened."""

DECODER = {
    "model_type": "mistral", "vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "max_position_embeddings": 256, "sliding_window": None,
}  # fmt: skip

REPLACED = "expected the bundle that was opened, found that "


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Two exports of one architecture."""
    folder = tmp_path_factory.mktemp("versions")
    for seed in (0, 1):
        checkpoint = write_checkpoint(folder / f"checkpoint{seed}", seed=seed)
        options = Options(pooling="cls")
        export(Request(model="tiny", target="cpu-fp32", checkpoint=checkpoint, options=options), folder / f"v{seed}")
    return folder


@pytest.fixture
def v0(versions, tmp_path):
    """The first, free to be changed."""
    return shutil.copytree(versions / "v0", tmp_path / "bundle")


def opened(folder):
    """An Embedder that has embedded one text, and that text's vector."""
    embedder = Embedder.open(folder, threads=2)
    return embedder, embedder.embed(TEXTS[:1]).dense[0]


def put(versions, folder):
    """Put the second bundle in the first one's place as a whole."""
    folder.rename(folder.with_name("old"))
    shutil.copytree(versions / "v1", folder)


def test_a_link_that_points_elsewhere_later(versions, tmp_path):
    """The folder that a link pointed to when the bundle was opened is the one that is loaded from later."""
    link = tmp_path / "current"
    link.symlink_to(versions / "v0")
    embedder, vector = opened(link)
    link.unlink()
    link.symlink_to(versions / "v1")
    np.testing.assert_array_equal(embedder.embed(TEXTS).dense[0], vector)


def test_a_relative_path_and_another_working_directory(v0, tmp_path, monkeypatch):
    """The folder is found again after os.chdir."""
    monkeypatch.chdir(v0.parent)
    embedder, vector = opened(v0.name)
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(embedder.embed(TEXTS).dense[0], vector)


def test_a_folder_that_another_bundle_took_the_place_of(versions, v0):
    """What is loaded later must be what was opened: another bundle there is an error, and no vectors."""
    embedder, vector = opened(v0)
    put(versions, v0)
    np.testing.assert_array_equal(embedder.embed(TEXTS[:1]).dense[0], vector)  # loaded before
    with pytest.raises(BundleError, match=REPLACED):
        embedder.embed(TEXTS)


def test_an_export_to_the_same_place(versions, v0):
    """`bge-export run --force` in place is noticed likewise."""
    embedder, _ = opened(v0)
    request = Request(
        model="tiny", target="cpu-fp32", checkpoint=versions / "checkpoint1", options=Options(pooling="cls")
    )
    export(request, v0, force=True)
    with pytest.raises(BundleError, match=REPLACED):
        embedder.embed(TEXTS)


def test_a_folder_that_is_gone(v0):
    """What is loaded goes on; what is not yet loaded is an error that says so."""
    embedder, vector = opened(v0)
    shutil.rmtree(v0)
    np.testing.assert_array_equal(embedder.embed(TEXTS[:1]).dense[0], vector)
    with pytest.raises(BundleError, match="is another or gone"):
        embedder.embed(TEXTS)


@pytest.mark.parametrize("what", ["cut", "overwritten", "grown"])
def test_a_file_of_weights_that_is_written_to(versions, v0, what):
    """Somebody copies another file over the mapped one: an error, neither other vectors nor the end of the process."""
    embedder, _ = opened(v0)
    data = v0 / "model.onnx_data"
    if what == "cut":
        os.truncate(data, 4096)
    elif what == "overwritten":
        with data.open("r+b") as file:
            file.write((versions / "v1/model.onnx_data").read_bytes())
    else:
        with data.open("ab") as file:
            file.write(b"\0")
    with pytest.raises(BundleError, match=REPLACED + r"model\.onnx_data was written to"):
        embedder.embed(TEXTS[:1])


@pytest.mark.parametrize("what", ["cut", "overwritten"])
def test_weights_that_are_written_to_before_a_prefix_is_computed(tmp_path, what):
    """Keys and values of a beginning come of the weights that were opened, or not at all."""
    (tmp_path / "checkpoint").mkdir()
    random_checkpoint.write(tmp_path / "checkpoint", DECODER, seed=0, lower_case=False)
    options = Options(pooling="last")
    request = Request(model="tiny", target="cpu-fp32", checkpoint=tmp_path / "checkpoint", options=options)
    export(request, tmp_path / "decoder")
    embedder, _ = opened(tmp_path / "decoder")
    data = tmp_path / "decoder/model.onnx_data"
    if what == "cut":
        os.truncate(data, 4096)
    else:
        data.write_bytes(bytes(255 for _ in range(data.stat().st_size)))
    with pytest.raises(BundleError, match=REPLACED + r"model\.onnx_data was written to"):
        embedder.with_prefix("one two three ")


def test_what_was_measured_later(v0):
    """`bge-export evaluate` and `check` write into the manifest of a bundle that is open: it is the same model."""
    embedder, vector = opened(v0)
    content = pickle.dumps(embedder)
    bundle_writer.record(embedder.bundle, quality={"stsb": {"spearman": 0.5}})
    np.testing.assert_array_equal(embedder.embed(TEXTS).dense[0], vector)
    np.testing.assert_array_equal(pickle.loads(content).embed(TEXTS[:1]).dense[0], vector)


def test_what_was_measured_of_another_model(versions, v0):
    """A bundle that took the place of the one that was measured is left as it is."""
    embedder, _ = opened(v0)
    put(versions, v0)
    before = (v0 / "bundle.json").read_bytes()
    with pytest.raises(BundleError, match="expected the bundle that was measured, found that another took its place"):
        bundle_writer.record(embedder.bundle, quality={"stsb": {"spearman": 0.5}})
    assert (v0 / "bundle.json").read_bytes() == before


def test_measured_by_several_at_once(v0):
    """What several processes record in one bundle is all kept."""
    bundle = Bundle.open(v0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: bundle_writer.record(bundle, quality={f"t{number}": {"x": 1.0}}), range(8)))
    assert sorted(Bundle.open(v0).quality) == [f"t{number}" for number in range(8)]


def test_vectors_that_are_not_finite(v0):
    """NaN in the weights of a bundle is an error, and no vector."""
    path = v0 / "model.onnx_data"
    data = np.fromfile(path, dtype=np.float32)
    data[:] = np.nan
    data.tofile(path)
    with pytest.raises(BundleError, match="expected finite dense vectors, found NaN or infinity"):
        Embedder.open(v0, threads=1).embed(TEXTS[:1])


def test_a_pickle_is_the_same_model(v0):
    """Pickle, copy and deepcopy give an Embedder with the same vectors; so does another process."""
    embedder, vector = opened(v0)
    for other in (pickle.loads(pickle.dumps(embedder)), copy.copy(embedder), copy.deepcopy(embedder)):
        assert other.session.threads == 2
        np.testing.assert_array_equal(other.embed(TEXTS[:1]).dense[0], vector)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).embed(['what is bm25?']).dense.tobytes().hex())"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(embedder), capture_output=True, check=True)
    assert bytes.fromhex(done.stdout.decode()) == vector.tobytes()


def test_a_pickle_of_a_bundle_that_is_another_now(versions, v0):
    """A pickle does not open another bundle in the place of its own."""
    content = pickle.dumps(opened(v0)[0])
    put(versions, v0)
    with pytest.raises(BundleError, match="expected the bundle that the pickled Embedder had"):
        pickle.loads(content)


def test_an_embedder_is_a_key(v0):
    """It can be hashed and weakly referenced, as caches want it; two that are open are two."""
    first, second = (Embedder.open(v0, threads=1) for _ in range(2))
    assert len({first, second, first}) == 2
    assert weakref.ref(first)() is first


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"outputs": {"dense": "other"}}, "output other of width 32, found none"),
        ({"dims": {"dense": 31}}, "output dense of width 31, found 32"),
        ({"layout": "padded"}, "inputs of the layout padded, found input_ids"),
    ],
)
def test_a_manifest_of_another_graph(v0, changes, reason):
    """What the manifest says of the graph is compared with the graph when it is loaded."""
    edit_manifest(v0, **changes)
    with pytest.raises(BundleError, match=f"expected {reason}"):
        Embedder.open(v0, threads=1).embed(TEXTS[:1])


@pytest.mark.parametrize(("name", "number"), [("cls", 7), ("sep", 7), ("unk", 7), ("cls", 102), ("unk", 399)])
def test_special_ids_of_another_tokenizer(v0, name, number):
    """Special tokens that are none in the tokenizer, or not those around a text, are an error at the opening."""
    special = Embedder.open(v0, threads=1).bundle.special_ids
    edit_manifest(v0, special_ids={**special, name: number})
    with pytest.raises(BundleError, match="expected the special tokens of the manifest, found "):
        Embedder.open(v0, threads=1)
