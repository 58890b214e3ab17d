"""The commands as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import click
import numpy as np
import pytest

import bge_export.cli.main
import bge_onnx.cli.main

CODE = "import sys; from {module} import main; sys.argv[0] = {name!r}; main()"
TEXTS = ["ab cd", "Ünïcode 中文", "ab " * 50]


def run(name, *arguments, stdin=None, **environment):
    module = {"bge": "bge_onnx.cli.main", "bge-export": "bge_export.cli.main"}[name]
    command = [sys.executable, "-c", CODE.format(module=module, name=name), *map(str, arguments)]
    text = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, **text
    )


def commands():
    return [*bge_onnx.cli.main.cli.commands.values(), *bge_export.cli.main.cli.commands.values()]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_help_shows_a_full_example(command):
    """`--help` of every command shows a whole example of it."""
    help_text = command.get_help(click.Context(command, info_name=command.name))
    assert "Example" in help_text
    assert f" {command.name}" in help_text.split("Example")[1]


def test_embed_reads_lines_and_writes_json_lines(tiny_bundle, tiny):
    """A line of stdin is a text; results come as JSON lines on stdout, in order."""
    result = run("bge", "embed", tiny_bundle, stdin="\n".join(TEXTS) + "\n")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert (result.returncode, result.stderr) == (0, "")
    assert [row["index"] for row in rows] == [0, 1, 2]
    np.testing.assert_allclose([row["dense"] for row in rows], tiny.embed(TEXTS).dense, atol=1e-7)


def test_blank_lines_are_no_texts(tiny_bundle, tiny):
    """Blank lines have no vector, and it is said how many there were: rows stand beside the other lines."""
    result = run("bge", "embed", tiny_bundle, stdin="ab\n\n \ncd\n")
    found = [json.loads(line)["dense"] for line in result.stdout.splitlines()]
    np.testing.assert_allclose(found, tiny.embed(["ab", "cd"]).dense, atol=1e-7)
    assert result.stderr == "left out 2 blank lines: vectors are counted without them\n"


def test_embed_writes_npz(tiny_bundle, tiny, tmp_path):
    """--out F.npz holds the array dense (N, D); an existing file is kept unless --force says so."""
    texts, out = tmp_path / "texts.txt", tmp_path / "vectors.npz"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    assert run("bge", "embed", tiny_bundle, texts, "--out", out).returncode == 0
    np.testing.assert_array_equal(np.load(out)["dense"], tiny.embed(TEXTS).dense)
    again = run("bge", "embed", tiny_bundle, texts, "--out", out)
    assert again.returncode == 2
    assert "Add --force to replace it" in again.stderr
    assert run("bge", "embed", tiny_bundle, texts, "--out", out, "--force").returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"texts.txt", "vectors.npz"}


def test_embed_reads_json_lines_as_queries(tiny_bundle, tiny, tmp_path):
    """A .jsonl file gives its `text` keys; --query applies the query instruction."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "ab\\ncd", "_id": 1}\n{"text": "ef"}\n')
    result = run("bge", "embed", tiny_bundle, texts, "--query")
    found = [json.loads(line)["dense"] for line in result.stdout.splitlines()]
    np.testing.assert_allclose(found, tiny.embed_queries(["ab\ncd", "ef"]).dense, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.txt", b"good\nbad \xff byte\n", "line 2: expected UTF-8, found byte 0xff at position 4"),
        (
            "texts.jsonl",
            b'{"text": "a"}\n{"txt": "b"}\n',
            "line 2: expected a text in the field text, found the fields txt.",
        ),
        ("texts.jsonl", b'{"text": "a"}\nno json\n', "line 2: expected JSON"),
        ("texts.jsonl", b'{"text": "\\ud800"}\n', "line 1: expected a text in the field text, found a lone surrogate"),
    ],
)
def test_a_bad_line_is_named(tiny_bundle, tmp_path, name, content, message):
    """A line that holds no text stops the run with its number, and no file is left."""
    (tmp_path / name).write_bytes(content)
    result = run("bge", "embed", tiny_bundle, tmp_path / name, "--out", tmp_path / "out.npz")
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "nowhere"], "nowhere: expected a bundle (a folder with bundle.json), found no such folder"),
        (["embed", "{bundle}", "nofile.txt"], "nofile.txt: expected a file of texts, found none"),
        (["embed", "{bundle}", "--out", "vectors.bin"], "expected a name that ends in .npz or .jsonl, found .bin"),
        (["embed", "{bundle}", "--devices", "cuda:0"], "expected numbers with commas between, as 0,1, found 'cuda:0'"),
        (["embed", "{bundle}", "--devices", "0"], "devices: expected a bundle for GPUs, found tiny-cpu-fp32"),
        (["score", "{bundle}", "query"], "Missing argument 'PASSAGE...'"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_wrong_use_is_exit_2(tiny_bundle, arguments, message):
    """Wrong use ends with exit 2, the reason on stderr and nothing on stdout."""
    result = run("bge", *(argument.format(bundle=tiny_bundle) for argument in arguments), stdin="a\n")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_warm_up_says_how_long_it_took(tiny_bundle):
    """A bundle that runs here gives one JSON object; one that does not, the error."""
    result = run("bge", "warm-up", tiny_bundle)
    assert result.returncode == 0
    assert json.loads(result.stdout)["bundle"] == "tiny-cpu-fp32"
    assert 0 < json.loads(result.stdout)["seconds"] < 60
    assert run("bge", "warm-up", tiny_bundle, "--devices", "0").returncode == 2


def test_score_ranks_passages(tiny_bundle, tiny):
    """Passages come best first, with their place and score."""
    passages = ["ef gh", "query: ab cd", "中文"]
    result = run("bge", "score", tiny_bundle, "ab cd", *passages)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert rows[0]["index"] == 1
    scores = tiny.similarity(["ab cd"], passages)[0]
    assert [row["score"] for row in rows] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)


