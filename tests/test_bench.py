"""The benchmarks' own arithmetic: committed results print, and a slower run is found out."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
RESULTS = sorted((BENCH / "results").glob("cpu*.json"))


@pytest.fixture
def quick(monkeypatch):
    """The module of `cpu.py --quick`."""
    monkeypatch.syspath_prepend(BENCH)
    import quick

    return quick


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_print(path):
    """Every results file gives its tables, a row for each system and workload."""
    command = [sys.executable, str(BENCH / "cpu.py"), "--print", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for model in json.loads(path.read_text())["models"]:
        rows = [line for line in printed.splitlines() if line.startswith("| ")]
        assert f"### {model['model']}" in printed
        assert len(rows) >= len(model["workloads"]) * len(model["startup_seconds"])


def record_of(seconds):
    """Results of one model in which ours takes `seconds` where PyTorch takes 10."""
    runs = {"ours": [[seconds]] * 3, "ours int8": [[2.0]] * 3, "sentence-transformers": [[10.0]] * 3}
    return {"models": [{"model": "bge-base-en-v1.5", "threads": 2, "results": dict.fromkeys(("mix", "8x128"), runs)}]}


@pytest.mark.parametrize(("seconds", "status"), [(4.0, 0), (4.9, 0), (5.1, 1), (3.0, 0)])
def test_quick_says_when_we_got_slower(quick, monkeypatch, tmp_path, capsys, seconds, status):
    """A fifth less of PyTorch's speed than committed is slower: exit 1 and the workload's name."""
    about = quick.harness.machine()
    committed = {"machine": about, **copy.deepcopy(record_of(4.0))}
    (tmp_path / "cpu-this.json").write_text(json.dumps(committed))
    monkeypatch.setattr(quick, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["cpu.py"])
    assert quick.main(argparse.ArgumentParser(), lambda *_: record_of(seconds)) == status
    assert ("SLOWER: ours on mix" in capsys.readouterr().out) == bool(status)


def test_quick_compares_with_the_same_cpu_only(quick, monkeypatch, tmp_path, capsys):
    """Results of another CPU say nothing: the ratios are printed, and that there is nothing to compare with."""
    about = quick.harness.machine()
    committed = {"machine": {**about, "family_model": ["6", "85"]}, **record_of(1.0)}
    (tmp_path / "cpu-other.json").write_text(json.dumps(committed))
    monkeypatch.setattr(quick, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["cpu.py"])
    assert quick.main(argparse.ArgumentParser(), lambda *_: record_of(4.0)) == 0
    assert "nothing to compare with" in capsys.readouterr().out
