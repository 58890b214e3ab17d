"""The benchmarks' own arithmetic: results print, a slower run is found out, a peer that dies takes nothing along."""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"
RESULTS = sorted((BENCH / "results").glob("cpu*.json"))


@pytest.fixture(autouse=True)
def bench_modules(monkeypatch):
    """The folder `bench/` on the path."""
    monkeypatch.syspath_prepend(BENCH)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_print(path):
    """Every results file gives each model's tables, with a row for each system and a column for each workload."""
    from harness.tables import model_table

    for model in json.loads(path.read_text())["models"]:
        title, speeds, ratios, costs, *_ = model_table(model)
        assert title.startswith(f"### {model['model']}")
        assert len(speeds.splitlines()) == len(costs.splitlines()) == 2 + len(model["startup_seconds"])
        assert speeds.splitlines()[0].count("|") == ratios.splitlines()[0].count("|") == 2 + len(model["workloads"])


@pytest.mark.parametrize("path", sorted((BENCH / "results").glob("*.json")), ids=lambda path: path.stem)
def test_tables_beside_results_are_theirs(path):
    """The tables that people read are made of the numbers that are kept: `--print FILE` gives them again."""
    scripts = ("cpu", "decoders", "gpu", "kernels", "quality", "rerank")
    script = next(name for name in scripts if path.stem.startswith(name))
    module = importlib.import_module(script)
    table = module.table
    assert path.with_suffix(".md").read_text() == table(json.loads(path.read_text())) + "\n"


def test_the_command_prints_them():
    """`cpu.py --print FILE` ends with the machine."""
    command = [sys.executable, str(BENCH / "cpu.py"), "--print", str(RESULTS[0])]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "rounds. AMD" in printed.splitlines()[-1]


def test_operations_are_counted():
    """One layer of width 8, two heads, an MLP of 16, two texts of 3 tokens: by hand."""
    from harness.tables import flops

    config = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    workload = {"texts": 2, "tokens": 6, "squares": 18}
    layer = 2 * (4 * 8 * 8 + 2 * 8 * 16) * 6 + 4 * 8 * 18
    assert flops(config, workload) == 2 * layer
    last = 2 * (2 * 8 * 8) * 6 + 2 * (2 * 8 * 8 + 2 * 8 * 16) * 2
    assert flops(config, workload, dense_alone=True) == layer + last


def test_ours_is_compared_with_its_like():
    """Float32 with float32, eight bits with all, three heads with three."""
    from harness.tables import ratios

    seconds = {"ours": 2.0, "ours int8": 1.0, "exact": 4.0, "rounded": 3.0}
    assert ratios("ours", seconds, ["ours int8", "rounded"]) == ("2.00", "")
    assert ratios("ours int8", seconds, ["ours int8", "rounded"]) == ("3.00", "2.00")
    assert ratios("exact", seconds, []) == ("", "")
    assert ratios("ours int8, kernels", {**seconds, "ours int8, kernels": 0.5}, ["ours int8, kernels"]) == (
        "6.00",
        "4.00",
    )
    heads = {"ours, dense": 2.0, "ours, 3 heads": 3.0, "peer, 3 heads": 9.0}
    assert ratios("ours, 3 heads", heads, []) == ("3.00", "")
    assert ratios("ours, dense", heads, []) == ("", "")


def test_callers_have_no_share_of_the_peak():
    """They take all cores, so the peak of one thread is not theirs."""
    from harness.tables import share

    config = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = {"gemm": {"float32": 1e-6, "int8": 1e-6}, "config": config}
    workload = {"texts": 2, "tokens": 6, "squares": 18, "single": False, "callers": 1}
    assert share(model, workload, "ours", 10.0).endswith("%")
    assert not share(model, {**workload, "callers": 16}, "ours", 10.0)
    assert not share(model, workload, "a peer", 10.0)


PEER = """
import sys
import numpy as np
assert not any(path.endswith("bench") for path in sys.path), "packages would be found there that are none"
def load(variant, folder, threads):
    calls = []
    def embed(texts):
        calls.append(texts)
        if variant == "dies" and len(calls) > 2:
            raise SystemExit("had enough")
        vectors = np.tile([0.6, 0.8], (len(texts), 1))
        return vectors * np.nan if variant == "nan" else vectors
    return embed
"""