def test_scores_that_are_none(m3_bundle):
    """A mean of heads that weigh nothing together is `null`: JSON has no NaN."""
    result = run("bge", "score", m3_bundle, "ab", "cd", "--weights", "0", "0", "1")
    record = json.loads(result.stdout, parse_constant=pytest.fail)
    assert record["sparse+dense"] is None
    assert record["score"] == record["colbert"]


def test_info_says_what_it_is_and_where_it_runs(tiny_bundle):
    """info prints facts for people, and with --json the manifest and the provider that a session really got."""
    text = run("bge", "info", tiny_bundle, "--verify")
    assert "cpu-fp32, runs on CPUExecutionProvider" in text.stdout
    assert "hashes compared" in text.stdout
    record = json.loads(run("bge", "info", tiny_bundle, "--json").stdout)
    assert record["session_provider"] == "CPUExecutionProvider"
    assert record["parity"]["heads"]["dense"]["max_error"] < 2e-5


def test_list_names_all_models():
    """`bge-export list` prints a line per model, or JSON."""
    from bge_export.checkpoint import catalog

    assert len(run("bge-export", "list").stdout.splitlines()) == 1 + len(catalog.ENTRIES)
    rows = [json.loads(line) for line in run("bge-export", "list", "--json").stdout.splitlines()]
    assert rows[0]["model"] == "BAAI/bge-small-en"
    assert rows[0]["heads"] == ["dense"]


