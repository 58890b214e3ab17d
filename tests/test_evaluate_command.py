"""`bge-export evaluate`: what a bundle keeps, few-shot queries, threads, and what is kept of PyTorch's side."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bge_export.bundle import writer as bundle_writer
from bge_export.checkpoint.recipe import Options
from bge_export.cli.main import cli as export_cli
from bge_export.evaluate import reference_cache
from bge_export.evaluate.scoring import Scores, bundle_system, evaluate
from bge_export.evaluate.tasks import SentencePairs, open_task
from bge_export.export import export
from bge_export.models import random_checkpoint
from bge_export.recheck import recipe_of
from bge_export.request import Request
from bge_onnx import Bundle, BundleError, CheckpointError, Embedder
from bge_onnx.cli.main import cli as bge_cli
from tiny import write_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("BGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pairs(tmp_path):
    """A file of three sentence pairs."""
    (tmp_path / "pairs.csv").write_text("a,b,2.5\na,a,5\nb c,c,3\n")
    return tmp_path / "pairs.csv"


FIRST = Scores(
    metric="m",
    values={"m": 0.5},
    vectors=np.array([[0.6, 0.8]], dtype=np.float32),
    best=np.array([[0, 1]]),
    reranked={"dense": np.zeros((1, 2), dtype=np.float32)},
)
OTHER = Scores(metric="o", values={"o": 0.1}, vectors=np.array([[1, 0]], dtype=np.float32))
TASK = SentencePairs(name="t", left=["a", "b"], right=["c", "d"], gold=[1, 2])


@pytest.fixture
def recipe(tiny_bundle):
    return recipe_of(Bundle.open(tiny_bundle))


def test_pytorchs_side_is_computed_once(recipe):
    """What PyTorch reached is kept for the next bundle, and found by checkpoint, recipe and task, whatever its name."""
    kept = reference_cache.scores_of("checkpoint", recipe, TASK, lambda: FIRST)
    renamed = dataclasses.replace(TASK, name="other")
    again = reference_cache.scores_of("checkpoint", recipe, renamed, lambda: pytest.fail("computed again"))
    assert (again.metric, again.values) == (kept.metric, kept.values)
    np.testing.assert_array_equal(again.vectors, FIRST.vectors)
    np.testing.assert_array_equal(again.best, FIRST.best)
    np.testing.assert_array_equal(again.reranked["dense"], FIRST.reranked["dense"])
    shorter = dataclasses.replace(recipe, max_tokens=recipe.max_tokens - 1)
    for key in [
        ("others", recipe, TASK),
        ("checkpoint", shorter, TASK),
        ("checkpoint", recipe, dataclasses.replace(TASK, gold=[2, 1])),
    ]:
        assert reference_cache.scores_of(*key, lambda: OTHER) is OTHER


def test_a_damaged_cache_is_not_read(cache, recipe):
    """Whatever byte of a kept file was changed, or where it was cut: it is computed again, and no error shows."""
    reference_cache.scores_of("checkpoint", recipe, TASK, lambda: FIRST)
    (path,) = (cache / "reference").iterdir()
    sound = path.read_bytes()
    flipped = [sound[:at] + bytes([sound[at] ^ 0x55]) + sound[at + 1 :] for at in range(0, len(sound), 7)]
    for damaged in [b"", sound[:32], sound[:50], b"\x93NUMPY", *flipped]:
        path.write_bytes(damaged)
        assert reference_cache.scores_of("checkpoint", recipe, TASK, lambda: OTHER) is OTHER


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch, recipe):
    """A file in the cache's place, or a user without a home, is no error."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BGE_CACHE", str(tmp_path / "file"))
    assert reference_cache.scores_of("checkpoint", recipe, TASK, lambda: FIRST) is FIRST
    monkeypatch.setattr(reference_cache, "folder", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert reference_cache.scores_of("checkpoint", recipe, TASK, lambda: FIRST) is FIRST


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.txt"])
def test_the_cache_knows_the_files_beside_the_weights(tiny_checkpoint, tmp_path, name):
    """A checkpoint with another configuration or vocabulary is another one; a copy elsewhere is the same."""
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    assert reference_cache.checkpoint_key(copy) == reference_cache.checkpoint_key(tiny_checkpoint)
    with (copy / name).open("a") as file:
        file.write("\n")
    assert reference_cache.checkpoint_key(copy) != reference_cache.checkpoint_key(tiny_checkpoint)


def test_pytorch_runs_on_the_threads_asked_for(tiny_bundle, tiny_checkpoint, tmp_path, pairs, monkeypatch):
    """--threads holds for PyTorch too, which is not asked a second time."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    arguments = ["evaluate", str(folder), "--task", str(pairs), "--checkpoint", str(tiny_checkpoint), "--threads", "1"]
    for name in ("first", "second"):
        assert CliRunner().invoke(export_cli, [*arguments, "--name", name]).exit_code == 0
    assert asked == [1]
    quality = Bundle.open(folder).quality
    assert set(quality) == {"first", "second"}
    assert quality["first"] == quality["second"]


@pytest.mark.parametrize("settings", [{"truncate_dim": 8}, {"similarity_fn_name": "dot"}])
def test_vectors_are_compared_as_the_bundle_gives_them(tmp_path, pairs, settings):
    """A checkpoint that cuts its vectors is cut in PyTorch too; whatever compares them, evaluation takes cosines."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_checkpoint(checkpoint)
    (checkpoint / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {}, **settings}))
    request = Request(model="tiny", target="cpu-fp32", checkpoint=checkpoint, options=Options(pooling="cls"))
    export(request, tmp_path / "bundle")
    arguments = ["evaluate", str(tmp_path / "bundle"), "--task", str(pairs), "--checkpoint", str(checkpoint), "--json"]
    result = CliRunner().invoke(export_cli, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["fidelity"]["cosine_min"] == pytest.approx(1, abs=1e-6)


def test_scores_that_cannot_be_kept_are_printed(tiny_bundle, tiny_checkpoint, tmp_path, pairs, monkeypatch):
    """A full disk after hours of work: scores are on stdout, and one error says what is missing."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_writer, "record", full)
    arguments = ["evaluate", str(folder), "--task", str(pairs), "--checkpoint", str(tiny_checkpoint), "--json"]
    result = CliRunner().invoke(export_cli, arguments)
    assert json.loads(result.stdout)["task"] == "pairs"
    assert isinstance(result.exception, BundleError)
    assert "expected a manifest that scores can be written to, found No space left on device." in str(result.exception)


ICL_CONFIG = {
    "model_type": "mistral",
    "vocab_size": 32003,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 1024,
    "sliding_window": 4096,
    "hidden_act": "silu",
}


def test_few_shot_queries_have_their_template(data, tmp_path):
    """Queries of bge-en-icl and its kin are those of `embed_queries`, in PyTorch too; passages are plain."""
    model = data / "tokenizer-mistral-7b-v0.1/tokenizer.model"
    checkpoint, bundle, task = tmp_path / "checkpoint", tmp_path / "bundle", tmp_path / "task"
    checkpoint.mkdir()
    random_checkpoint.write(checkpoint, ICL_CONFIG, seed=0, lower_case=False, sentencepiece_model=model)
    request = Request(model="tiny-icl", target="cpu-fp32", checkpoint=checkpoint, options=Options(pooling="last"))
    export(request, bundle)
    task.mkdir()
    (task / "corpus.jsonl").write_text('{"_id": "1", "text": "tea"}\n{"_id": "2", "text": "rain"}\n')
    (task / "queries.jsonl").write_text('{"_id": "x", "text": "a drink"}\n')
    (task / "qrels.tsv").write_text("x\t1\t1\n")
    bge = Embedder.open(bundle, threads=1)
    found = evaluate(open_task(str(task), None), bundle_system(bge), bge.bundle.prompts)
    wanted = np.concatenate([bge.embed(["tea", "rain"]).dense, bge.embed_queries(["a drink"]).dense])
    np.testing.assert_allclose(found.vectors, wanted, atol=1e-6)
    assert np.abs(bge.embed(["a drink"]).dense - wanted[2:]).max() > 0.01
    arguments = ["evaluate", str(bundle), "--task", str(task), "--checkpoint", str(checkpoint), "--json"]
    result = CliRunner().invoke(export_cli, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["fidelity"]["cosine_min"] == pytest.approx(1, abs=1e-5)


def test_a_bundle_keeps_what_was_found(tiny_bundle, tiny_checkpoint, tmp_path, pairs):
    """`evaluate` beside a checkpoint writes the manifest, `bge info` prints it; other weights are refused."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    arguments = ["evaluate", str(folder), "--task", str(pairs)]
    assert CliRunner().invoke(export_cli, arguments).exit_code == 0
    assert Bundle.open(folder).quality == {}
    found = CliRunner().invoke(export_cli, [*arguments, "--checkpoint", str(tiny_checkpoint), "--json"])
    values = Bundle.open(folder).quality["pairs"]
    assert json.loads(found.stdout)["fidelity"]["cosine_min"] == values["cosine_min"] == pytest.approx(1)
    assert values["reference_cosine_spearman"] == pytest.approx(values["cosine_spearman"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in tiny_bundle.iterdir())
    shown = CliRunner().invoke(bge_cli, ["info", str(folder)]).stdout
    assert "on pairs" in shown
    assert "cosine_min 1.0000" in shown
    other = write_checkpoint(tmp_path / "other", seed=5)
    result = CliRunner().invoke(export_cli, [*arguments, "--checkpoint", str(other)])
    assert isinstance(result.exception, CheckpointError)
