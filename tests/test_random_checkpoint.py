"""Checkpoints of random weights."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from bge_export.models import random_checkpoint
from bge_onnx import CheckpointError
from tiny import CONFIG


def test_random_weights_on_a_full_disk(tmp_path, monkeypatch):
    """What is needed and what is free is said before anything is written."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"GB free for random weights, found 0\.0\.\n.*TMPDIR"):
        random_checkpoint.write(tmp_path, CONFIG, seed=0, lower_case=False)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
