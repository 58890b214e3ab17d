"""Opening a bundle: it works wherever it lies, and whatever is wrong with its files is said before anything runs."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from bge_onnx import Bundle, BundleError, Embedder, ProviderError
from bge_onnx.bundle.manifest import sealed
from bge_onnx.bundle.records import FORMAT_VERSION, NOT_IN_JSON, OLDEST_VERSION
from bge_onnx.run.onnx_runtime import ort
from tiny import edit_json, edit_manifest, seal, write_json

VERSIONS = f"{OLDEST_VERSION} to {FORMAT_VERSION}"
TEXTS = ["", "a", "what is bm25?", "one two three " * 40]
KEYS = sorted({field.name for field in dataclasses.fields(Bundle)} - {*NOT_IN_JSON, "format_version"})


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    """A copy of the tiny bundle, free to be damaged."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def refusal(folder, **options):
    """The text of the BundleError that opening a folder ends with."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder, **options)
    return str(caught.value)


def test_the_manifest_comes_back_as_it_was_written(tiny_bundle):
    """What `open` gives is what bundle.json holds, no key more or less."""
    record = json.loads((tiny_bundle / "bundle.json").read_text(encoding="utf-8"))
    found = json.loads(json.dumps(Bundle.open(tiny_bundle, verify=True).to_json()))
    assert sealed(found) == record
    assert sorted(record) == sorted([*KEYS, "format_version", "sha256"])


def test_no_folder(tmp_path):
    """A folder that does not exist is told from one without a bundle, with the command that makes one."""
    text = refusal(tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'}: expected a bundle (a folder with bundle.json), found no such folder." in text
    assert f"Make one with `bge-export run MODEL --out {tmp_path / 'nowhere'}`." in text


def test_no_manifest(bundle):
    """A folder without bundle.json is no bundle, whatever else is in it."""
    (bundle / "bundle.json").unlink()
    assert f"{bundle}: expected a bundle (a folder with bundle.json), found a folder without one." in refusal(bundle)


@pytest.mark.parametrize("content", [b"", b"{'format_version': 1}", b'{"format_version": 1, ', b"\xff\xfe\x00"])
def test_a_manifest_that_is_not_json(bundle, content):
    """A bundle.json that cannot be parsed is an error with its name."""
    (bundle / "bundle.json").write_bytes(content)
    text = refusal(bundle)
    assert f"{bundle / 'bundle.json'}: expected a JSON manifest, found " in text
    assert "Export the bundle again." in text


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (FORMAT_VERSION + 1, "Upgrade bge-onnx."),
        (99, "Upgrade bge-onnx."),
        (0, "Export it again."),
        (OLDEST_VERSION - 1, "Export it again."),
        ("1", "Export it again."),
        (None, "Export it again."),
    ],
)
def test_another_format_version(bundle, version, advice):
    """A newer format asks for an upgrade, anything else for a new export; both versions are told."""
    edit_manifest(bundle, format_version=version)
    text = refusal(bundle)
    assert f"{bundle / 'bundle.json'}: expected format_version {VERSIONS}, found {version!r}.\n    {advice}" in text


def test_a_newer_format_is_told_before_its_keys(bundle):
    """A newer manifest that lost and gained keys asks for the upgrade, and not to export again."""
    edit_manifest(bundle, remove=KEYS, format_version=FORMAT_VERSION + 1, surprise=True)
    assert "Upgrade bge-onnx." in refusal(bundle)


@pytest.mark.parametrize("content", [[], None, "bundle", 1, {}])
def test_a_manifest_without_a_version(bundle, content):
    """JSON that is no manifest is an error like one of another format, not a Python traceback."""
    write_json(bundle / "bundle.json", content)
    assert f"expected format_version {VERSIONS}, found None.\n    Export it again." in refusal(bundle)


ADDED = {"similarity", "truncate_dim"}
"""Keys that bundles of format 4 have not."""


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ADDED])
def test_a_missing_key(bundle, key):
    """Every key that format 4 had is needed, and the one that is missing is named."""
    edit_manifest(bundle, remove=[key])
    text, wanted = refusal(bundle), f"expected a manifest of format {FORMAT_VERSION}, found an edited or damaged one"
    assert f"{bundle / 'bundle.json'}: {wanted}" in text
    assert f"'{key}'" in text
    assert "Export the bundle again." in text


@pytest.mark.parametrize("place", [(), ("source",), ("parity",), ("parity", "heads", "dense"), ("files", "model.onnx")])
def test_an_unknown_key(bundle, place):
    """A key that this version does not know is an error that names it, at any depth of the manifest."""
    record = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    inner = record
    for key in place:
        inner = inner[key]
    inner["surprise"] = 1
    write_json(bundle / "bundle.json", record)
    seal(bundle)
    text = refusal(bundle)
    assert "found an edited or damaged one" in text
    assert "'surprise'" in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layout": "ragged"}, "layout: expected 'equal' or 'padded' or 'packed' or 'whole', found 'ragged'"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"max_tokens": "512"}, "max_tokens: expected a whole number, found '512'"),
        ({"max_tokens": True}, "max_tokens: expected a whole number, found True"),
        ({"max_tokens": 10**400}, "max_tokens 1000"),
        ({"normalized": 1}, "normalized: expected true or false, found 1"),
        ({"outputs": {}}, "outputs of no head"),
        ({"outputs": {"dense": None}}, "outputs.dense: expected a string, found None"),
        ({"dims": {"dense": -1}}, "dims.dense -1"),
        ({"dims": {"sparse": 8}}, "dims of sparse"),
        ({"truncate_dim": 0}, "truncate_dim 0"),
        ({"truncate_dim": -3}, "truncate_dim -3"),
        ({"special_ids": {"cls": 101}}, "special_ids without pad"),
        ({"special_ids": {"pad": 1.5}}, "special_ids.pad: expected a whole number, found 1.5"),
        ({"special_ids": {"pad": -1}}, "special_ids.pad -1"),
        ({"prompts": {"query": 7}}, "prompts.query: expected a string, found 7"),
        ({"prompts": ["query: "]}, "prompts: expected a JSON object, found ['query: ']"),
        (
            {"quality": {"stsb": {"spearman": float("nan")}}},
            "quality.stsb.spearman: expected a finite number, found nan",
        ),
        ({"kernels": [1]}, "kernels[0]: expected a string, found 1"),
        ({"graph": "other.onnx"}, "other.onnx is not among the files"),
        ({"graph": "../model.onnx"}, "../model.onnx is not among the files"),
        ({"tokenizer": "other.json"}, "other.json is not among the files"),
        ({"files": []}, "files: expected a JSON object, found []"),
        ({"source": None}, "source: expected a JSON object, found None"),
    ],
    ids=str,
)
def test_a_senseless_value(bundle, changes, reason):
    """A value that nothing could run with is found when the bundle is opened, and named."""
    edit_manifest(bundle, **changes)
    text = refusal(bundle)
    assert "found an edited or damaged one" in text
    assert reason in text


@pytest.mark.parametrize(
    "changes", [{"max_tokens": 51}, {"prompts": {"query": "other: ", "passage": ""}}, {"normalized": False}], ids=str
)
def test_an_edited_manifest(bundle, changes):
    """A value that could have been right is found by the manifest's own hash: it would change vectors in silence."""
    edit_json(bundle / "bundle.json", **changes)
    assert "found an edited or damaged one (its hash is " in refusal(bundle)


