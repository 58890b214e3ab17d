"""Checkpoints, bundles and data sets from a Hugging Face Hub: here one on a loopback port, hub_server.py."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bge_export.checkpoint import catalog
from bge_export.evaluate.tasks import KNOWN
from bge_export.export import export
from bge_export.request import Request
from bge_onnx import Bundle, Embedder
from bge_onnx.bundle.hub import find_bundle
from hub_server import TOKEN, Hub, files_of
from tiny import read_weights, store_weights, write_checkpoint

MAIN, OLD = "a1" * 20, "b2" * 20  # commits
NAME, KNOWN_NAME, LARGE = "owner/tiny-bert", "BAAI/bge-small-en-v1.5", "owner/large"
CHUNK_BYTES = 10 << 20  # huggingface_hub keeps what it received in whole chunks of this size
ATTEMPTS = 6  # GETs of a file before huggingface_hub gives up
TEXTS = ["ab cd", "", "Ünïcode 中文", "ab " * 50]
JUNK = dict.fromkeys(("README.md", ".gitattributes", "onnx/model.onnx", "imgs/x.png", "pytorch_model.bin"), b"junk")
NEEDED = {
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "model.safetensors",
}

# HF_* count when huggingface_hub is imported, so a process of its own runs the commands; one process for several,
# because importing PyTorch takes seconds. time.sleep is what huggingface_hub does between its attempts.
COMMANDS = """
import contextlib, importlib, io, json, sys, time, traceback
time.sleep = lambda seconds: None
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            importlib.import_module(module).main()
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""

FETCHES = """
import importlib, json, sys, time
time.sleep = lambda seconds: None
for module, function, *arguments in json.loads(sys.argv[1]):
    try:
        found = getattr(importlib.import_module(module), function)(*arguments)
        print(json.dumps(str(found[0] if isinstance(found, tuple) else found)))
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""

OPEN = """
import sys, numpy
from bge_onnx import Embedder
for revision, out in (None, sys.argv[2]), ("v1", sys.argv[3]):
    bge = Embedder.open(sys.argv[1], threads=2, revision=revision, verify=True)
    numpy.save(out, bge.embed(sys.argv[4:]).dense)
    print(bge.bundle.folder)
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Commit -> folder of a checkpoint, its weights in one model.safetensors."""
    folders = {MAIN: tmp_path_factory.mktemp("main"), OLD: tmp_path_factory.mktemp("old")}
    for seed, folder in enumerate(folders.values()):
        modules = ("Transformer", "Pooling", "Normalize")
        write_checkpoint(folder, seed=seed, modules=modules, pooling_config={"pooling_mode_cls_token": True})
        store_weights(folder, read_weights(folder))
    return folders


@pytest.fixture(scope="module")
def bundles(checkpoints, tmp_path_factory) -> dict[str, Path]:
    """Commit -> bundle exported from that commit's local folder."""
    out = tmp_path_factory.mktemp("bundles")
    for commit, folder in checkpoints.items():
        export(Request(model=NAME, target="cpu-fp32", checkpoint=folder), out / commit)
    return {commit: out / commit for commit in checkpoints}