def test_run_check_and_evaluate(tiny_checkpoint, tmp_path):
    """The whole way: export, check, evaluate; results on stdout, reports on stderr."""
    out = tmp_path / "bundle"
    source = ("--checkpoint", tiny_checkpoint)
    result = run("bge-export", "run", "tiny", *source, "--pooling", "mean", "--out", out)
    assert (result.returncode, result.stdout) == (0, "")
    assert "passed" in result.stderr
    checked = run("bge-export", "check", out, *source, "--json")
    record = json.loads(checked.stdout)
    assert (checked.returncode, record["passed"]) == (0, True)
    assert set(record["heads"]["dense"]) >= {"max_error", "limit", "text"}
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("ab,ab cd,5\nab,xy,1\ncd,cd,4\n")
    scored = run("bge-export", "evaluate", out, "--task", pairs, *source, "--json")
    record = json.loads(scored.stdout)
    assert record["score"] == pytest.approx(record["reference_score"])
    assert (record["task"], record["metric"], record["texts"]) == ("pairs", "cosine_spearman", 6)
    without = run("bge-export", "check", out)
    assert without.returncode == 2
    assert "expected --checkpoint" in without.stderr


def test_a_failed_check_is_exit_1(tiny_bundle, tiny_checkpoint, monkeypatch, capsys):
    """A bundle over its limit ends `check` with exit 1 and says FAILED."""
    from bge_export.lowering.limits import Limits
    from bge_export.lowering.targets import TARGETS

    strict = type(TARGETS["bert"]["cpu-fp32"])
    values = {slot: getattr(TARGETS["bert"]["cpu-fp32"], slot) for slot in strict.__slots__}
    monkeypatch.setitem(TARGETS["bert"], "cpu-fp32", strict(**{**values, "limits": lambda *_: Limits(vectors=1e-12)}))
    monkeypatch.setattr(sys, "argv", ["bge-export", "check", str(tiny_bundle), "--checkpoint", str(tiny_checkpoint)])
    with pytest.raises(SystemExit) as stop:
        bge_export.cli.main.main()
    assert stop.value.code == 1
    assert "FAILED" in capsys.readouterr().err


def test_check_refuses_other_weights(tiny_bundle, tmp_path):
    """check compares the weights' hash first: other weights are wrong use, not a failed check."""
    from tiny import write_checkpoint

    write_checkpoint(tmp_path, seed=5)
    result = run("bge-export", "check", tiny_bundle, "--checkpoint", tmp_path)
    assert result.returncode == 2
    assert "expected the weights that tiny-cpu-fp32 was made from" in result.stderr


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("nodir/x.npz", "nodir/x.npz: expected a file that can be written, found: No such file or directory."),
        ("folder.npz", "folder.npz: expected a file's name, found a folder."),
        ("texts.txt/x.npz", "texts.txt/x.npz: expected a file that can be written, found: Not a directory."),
        ("x" * 300 + ".npz", ".npz: expected a file that can be written, found: File name too long."),
        ("loop.npz", "loop.npz: expected a file that can be written, found: "),
    ],
)
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path, out, said, force):
    """No bundle is opened before --out is known to be good: there is none here."""
    (tmp_path / "texts.txt").write_text("a\n")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    result = run("bge", "embed", "nowhere", tmp_path / "texts.txt", "--out", tmp_path / out, *force)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.startswith("InputError: ")


def test_a_link_is_written_through(tiny_bundle, tmp_path):
    """--force replaces the file that a link points to, and makes the one that a dangling link names."""
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    assert run("bge", "embed", tiny_bundle, "--out", tmp_path / "link.npz", stdin="a\n").returncode == 0
    assert (tmp_path / "link.npz").is_symlink()
    assert np.load(tmp_path / "real.npz")["dense"].shape == (1, 32)


def test_embed_keeps_ids(tiny_bundle, tmp_path):
    """Ids stand beside the vectors, in JSON lines and in arrays."""
    (tmp_path / "x.csv").write_text("key,text\nk1,ab\nk2,cd\n")
    arguments = ["embed", tiny_bundle, tmp_path / "x.csv", "--id-field", "key"]
    rows = [json.loads(line) for line in run("bge", *arguments).stdout.splitlines()]
    assert [(row["index"], row["id"]) for row in rows] == [(0, "k1"), (1, "k2")]
    assert run("bge", *arguments, "--out", tmp_path / "x.npz").returncode == 0
    assert np.load(tmp_path / "x.npz")["ids"].tolist() == ["k1", "k2"]