def test_a_bundle_of_the_oldest_format(bundle, tiny):
    """A manifest of format 4, which has no hash of its own, opens and gives the same vectors."""
    edit_json(bundle / "bundle.json", remove=["sha256"], format_version=OLDEST_VERSION)
    found = Embedder.open(bundle, threads=1)
    assert found.bundle.format_version == 4
    np.testing.assert_array_equal(found.embed(TEXTS).dense, tiny.embed(TEXTS).dense)


@pytest.mark.parametrize("verify", [False, True])
def test_a_missing_file(bundle, verify):
    """A file that is not there is named."""
    (bundle / "model.onnx_data").unlink()
    assert refusal(bundle, verify=verify) == (
        f"{bundle}: 1 of 3 files are not as exported:\n    model.onnx_data   missing\n"
        "    Copy the bundle again, or export it again."
    )


def test_all_faulty_files_are_listed_at_once(bundle):
    """One error lists the files that are missing, cut or longer than they were, with both sizes."""
    (bundle / "tokenizer.json").unlink()
    data, graph = (bundle / "model.onnx_data").read_bytes(), (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx_data").write_bytes(data[:1000])
    (bundle / "model.onnx").write_bytes(graph + b"\0")
    text = refusal(bundle)
    assert f"{bundle}: 3 of 3 files are not as exported:" in text
    assert "tokenizer.json   missing" in text
    assert f"model.onnx_data   expected {len(data)} bytes, found 1000" in text
    assert f"model.onnx   expected {len(graph)} bytes, found {len(graph) + 1}" in text


def test_a_folder_in_the_place_of_a_file(bundle):
    """A folder that has the name of a file does not pass for it."""
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    assert "model.onnx   missing" in refusal(bundle)


def test_an_edited_file_of_the_same_size(bundle):
    """One changed byte is found with verify=True, and named; sizes alone cannot show it."""
    path = bundle / "model.onnx_data"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    assert Bundle.open(bundle).name == "tiny-cpu-fp32"
    text = refusal(bundle, verify=True)
    wanted = Bundle.open(bundle).files["model.onnx_data"].sha256[:16]
    assert f"1 of 3 files are not as exported:\n    model.onnx_data   expected sha256 {wanted}…, found another" in text
    with pytest.raises(BundleError, match="found another"):
        Embedder.open(bundle, verify=True)


@pytest.mark.parametrize("name", ["../secret.txt", "onnx/../../secret.txt", "{absolute}"])
def test_a_file_outside_the_bundle(bundle, name):
    """A manifest cannot name a file outside its folder, even one that is there and has that size."""
    secret = bundle.parent / "secret.txt"
    secret.write_text("secret")
    (bundle / "onnx").mkdir()
    name = name.format(absolute=secret)
    record = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    record["files"][name] = {"sha256": "0" * 64, "size_bytes": 6}
    write_json(bundle / "bundle.json", record)
    seal(bundle)
    text = refusal(bundle)
    assert f"{name!r} lies outside the bundle" in text
    assert "found an edited or damaged one" in text


def test_a_provider_that_is_not_there(bundle, monkeypatch):
    """A bundle for CUDA is refused where ONNX Runtime offers only the CPU: the error names both, and the way out."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    edit_manifest(bundle, provider="CUDAExecutionProvider")
    embedder = Embedder.open(bundle, threads=1)
    with pytest.raises(ProviderError) as caught:
        embedder.embed(["a"])
    assert str(caught.value) == (
        f"the bundle tiny-cpu-fp32 is lowered for CUDAExecutionProvider; onnxruntime {ort.__version__} here offers "
        "CPUExecutionProvider only.\n    Install bge-onnx[cuda] for CUDA, or export a bundle for cpu."
    )


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_fails_to_start(bundle, monkeypatch):
    """A provider that ONNX Runtime lists but cannot start is refused too, though ONNX Runtime falls back to the CPU."""
    offered = ["QNNExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    edit_manifest(bundle, provider="QNNExecutionProvider")
    embedder = Embedder.open(bundle, threads=1)
    with pytest.raises(ProviderError) as caught:
        embedder.embed(["a"])
    assert "is lowered for QNNExecutionProvider; onnxruntime" in str(caught.value)
    assert "here offers CPUExecutionProvider only." in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"no graph"], ids=["empty", "garbage"])
def test_a_graph_that_does_not_load(bundle, damage):
    """A damaged graph under a manifest that fits it is an error with its path and the next step, not ONNX Runtime's."""
    (bundle / "model.onnx").write_bytes(damage)
    record = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    record["files"]["model.onnx"]["size_bytes"] = len(damage)
    write_json(bundle / "bundle.json", record)
    seal(bundle)
    with pytest.raises(BundleError) as caught:
        Embedder.open(bundle, threads=1).embed(["a"])
    assert f"{bundle / 'model.onnx'}: ONNX Runtime {ort.__version__} cannot load this graph: " in str(caught.value)
    assert "Check the files with `bge info --verify`, or export the bundle again." in str(caught.value)


def test_a_tokenizer_that_does_not_load(bundle):
    """A damaged tokenizer.json under a manifest that fits it is an error with its path."""
    (bundle / "tokenizer.json").write_text("{}")
    record = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    record["files"]["tokenizer.json"]["size_bytes"] = 2
    write_json(bundle / "bundle.json", record)
    seal(bundle)
    with pytest.raises(BundleError) as caught:
        Embedder.open(bundle, threads=1)
    assert f"{bundle / 'tokenizer.json'}: expected a tokenizer.json, found " in str(caught.value)
    assert "Export the bundle again." in str(caught.value)


def test_a_moved_bundle_opens(bundle, tiny, tmp_path, monkeypatch):
    """A bundle that was moved, renamed and is opened by a relative path gives the same vectors."""
    (tmp_path / "a folder/模型").mkdir(parents=True)
    bundle.rename(tmp_path / "a folder/模型/moved")
    monkeypatch.chdir(tmp_path / "a folder")
    found = Embedder.open("模型/moved", threads=1, verify=True).embed(TEXTS).dense
    np.testing.assert_array_equal(found, tiny.embed(TEXTS).dense)


def test_a_bundle_of_links_opens(bundle, tiny, tmp_path):
    """A bundle in the Hub's cache, where every file is a link to one named after its hash, gives the same vectors."""
    snapshot, blobs = tmp_path / "snapshots/0123abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    files = ["bundle.json", *Bundle.open(bundle).files]
    for number, name in enumerate(files):
        (bundle / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    found = Embedder.open(snapshot, threads=1, verify=True).embed(TEXTS).dense
    np.testing.assert_array_equal(found, tiny.embed(TEXTS).dense)


@pytest.mark.parametrize("sealed_again", [True, False])
def test_more_tokens_than_the_graph_has_positions_for(bundle, sealed_again):
    """A manifest of a longer limit is an error when a longer text comes, and no exception of ONNX Runtime."""
    edit_json(bundle / "bundle.json", max_tokens=5120, format_version=FORMAT_VERSION if sealed_again else 4)
    if sealed_again:
        seal(bundle)
    else:
        edit_json(bundle / "bundle.json", remove=["sha256"])
    with pytest.raises(BundleError, match=r"expected vectors of 1 x \d+ tokens, found "):
        Embedder.open(bundle, threads=1).embed(["tea and coffee " * 2000])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quality": {"stsb": {"spearman": 10**400}}}, "quality.stsb.spearman: expected a finite number"),
        ({"prompts": {"query": "\ud800"}}, "prompts.query: expected a string"),
    ],
)
def test_values_that_json_has_and_numbers_and_texts_have_not(bundle, changes, said):
    """Integers larger than any float, and halves of characters."""
    record = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    (bundle / "bundle.json").write_text(json.dumps(sealed({**record, **changes})), encoding="utf-8")
    assert said in refusal(bundle)