@pytest.fixture(scope="module")
def hub(checkpoints):
    """A Hub with checkpoints: as BAAI publishes them, of several commits, and such that cannot be exported."""
    with Hub() as hub:
        files = {commit: files_of(folder) for commit, folder in checkpoints.items()}
        hub.add(NAME, files[MAIN] | JUNK, commit=MAIN)
        hub.add(NAME, files[OLD] | JUNK, commit=OLD, branch="v1")
        hub.add(KNOWN_NAME, files[MAIN], commit=catalog.find(KNOWN_NAME).revision, branch="an-old-tag")
        hub.add(KNOWN_NAME, files[OLD], commit=OLD)
        hub.add("owner/gated", files[MAIN], access="gated")
        hub.add("owner/private", files[MAIN], access="private")
        old = {f"0_Transformer/{name}": content for name, content in files[MAIN].items() if "/" not in name}
        old["0_Transformer/sentence_xlm-roberta_config.json"] = b'{"max_seq_length": 16}'
        old["1_Pooling/config.json"] = files[MAIN]["1_Pooling/config.json"]
        old["modules.json"] = files[MAIN]["modules.json"].replace(b'"path": ""', b'"path": "0_Transformer"')
        hub.add("owner/oldest", old | {"0_Transformer/tokenizer.model": b"\0", "README.md": b"junk"})
        hub.add("owner/only-onnx", {"config.json": files[MAIN]["config.json"], "onnx/model.onnx": b""})
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A cache for the commands that share one."""
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def first_run(hub, home, tmp_path_factory):
    """`bge-export run` of a Hub name into an empty cache, with a token: the process, the bundle, the requests."""
    out = tmp_path_factory.mktemp("first") / "bundle"
    code = "from bge_export.cli.main import main; main()"
    result = python(code, "run", NAME, "--out", out, hub=hub, home=home, HF_TOKEN=TOKEN)
    assert result.returncode == 0, result.stderr
    return result, out, [seen for seen in hub.seen if NAME in seen.path]


def python(code, *arguments, hub, home, **environment):
    """A Python process that knows no other Hub than `hub` (or its URL) and no other cache than `home`."""
    strange = ("HF_", "HUGGINGFACE", "TRANSFORMERS_", "BGE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    inherited = {key: value for key, value in os.environ.items() if not key.upper().startswith(strange)}
    environment = {"HF_ENDPOINT": getattr(hub, "url", hub), "HF_HOME": str(home), **environment}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**inherited, **environment})


def results(code, calls, **where):
    """What each of `calls` came to, run one after another in a process of their own."""
    process = python(code, json.dumps(list(calls), default=str), **where)
    assert process.returncode == 0, process.stderr
    found = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(found) == len(calls)
    return found


def run(*calls, **where):
    """Exit code, stdout and stderr of each call (module, argument, …)."""
    found = results(COMMANDS, calls, **where)
    return [subprocess.CompletedProcess(call, *one) for call, one in zip(calls, found, strict=True)]


def at(commit, paths):
    return sorted(f"{commit}/{path}" for path in paths)


def test_run_exports_what_main_points_to(first_run, bundles, checkpoints):
    """`bge-export run OWNER/NAME` gives the bundle of the repository's main branch, and notes its commit."""
    found, local = Bundle.open(first_run[1], verify=True), Bundle.open(bundles[MAIN])
    assert (found.source.kind, found.source.revision) == ("hub", MAIN)
    assert found.source.sha256 == local.source.sha256
    assert (found.name, found.files) == (local.name, local.files)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_only_the_needed_files_are_asked_for(hub, first_run, method):
    """One copy of the weights and the small files are downloaded, once; no other format, no README, no pictures."""
    assert [path for path in hub.files(method, NAME) if path.startswith(MAIN)] == at(MAIN, NEEDED)


def test_the_token_goes_with_every_request(hub, first_run):
    """HF_TOKEN is sent as a Bearer header with the listing and with each file."""
    assert first_run[2]
    assert {seen.authorization for seen in first_run[2]} == {f"Bearer {TOKEN}"}


def test_nothing_of_progress_goes_to_stdout(first_run):
    """Off a terminal, too, a run with a download leaves stdout empty: bars and reports are stderr's."""
    assert first_run[0].stdout == ""
    assert f"exporting {NAME} for cpu-fp32\n" in first_run[0].stderr


@pytest.fixture(scope="module")
def revisions(hub, home, first_run, tmp_path_factory):
    """Runs at other revisions than main's, and a check, in the cache of the first run."""
    out = tmp_path_factory.mktemp("revisions")
    calls = {
        "tag": ("run", NAME, "--revision", "v1", "--out", out / "tag"),
        "known": ("run", KNOWN_NAME, "--out", out / "known"),
        "short": ("run", KNOWN_NAME.split("/")[1], "--out", out / "short"),
        "check": ("check", out / "tag"),
    }
    found = run(*(("bge_export.cli.main", *call) for call in calls.values()), hub=hub, home=home)
    return out, dict(zip(calls, found, strict=True))