def bench_of(folder, monkeypatch, *variants):
    """A bench of fake systems, the first of which is the reference."""
    from harness import systems
    from harness.side_by_side import Bench

    (folder / "fake").mkdir()
    (folder / "fake/adapter.py").write_text(PEER)
    monkeypatch.setattr(systems, "PEERS", folder)
    chosen = [systems.System(name=variant, peer="fake", variant=variant) for variant in variants]
    return Bench("small", folder, 1, 2, 8, chosen, chosen[0], {})


def plans():
    from harness.workloads import Workload

    single = Workload(name="one", texts=["a", "b"], tokens=6, single=True)
    return [Workload(name="mix", texts=["a", "b"], tokens=6), single]


def test_a_peer_that_dies_takes_nothing_along(tmp_path, monkeypatch):
    """The others keep their rows, and what it said is kept as the reason."""
    bench = bench_of(tmp_path, monkeypatch, "well", "dies")
    bench.serve(plans())
    assert bench.failed == {"dies": "had enough"}
    assert {name: list(by_system) for name, by_system in bench.results.items()} == {"mix": ["well"], "one": ["well"]}
    assert [len(run) for run in bench.results["one"]["well"]] == [2, 2]
    assert bench.memory["held_mib"]["well"] > 1
    assert list(bench.start_up()) == ["well"]


def test_vectors_that_are_none_are_not_timed(tmp_path, monkeypatch):
    """NaN is no small error: such a peer is told, and has no row."""
    bench = bench_of(tmp_path, monkeypatch, "well", "nan")
    bench.serve(plans())
    assert bench.failed["nan"].startswith("its vectors have a cosine of nan")
    assert list(bench.results["mix"]) == ["well"]
    assert bench.errors["max_error"] == {"well": pytest.approx(0, abs=1e-6)}


def test_groups_have_ours_and_the_reference(tmp_path, monkeypatch):
    """Systems that do not fit into memory together take turns beside those that all are compared with."""
    bench = bench_of(tmp_path, monkeypatch, *"abcdef")
    groups = [[system.name for system in group] for group in type(bench).groups(bench)]
    assert groups == [list("abcdef")]
    import dataclasses

    few = dataclasses.replace(bench, together=3)
    assert [[system.name for system in group] for group in few.groups()] == [
        ["a", "b", "c"],
        ["a", "d", "e"],
        ["a", "f"],
    ]


def record_of(seconds, **more):
    """Results of one model in which ours takes `seconds` where PyTorch takes 10."""
    runs = {
        system: {"round_seconds": median}
        for system, median in (("ours", seconds), ("ours int8", 2.0), ("sentence-transformers", 10.0))
    }
    results = dict.fromkeys(("mix", "8x128"), runs)
    return {"models": [{"model": "bge-base-en-v1.5", "threads": 2, "results": results, "failed": {}, **more}]}


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """The module of `cpu.py --quick`, with results of this CPU in which ours takes 4 seconds."""
    import quick

    committed = {"machine": quick.benchmark.machine(), **copy.deepcopy(record_of(4.0))}
    (tmp_path / "cpu-this.json").write_text(json.dumps(committed))
    monkeypatch.setattr(quick, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["cpu.py"])
    return quick


@pytest.mark.parametrize(("seconds", "status"), [(4.0, 0), (4.9, 0), (5.1, 1), (3.0, 0), (np.nan, 1)])
def test_quick_says_when_we_got_slower(quick, capsys, seconds, status):
    """A fifth less of PyTorch's speed than committed is slower: exit 1 and the workload's name."""
    assert quick.main(argparse.ArgumentParser(), lambda *_: record_of(seconds)) == status
    assert ("SLOWER: ours on mix" in capsys.readouterr().out) == bool(status)


def test_quick_does_not_pass_what_does_not_run(quick, capsys):
    """Where ours is missing, so is the ratio: exit 1, and the reason."""
    record = record_of(4.0, failed={"ours": "no such graph"})
    for by_system in record["models"][0]["results"].values():
        by_system.pop("ours", None)
    assert quick.main(argparse.ArgumentParser(), lambda *_: record) == 1
    printed = capsys.readouterr().out
    assert "FAILED: ours: no such graph" in printed
    assert "SLOWER: ours on mix" in printed


def test_quick_compares_with_the_same_cpu_only(quick, tmp_path, capsys):
    """Results of another CPU say nothing: the ratios are printed, and that there is nothing to compare with."""
    path = tmp_path / "cpu-this.json"
    committed = json.loads(path.read_text())
    committed["machine"]["family_model"] = ["6", "85"]
    path.write_text(json.dumps(committed))
    assert quick.main(argparse.ArgumentParser(), lambda *_: record_of(400.0)) == 0
    assert "nothing to compare with" in capsys.readouterr().out