def test_embed_skips_what_is_told_to(tiny_bundle, tmp_path):
    """--on-error skip leaves records without a text out, says which, and is no failure."""
    (tmp_path / "x.jsonl").write_text('{"text": "ab"}\n{}\n{"text": "cd"}\n')
    result = run("bge", "embed", tiny_bundle, tmp_path / "x.jsonl", "--on-error", "skip")
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 2)
    assert f"skipped {tmp_path}/x.jsonl, line 2: expected a text in the field text" in result.stderr
    assert "skipped 1 records that have no text" in result.stderr
    assert run("bge", "embed", tiny_bundle, tmp_path / "x.jsonl").returncode == 2


def test_json_on_stdin_is_not_embedded(tiny_bundle, tiny):
    """JSON lines without an ending are known by their first line; --format text says otherwise."""
    line = '{"text": "ab cd"}\n'
    found = json.loads(run("bge", "embed", tiny_bundle, stdin=line).stdout)["dense"]
    np.testing.assert_allclose(found, tiny.embed(["ab cd"]).dense[0], atol=1e-7)
    found = json.loads(run("bge", "embed", tiny_bundle, "--format", "text", stdin=line).stdout)["dense"]
    np.testing.assert_allclose(found, tiny.embed([line.strip()]).dense[0], atol=1e-7)


def test_a_prompt_for_one_call(tiny_bundle, tiny):
    """--prompt stands in front of every text, and excludes --query."""
    found = json.loads(run("bge", "embed", tiny_bundle, "--prompt", "find: ", stdin="ab\n").stdout)["dense"]
    np.testing.assert_allclose(found, tiny.embed(["ab"], prompt="find: ").dense[0], atol=1e-7)
    assert "--prompt takes the place of --query" in run("bge", "embed", tiny_bundle, "--prompt", "", "--query").stderr


def shell(command, **environment):
    """What a shell makes of a command, in which {bge} is ours."""
    bge = f"{sys.executable} -c '{CODE.format(module='bge_onnx.cli.main', name='bge').replace(chr(39), chr(34))}'"
    return subprocess.run(
        ["bash", "-c", command.replace("{bge}", bge)],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_a_reader_that_has_seen_enough(tiny_bundle, tmp_path):
    """`| head -1` is no failure, and nothing is said."""
    (tmp_path / "x.txt").write_text("ab\n" * 9000)
    done = shell(f"set -o pipefail; {{bge}} embed {tiny_bundle} {tmp_path}/x.txt | head -1 >/dev/null")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">/dev/full", b"expected to read and write, found: No space left on device."),
        (">&-", b"stdout: expected a place"),
    ],
)
def test_an_output_that_takes_nothing(tiny_bundle, redirection, said):
    """A full or closed stdout is one clear error, of every command that has results."""
    for command in (f"score {tiny_bundle} ab cd", f"info {tiny_bundle}", f"warm-up {tiny_bundle}"):
        done = shell(f"{{bge}} {command} {redirection}")
        assert (done.returncode, said in done.stderr, b"Traceback" in done.stderr) == (2, True, False)
    done = shell(f"echo ab | {{bge}} embed {tiny_bundle} {redirection}")
    assert done.returncode == 2
    assert said in done.stderr
    assert b"Traceback" not in done.stderr


def test_reports_that_cannot_be_said(tiny_bundle, tmp_path):
    """Where stderr takes nothing the vectors are written all the same."""
    done = shell(f"echo ab | {{bge}} embed {tiny_bundle} --out {tmp_path}/x.npz 2>/dev/full")
    assert done.returncode == 0
    assert np.load(tmp_path / "x.npz")["dense"].shape == (1, 32)