@pytest.mark.parametrize(
    ("case", "commit", "weights"),
    [
        ("tag", OLD, OLD),
        ("known", catalog.find(KNOWN_NAME).revision, MAIN),
        ("short", catalog.find(KNOWN_NAME).revision, MAIN),
    ],
)
def test_the_revision_decides(revisions, bundles, case, commit, weights):
    """--revision takes a tag's commit, a known name the catalog's pinned one, whatever main points to."""
    out, found = revisions
    assert found[case].returncode == 0, found[case].stderr
    bundle = Bundle.open(out / case)
    assert bundle.source.revision == commit
    assert bundle.files == Bundle.open(bundles[weights]).files


def test_a_known_name_asks_for_its_pinned_revision_alone(hub, revisions):
    """Listing and files of a known model are asked for at the pinned commit, once for both of its names."""
    pinned = catalog.find(KNOWN_NAME).revision
    assert {seen.path for seen in hub.seen if seen.path.startswith("/api/") and KNOWN_NAME in seen.path} == {
        f"/api/models/{KNOWN_NAME}/tree/{pinned}"
    }
    assert hub.files("GET", KNOWN_NAME) == at(pinned, NEEDED)


def test_check_finds_the_weights_again(hub, revisions):
    """`bge-export check` takes the weights of the bundle's commit from the cache, where equal files lie once."""
    assert revisions[1]["check"].returncode == 0, revisions[1]["check"].stderr
    assert [path for path in hub.files("GET", NAME) if path.startswith(OLD)] == at(OLD, ["model.safetensors"])


TO_DO = r"\n    Check the name, HF_TOKEN \(for private models\) and the network, or give a folder with --checkpoint\."


def test_every_file_of_the_oldest_form_is_fetched(hub, tmp_path):
    """A model in the first module's folder comes with its tokenizer.model and its sentence_xlm-roberta_config.json."""
    (result,) = run(
        ("bge_export.cli.main", "run", "owner/oldest", "--out", tmp_path / "out"), hub=hub, home=tmp_path / "hf"
    )
    assert result.returncode == 0, result.stderr
    assert Bundle.open(tmp_path / "out").max_tokens == 16
    fetched = {path.partition("/")[2] for path in hub.files("GET", "owner/oldest")}
    wanted = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "tokenizer.model"}
    wanted |= {"sentence_xlm-roberta_config.json"}
    assert fetched == {f"0_Transformer/{name}" for name in wanted} | {"modules.json", "1_Pooling/config.json"}


REFUSED = {
    "missing": ("none/there", (), "HfHubHTTPError: .*401"),
    "private": ("owner/private", (), "HfHubHTTPError: .*401"),
    "gated": ("owner/gated", (), "GatedRepoError: 401"),
    "revision": (NAME, ("--revision", "v9"), "at revision v9, found RevisionNotFoundError: 404"),
    "weights": ("owner/only-onnx", (), "expected weights"),
    "name": ("owner/tiny/bert", (), "owner/tiny/bert"),
}


@pytest.fixture(scope="module")
def refused(hub, tmp_path_factory):
    """What runs without a token came to that cannot succeed."""
    folder = tmp_path_factory.mktemp("refused")
    calls = [("bge_export.cli.main", "run", name, *more, "--out", folder / "out") for name, more, _ in REFUSED.values()]
    return dict(zip(REFUSED, run(*calls, hub=hub, home=folder / "hf"), strict=True))


@pytest.mark.parametrize(
    "case",
    [
        *list(REFUSED)[:-1],
        "name",
    ],
)
def test_a_repository_that_cannot_be_had_is_exit_2(refused, case):
    """A repository, revision or weights that are not to be had end in exit 2 and one message, not in a traceback."""
    found, name = refused[case], REFUSED[case][0]
    assert (found.returncode, found.stdout) == (2, "")
    lines = found.stderr.splitlines()
    assert lines[0] == f"exporting {name} for cpu-fp32"
    assert lines[1].startswith(f"CheckpointError: {name}: expected ")


@pytest.mark.parametrize("case", ["missing", "private", "gated", "revision"])
def test_the_error_says_what_to_do(refused, case):
    """The message names what the Hub said, and the ways out: the name, HF_TOKEN, the network, a local folder."""
    assert re.search(REFUSED[case][2] + ".*" + TO_DO, refused[case].stderr)


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("none/there", TOKEN, "found RepositoryNotFoundError: 404 Client Error"),
        (NAME, "hf_wrong", "found HfHubHTTPError: Client error '401 Unauthorized'"),
    ],
    ids=["missing", "wrong token"],
)
def test_a_token_that_does_not_help(hub, tmp_path, name, token, message):
    """With a token the Hub says 404 of what is not there, and 401 of everything to a wrong one: both are told."""
    (found,) = results(
        FETCHES, [("bge_export.checkpoint.hub", "download", name, None)], hub=hub, home=tmp_path, HF_TOKEN=token
    )
    assert found.startswith(f"CheckpointError: {name}: expected a repository on {hub.url} at revision main, {message}")


@pytest.fixture(scope="module")
def unreachable():
    """The URL of a port that refuses every connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def offline(hub, home, revisions, tmp_path_factory):
    """Runs with HF_HUB_OFFLINE=1 in the cache of the first run, and the requests that they made all the same."""
    out, before = tmp_path_factory.mktemp("offline"), len(hub.seen)
    names = {"safetensors alone": KNOWN_NAME, "two formats": NAME, "not cached": "owner/never-seen"}
    calls = [("bge_export.cli.main", "run", name, "--out", out / case) for case, name in names.items()]
    found = run(*calls, hub=hub, home=home, HF_HUB_OFFLINE="1")
    return out, dict(zip(names, found, strict=True)), hub.seen[before:]


@pytest.mark.parametrize(
    "case",
    ["safetensors alone", "two formats"],
)
def test_offline_exports_from_the_cache(offline, bundles, case):
    """With HF_HUB_OFFLINE=1 a checkpoint that was downloaded once is exported again, whatever else its Hub holds."""
    out, found, _ = offline
    assert found[case].returncode == 0, found[case].stderr
    assert Bundle.open(out / case).files == Bundle.open(bundles[MAIN]).files


def test_offline_without_the_files_is_exit_2(offline):
    """With HF_HUB_OFFLINE=1 and nothing in the cache the error names that variable, and the way without the Hub."""
    found = offline[1]["not cached"]
    assert (found.returncode, found.stdout) == (2, "")
    assert "CheckpointError: owner/never-seen: expected a repository" in found.stderr
    assert "HF_HUB_OFFLINE" in found.stderr
    assert "give a folder with --checkpoint" in found.stderr


def test_offline_asks_nobody(offline):
    """With HF_HUB_OFFLINE=1 no request leaves the process."""
    assert offline[2] == []


BUNDLE = ("bge_onnx.bundle.hub", "find_bundle")
CHECKPOINT = ("bge_export.checkpoint.hub", "download")
TASK = ("bge_export.evaluate.tasks", "open_task")


@pytest.fixture(scope="module")
def without_network(unreachable, home, first_run):
    """What each way to the Hub comes to when it refuses connections, though nobody said HF_HUB_OFFLINE."""
    calls = {
        "cached checkpoint": (*CHECKPOINT, NAME, None),
        "checkpoint": (*CHECKPOINT, "owner/never-seen", None),
        "bundle": (*BUNDLE, "owner/never-seen"),
        "task": (*TASK, "stsb", None),
    }
    return dict(zip(calls, results(FETCHES, calls.values(), hub=unreachable, home=home), strict=True))


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("cached checkpoint", "{snapshot}"),
        ("checkpoint", "CheckpointError: "),
        ("bundle", "BundleError: "),
        ("task", "InputError: "),
    ],
)
def test_a_dead_network_takes_the_cache_or_is_our_error(without_network, home, case, expected):
    """Where no connection can be made the cache serves; what is not in it ends in an error of ours."""
    assert without_network[case].startswith(expected.format(snapshot=in_cache(home, NAME, MAIN, "")))


STSB, SCIFACT = KNOWN["stsb"], KNOWN["scifact"]
PAIRS = [("ab cd", "ab cd", 5.0), ("ab cd", "ef", 1.5), ("gh ij", "gh", 3.0), ("kl", "mn op", 0.0), ("", "qr", 2.0)]
PAIRS_JSONL = "".join(json.dumps({"sentence1": a, "sentence2": b, "score": score}) + "\n" for a, b, score in PAIRS)
PAIRS_GZ = gzip.compress(PAIRS_JSONL.encode(), mtime=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """A download whose connection breaks: who downloads, which file, where its answers end, and what is asked for."""

    call: tuple[str | None, ...]
    repository: str
    file: str
    content: bytes
    cuts: list[int]
    ranges: list[str | None]


NOISE = np.random.default_rng(0).bytes(CHUNK_BYTES + 1000)
FOR_GOOD = {"cuts": [50] * ATTEMPTS, "ranges": [None] * (ATTEMPTS + 1)}
BREAKS = {
    "after a chunk": Break(
        call=(*CHECKPOINT, "owner/large", None),
        repository="owner/large",
        file="model.safetensors",
        content=NOISE,
        cuts=[CHUNK_BYTES + 500],
        ranges=[None, f"bytes={CHUNK_BYTES}-"],
    ),
    "before a chunk": Break(
        call=(*CHECKPOINT, "owner/small", None),
        repository="owner/small",
        file="model.safetensors",
        content=NOISE[:1000],
        cuts=[500],
        ranges=[None, None],
    ),
    "checkpoint": Break(
        call=(*CHECKPOINT, "owner/broken", None),
        repository="owner/broken",
        file="model.safetensors",
        content=NOISE,
        cuts=[CHUNK_BYTES + 500, *[0] * (ATTEMPTS - 1)],
        ranges=[None, *[f"bytes={CHUNK_BYTES}-"] * (ATTEMPTS - 1), None],
    ),
    "bundle": Break(
        call=(*BUNDLE, "owner/bundle"),
        repository="owner/bundle",
        file="model.onnx",
        content=NOISE[:1000],
        **FOR_GOOD,
    ),
    "task": Break(
        call=(*TASK, "stsb", None),
        repository=f"datasets/{STSB.repository}",
        file=STSB.files[0],
        content=PAIRS_GZ,
        **FOR_GOOD,
    ),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Two tries of each download whose connection breaks: the Hub, the cache, and what the tries came to."""
    home, manifest = tmp_path_factory.mktemp("hf"), json.dumps({"files": {"model.onnx": {}}}).encode()
    with Hub() as hub:
        for case in BREAKS.values():
            files = {"config.json": b"{}", "bundle.json": manifest, case.file: case.content}
            hub.add(case.repository, files, commit=STSB.revision)
            hub.cuts[f"{case.repository}/{case.file}"] = list(case.cuts)
        tries = [case.call for case in BREAKS.values() for _ in range(2)]
        found = results(FETCHES, tries, hub=hub, home=home)
        yield hub, home, dict(zip(BREAKS, zip(found[::2], found[1::2], strict=True), strict=True))