def test_an_input_that_is_closed(tiny_bundle):
    """A closed stdin is one clear error."""
    done = shell(f"{{bge}} embed {tiny_bundle} <&-")
    assert (done.returncode, done.stderr) == (2, b"InputError: stdin: expected texts, found it closed.\n")


def test_a_pipe_with_another_encoding(tiny_bundle):
    """Results are UTF-8 on a pipe, whatever Python was told."""
    done = shell(f"{{bge}} score {tiny_bundle} 茶 茶 😀", PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert done.returncode == 0
    assert {json.loads(line)["passage"] for line in done.stdout.decode("utf-8").splitlines()} == {"茶", "😀"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.15, 0.25, 0.35, 0.5, 0.9])
def test_signals_while_it_starts(tiny_bundle, tmp_path, number, seconds):
    """Ctrl-C and SIGTERM at any time of the start leave one line at most, no traceback, and no file."""
    (tmp_path / "texts.txt").write_text("ab\n" * 200_000)
    out = tmp_path / "vectors.jsonl"
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from bge_onnx.cli.start import main; import sys; sys.argv[0] = 'bge'; main()"
    arguments = ["embed", str(tiny_bundle), str(tmp_path / "texts.txt"), "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert process.returncode in ((130,) if number == signal.SIGINT else (143, -signal.SIGTERM))
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_ctrl_c_leaves_no_file(tiny_bundle, tmp_path):
    """An interrupted `bge embed --out` ends with 130 and leaves nothing half-written."""
    fifo, out = tmp_path / "texts.txt", tmp_path / "vectors.npz"
    os.mkfifo(fifo)
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a background job ignores it
    code = listen + CODE.format(module="bge_onnx.cli.main", name="bge")
    command = [sys.executable, "-c", code, "embed", str(tiny_bundle), str(fifo), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with fifo.open("w") as writer:
        writer.write("a text\n")
        writer.flush()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_reports_that_nobody_reads(tiny_checkpoint, tmp_path):
    """An export whose stderr was closed by its reader, or is full, writes its bundle all the same."""
    code = CODE.format(module="bge_export.cli.main", name="bge-export").replace("'", '"')
    command = f"{sys.executable} -c '{code}' run tiny --checkpoint {tiny_checkpoint} --pooling cls"
    for place, redirection in (("pipe", "2> >(exec 0<&-)"), ("full", "2>/dev/full")):
        assert shell(f"{command} --out {tmp_path}/{place} {redirection}").returncode == 0
        assert (tmp_path / place / "bundle.json").exists()
    assert shell(f"{command} --target nothing --out {tmp_path}/x 2> >(exec 0<&-)").returncode == 2


def test_what_was_computed_before_a_bad_record_is_kept(tiny_bundle, tmp_path):
    """The error names the file with the vectors before it; --out stays free."""
    lines = ['{"text": "ab"}'] * 5000 + ['{"txt": "cd"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    for ending in ("jsonl", "npz"):
        done = run("bge", "embed", tiny_bundle, tmp_path / "x.jsonl", "--out", tmp_path / f"y.{ending}")
        assert done.returncode == 2
        assert "The 4096 vectors before it are kept as " in done.stderr
        (kept,) = tmp_path.glob(f".y.{ending}.*.unfinished")
        assert f"{kept}." in done.stderr
        assert not (tmp_path / f"y.{ending}").exists()


@pytest.mark.parametrize("arguments", [("score", "{m3}", "\udcff", "ab"), ("embed", "{m3}", "--prompt", "\udcff")])
def test_arguments_that_are_no_text(m3_bundle, arguments):
    """Bytes that are not UTF-8 in an argument are an error that says so."""
    done = run("bge", *(str(m3_bundle) if word == "{m3}" else word for word in arguments), stdin="ab\n")
    assert done.returncode == 2
    assert "a lone surrogate" in done.stderr
    assert "Traceback" not in done.stderr