def in_cache(home, repository, commit, file):
    kind, name = ("datasets", repository[9:]) if repository.startswith("datasets/") else ("models", repository)
    return home / "hub" / f"{kind}--{name.replace('/', '--')}" / "snapshots" / commit / file


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_download_goes_on(broken, case):
    """After a break the rest is asked for from the last whole chunk of 10 MiB on; the next call starts from nothing."""
    hub, home, _ = broken
    wanted, path = BREAKS[case], f"/{BREAKS[case].repository}/resolve/{STSB.revision}/{BREAKS[case].file}"
    assert [seen.range for seen in hub.seen if seen.method == "GET" and seen.path == path] == wanted.ranges
    assert in_cache(home, wanted.repository, STSB.revision, wanted.file).read_bytes() == wanted.content


@pytest.mark.parametrize("case", BREAKS)
def test_a_second_try_fetches_only_what_is_missing(broken, case):
    """Whatever the first try came to, the second succeeds, and what had arrived whole is not asked for again."""
    hub, _, found = broken
    assert "Error" not in found[case][1]
    whole = [path for path in hub.files("GET", BREAKS[case].repository) if not path.endswith(BREAKS[case].file)]
    assert whole == sorted(set(whole))


@pytest.mark.parametrize(
    ("case", "error"), [("checkpoint", "CheckpointError"), ("bundle", "BundleError"), ("task", "InputError")]
)
def test_a_connection_that_keeps_breaking_is_our_error(broken, case, error):
    """When huggingface_hub gives up, the error is ours and says what to do."""
    assert broken[2][case][0].startswith(f"{error}: {BREAKS[case].repository.removeprefix('datasets/')}: expected ")


@pytest.fixture(scope="module")
def bundle_hub(bundles):
    """A Hub with a bundle of two revisions among other files, and with repositories that are no bundle."""
    with Hub() as hub:
        files = {commit: files_of(folder) for commit, folder in bundles.items()}
        hub.add("owner/bundle", files[MAIN] | JUNK, commit=MAIN)
        hub.add("owner/bundle", files[OLD] | JUNK, commit=OLD, branch="v1")
        hub.add("owner/checkpoint", {"config.json": b"{}", "model.safetensors": b""})
        hub.add("owner/incomplete", {"bundle.json": files[MAIN]["bundle.json"]})
        hub.add("owner/no-files", {"bundle.json": b"{}"})
        hub.add("owner/a-list", {"bundle.json": b"[]"})
        hub.add("owner/a-number", {"bundle.json": b'{"files": 3}'})
        hub.add("owner/gated", files[MAIN], access="gated")
        yield hub


@pytest.fixture(scope="module")
def opened(bundle_hub, tmp_path_factory):
    """The bundle opened by its name, at main and at v1: commit -> its folder and the vectors of TEXTS; the cache."""
    home, out = tmp_path_factory.mktemp("hf"), tmp_path_factory.mktemp("vectors")
    found = python(OPEN, "owner/bundle", out / "main.npy", out / "old.npy", *TEXTS, hub=bundle_hub, home=home)
    assert found.returncode == 0, found.stderr
    main, old = map(Path, found.stdout.splitlines())  # and nothing else on stdout
    return {MAIN: (main, np.load(out / "main.npy")), OLD: (old, np.load(out / "old.npy"))}, home


@pytest.mark.parametrize("commit", [MAIN, OLD])
def test_a_bundle_opens_by_its_hub_name(opened, bundles, commit):
    """`Embedder.open("owner/name", revision=…)` gives the vectors of that bundle as a local folder, bit for bit."""
    local = Embedder.open(bundles[commit], threads=2)
    np.testing.assert_array_equal(opened[0][commit][1], local.embed(TEXTS).dense)


def test_graph_and_weights_load_through_the_links_of_the_cache(opened):
    """The cache's files are links into a folder of blobs; ONNX Runtime finds the weights beside the graph's link."""
    folder = opened[0][MAIN][0]
    assert folder == in_cache(opened[1], "owner/bundle", MAIN, "")
    assert (folder / "model.onnx").is_symlink()
    assert (folder / "model.onnx_data").is_symlink()


def test_only_files_of_the_manifest_are_downloaded(opened, bundle_hub, bundles):
    """The manifest and the files that it lists are asked for, once; nothing else that the repository holds."""
    files = list(Bundle.open(bundles[MAIN]).files)
    asked = [path for path in bundle_hub.files("GET", "owner/bundle") if not path.startswith((OLD, "v1"))]
    assert asked == sorted([*at(MAIN, files), "main/bundle.json"])


NOT_OPENED = {
    "owner/checkpoint": r"owner/checkpoint: expected .*bundle\.json.*EntryNotFound.*`bge-export run owner/checkpoint",
    "none/there": r"none/there: expected a local folder, or a Hub repository .*401",
    "owner/incomplete": r"3 of 3 files are not as exported:.*model\.onnx   missing",
    "owner/no-files": r"owner/no-files: expected .*'files'",
    "owner/a-list": r"owner/a-list: expected ",
    "owner/a-number": r"owner/a-number: expected ",
    "owner/gated": r"owner/gated: expected .*GatedRepoError.*HF_TOKEN",
    "./nowhere": r"nowhere: expected a bundle .*found no such folder",
}


@pytest.fixture(scope="module")
def not_opened(bundle_hub, tmp_path_factory):
    calls = [("bge_onnx.cli.main", "info", name) for name in NOT_OPENED]
    return dict(zip(NOT_OPENED, run(*calls, hub=bundle_hub, home=tmp_path_factory.mktemp("hf")), strict=True))


@pytest.mark.parametrize("name", NOT_OPENED)
def test_what_is_no_bundle_is_a_bundle_error(not_opened, name):
    """A name without a whole bundle behind it is a BundleError that says what was found and what to do, exit 2."""
    found = not_opened[name]
    assert (found.returncode, found.stdout) == (2, "")
    assert re.search("BundleError: .*" + NOT_OPENED[name], found.stderr, re.DOTALL)


def test_a_bundle_opens_offline(opened, bundle_hub):
    """With HF_HUB_OFFLINE=1 a bundle that was downloaded once opens without a request; another is a BundleError."""
    before = len(bundle_hub.seen)
    calls = [("bge_onnx.cli.main", "info", "owner/bundle"), ("bge_onnx.cli.main", "info", "owner/never-seen")]
    cached, missing = run(*calls, hub=bundle_hub, home=opened[1], HF_HUB_OFFLINE="1")
    assert (cached.returncode, cached.stderr) == (0, "")
    assert "cpu-fp32" in cached.stdout
    assert missing.returncode == 2
    assert "BundleError: owner/never-seen: expected " in missing.stderr
    assert len(bundle_hub.seen) == before


def test_a_local_folder_comes_first(bundles, tmp_path, monkeypatch):
    """A folder of the name of a Hub repository is opened as the folder it is."""
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/bundle").symlink_to(bundles[MAIN])
    monkeypatch.chdir(tmp_path)
    assert find_bundle("owner/bundle") == Path("owner/bundle")


@pytest.fixture(scope="module")
def evaluated(bundles, tmp_path_factory):
    """`bge-export evaluate` of known tasks from the Hub, and of the same files from a folder."""
    corpus = [{"_id": str(index), "title": "ab", "text": text} for index, text in enumerate(TEXTS)]
    files = {
        "corpus.jsonl": "".join(json.dumps(row) + "\n" for row in corpus),
        "queries.jsonl": '{"_id": "q1", "text": "ab cd"}\n{"_id": "q2", "text": "ef"}\n',
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\t2\t1\nq2\t3\t1\n",
    }
    local = tmp_path_factory.mktemp("data")
    (local / "qrels").mkdir()
    for name, text in files.items():
        (local / name).write_text(text, encoding="utf-8")
    (local / "pairs.jsonl").write_text(PAIRS_JSONL, encoding="utf-8")
    junk = {"README.md": b"", "train.jsonl.gz": b"", "qrels/train.tsv": b""}
    with Hub() as hub:
        hub.add(f"datasets/{STSB.repository}", {"test.jsonl.gz": PAIRS_GZ} | junk, commit=STSB.revision)
        scifact = {name: text.encode() for name, text in files.items()}
        hub.add(f"datasets/{SCIFACT.repository}", scifact | junk, commit=SCIFACT.revision)
        tasks = ["stsb", "scifact", local / "pairs.jsonl", local]
        calls = [("bge_export.cli.main", "evaluate", bundles[MAIN], "--task", task, "--json") for task in tasks]
        yield hub, run(*calls, hub=hub, home=tmp_path_factory.mktemp("hf"))


@pytest.mark.parametrize(("task", "local"), [(0, 2), (1, 3)], ids=["stsb", "scifact"])
def test_a_known_task_comes_from_the_hub(evaluated, task, local):
    """Without --data and BGE_EVAL_DATA a task's data set is downloaded; stdout is its score alone."""
    from_hub, from_folder = evaluated[1][task], evaluated[1][local]
    assert from_hub.returncode == from_folder.returncode == 0, from_hub.stderr + from_folder.stderr
    assert json.loads(from_hub.stdout)["all"] == json.loads(from_folder.stdout)["all"]


@pytest.mark.parametrize("known", [STSB, SCIFACT], ids=lambda known: known.folder)
def test_a_data_set_is_asked_for_at_its_pinned_revision(evaluated, known):
    """Listing and files are those of the pinned commit, and no other file of the data set is downloaded."""
    hub = evaluated[0]
    listed = {seen.path for seen in hub.seen if seen.path.startswith(f"/api/datasets/{known.repository}/")}
    assert listed == {f"/api/datasets/{known.repository}/tree/{known.revision}"}
    assert hub.files("GET", f"datasets/{known.repository}") == at(known.revision, known.files)
