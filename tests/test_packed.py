"""Packed graphs: composed bodies on the CPU, and what CUDA gets under NumPy's version of its operators."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy.special import erf

from bge_export import export as exporting
from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.lowering.limits import Limits
from bge_export.lowering.lower import Lowering
from bge_export.lowering.targets import TARGETS, Target
from bge_export.proof import check
from bge_export.proof.compare import compare
from bge_export.recheck import recipe_of
from bge_export.request import Request
from bge_onnx import Embedder, ProviderError, Reranker
from bge_onnx.bundle.graph_names import SECOND
from bge_onnx.run.batches import plan_batches
from bge_onnx.run.cuda import CUDA, REPLAY_TEXTS, REPLAY_TOKENS, Device
from bge_onnx.run.device_inputs import packed_inputs
from cuda_kernels import types_of
from test_reranker import write_reranker

LENGTHS = (1, 2, 7, 19, 33, 19, 60)
COMPOSED = Target(
    name="packed", causal=False, provider="CPUExecutionProvider", layout="packed", lowering=lambda *_: Lowering({})
)
CLS = Options(pooling="cls")
POOLINGS = ("cls", "mean", "last")


class PackedMultiHeadAttention(OpRun):
    """Of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md: rows go to the places of a padded
    batch that `token_offset` names, attention hides what is past a text's length, rows come back.
    """

    op_domain = "com.microsoft"

    def _run(self, query, key, value, bias, token_offset, cu_seqlens, num_heads, scale):
        query, key, value = (rows + part for rows, part in zip((query, key, value), np.split(bias, 3), strict=True))
        assert token_offset.dtype == cu_seqlens.dtype == np.int32
        (batch, longest), tokens = token_offset.shape, len(query)
        places = token_offset.ravel()[:tokens]
        assert sorted(token_offset.ravel()) == list(range(batch * longest))

        def by_head(rows):
            padded = np.zeros((batch * longest, rows.shape[1]), dtype=np.float32)
            padded[places] = rows
            return padded.reshape(batch, longest, num_heads, -1).transpose(0, 2, 1, 3)

        scores = by_head(query) @ by_head(key).transpose(0, 1, 3, 2) * scale
        hidden = np.arange(longest) >= np.diff(cu_seqlens)[:, None]
        scores[np.broadcast_to(hidden[:, None, None], scores.shape)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ by_head(value)).transpose(0, 2, 1, 3).reshape(batch * longest, -1)
        return (mixed[places].astype(query.dtype),)


class SkipLayerNormalization(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, skip, scale, shift, bias, epsilon):
        total = (x + skip + bias).astype(np.float32)
        centred = total - total.mean(axis=-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
        return ((unit * scale + shift).astype(x.dtype),)


class BiasGelu(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, bias):
        total = (x + bias).astype(np.float32)
        return ((total * (1 + erf(total / np.sqrt(np.float32(2)))) / 2).astype(x.dtype),)


OPERATORS = [PackedMultiHeadAttention, SkipLayerNormalization, BiasGelu]


def texts(vocabulary: int, *, pad: int) -> list[np.ndarray]:
    """Token ids, the padding id among them as a word."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, vocabulary, length) for length in LENGTHS]
    ids[4][7:9] = pad
    return ids


@pytest.fixture
def composed(monkeypatch):
    """The composed bodies as a target."""
    for model_type in ("bert", "xlm-roberta"):
        monkeypatch.setitem(TARGETS[model_type], "packed", COMPOSED)
    monkeypatch.setattr(exporting, "NAMES", (*exporting.NAMES, "packed"))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_packed_graph_is_the_padded_one(composed, tiny_checkpoint, tmp_path, pooling):
    """A BERT's packed graph passes the export's check, and texts of all lengths share a batch."""
    options = Options(pooling=pooling)
    request = Request(model="tiny", target="packed", checkpoint=tiny_checkpoint, options=options)
    bundle = export(request, tmp_path / "bundle")
    assert bundle.parity
    assert bundle.parity.passed
    embedder = Embedder.open(bundle.folder)
    ids = texts(100, pad=0)
    together = embedder.embed_token_ids(ids).dense
    alone = np.concatenate([embedder.embed_token_ids([row]).dense for row in ids])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_packed_heads_are_those_of_the_cpu(composed, m3_checkpoint, m3, tmp_path):
    """An XLM-R's three heads from a packed batch, the padding id within a text, and MCLS."""
    request = Request(model="m3", target="packed", checkpoint=m3_checkpoint, options=CLS)
    embedder = Embedder.open(export(request, tmp_path / "bundle").folder)
    ids, heads = texts(100, pad=1), ("dense", "sparse", "colbert")
    found, wanted = (each.embed_token_ids(ids, heads=heads) for each in (embedder, m3))
    np.testing.assert_allclose(found.dense, wanted.dense, atol=1e-6)
    np.testing.assert_allclose(embedder.embed_token_ids(ids).dense, wanted.dense, atol=1e-6)
    assert [list(row) for row in found.sparse] == [list(row) for row in wanted.sparse]
    np.testing.assert_allclose(found.sparse.weights, wanted.sparse.weights, atol=1e-6)
    for ours, theirs in zip(found.colbert, wanted.colbert, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.fixture
def device(composed, m3_checkpoint, tmp_path) -> Embedder:
    """The composed bundle of an XLM-R, whose batches run as on a device, its buffers in the CPU's memory."""
    request = Request(model="m3", target="packed", checkpoint=m3_checkpoint, options=CLS, check=False)
    return Embedder.open(export(request, tmp_path / "composed").folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 70), min_size=1, max_size=20))
def test_small_batches_are_filled_up_and_replayed(device, m3, lengths):
    """Whatever a batch holds, buffers of a few sizes give its vectors, and larger batches need none."""
    rng = np.random.default_rng(len(lengths))
    ids = [rng.integers(5, 100, length) for length in lengths]
    for number in range(2):  # recorded, then replayed with other texts
        np.testing.assert_allclose(device.embed_token_ids(ids).dense, m3.embed_token_ids(ids).dense, atol=1e-6)
        ids = [(row + number) % 90 + 5 for row in ids]
    (ready,) = device.session._on_devices
    sizes = {(key[0], key[1]) for key in ready._recordings}
    tokens = [size for size in REPLAY_TOKENS if size >= sum(lengths)]
    wanted = [size for size in REPLAY_TEXTS if size >= len(lengths)]
    assert not tokens or (tokens[0], wanted[0]) in sizes
    assert all(size[0] in REPLAY_TOKENS and size[1] in REPLAY_TEXTS for size in sizes)


def test_threads_share_a_device(device, m3):
    """Several threads at once get their own texts' vectors."""
    rng = np.random.default_rng(0)
    jobs = [[rng.integers(5, 100, length) for length in rng.integers(1, 30, 5)] for _ in range(24)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda ids: device.embed_token_ids(ids).dense, jobs))
    for ids, vectors in zip(jobs, found, strict=True):
        np.testing.assert_allclose(vectors, m3.embed_token_ids(ids).dense, atol=1e-6)


def full_device(monkeypatch, most_tokens: int) -> None:
    """Make batches of more tokens fail, as a device without memory does."""
    run = Device._run

    def failing(self, ready, names):
        if len(ready.batch.input_ids) > most_tokens:
            raise RuntimeError(f"BFCArena: Failed to allocate memory for requested buffer of size {most_tokens}")
        return run(self, ready, names)

    monkeypatch.setattr(Device, "_run", failing)


def test_a_batch_too_large_for_the_device_runs_in_halves(device, m3, monkeypatch):
    """Without memory for a batch its halves run, and every vector is right; half of that is an error with numbers."""
    ids = texts(100, pad=1)
    total = sum(map(len, ids))
    full_device(monkeypatch, total - 1)
    heads = ("dense", "sparse", "colbert")
    found, wanted = (each.embed_token_ids(ids, heads=heads) for each in (device, m3))
    np.testing.assert_allclose(found.dense, wanted.dense, atol=1e-6)
    assert [list(row) for row in found.sparse] == [list(row) for row in wanted.sparse]
    full_device(monkeypatch, 20)
    with pytest.raises(ProviderError, match=r"device memory: expected room for \d texts with \d+ tokens"):
        device.embed_token_ids(ids)


@pytest.mark.parametrize(("target", "limit"), [("cuda-fp32", 1e-6), ("cuda-fp16", 4e-3)])
@pytest.mark.parametrize("dense_alone", [True, False])
def test_what_cuda_gets(m3_checkpoint, m3, tmp_path, target, limit, dense_alone):
    """The graph for CUDA, its fused operators in NumPy, gives the CPU's vectors of a packed batch."""
    request = Request(model="m3", target=target, checkpoint=m3_checkpoint, options=CLS, check=False)
    bundle = export(request, tmp_path / "bundle")
    assert bundle.parity is None
    model = onnx.load(bundle.folder / bundle.graph)
    onnx.checker.check_model(bundle.folder / bundle.graph)
    ids = texts(100, pad=1)
    (batch,) = plan_batches(ids, layout="packed", pad_id=1)
    feeds = packed_inputs(batch, last=False, dense_alone=dense_alone, pad_id=1)
    evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
    outputs = dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))
    wanted = m3.embed_token_ids([ids[row] for row in batch.rows], heads=("dense", "colbert"))
    assert all(values.dtype == np.float32 for values in outputs.values())
    np.testing.assert_allclose(outputs["dense"], wanted.dense, atol=limit)
    if not dense_alone:
        rows = [text[1:] for text in batch.states(outputs["colbert"])]
        np.testing.assert_allclose(np.concatenate(rows), np.concatenate(wanted.colbert), atol=limit)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    """A BERT that scores pairs, whose tokens have types, and its CPU's reranker."""
    folder = tmp_path_factory.mktemp("cross-encoder")
    checkpoint = write_reranker(folder / "checkpoint", "bert")
    request = Request(model="tiny", target="cpu-fp32", checkpoint=checkpoint, check=False)
    return checkpoint, Reranker.open(export(request, folder / "bundle").folder)


PAIRS = [("what is BM25?", "BM25 is a ranking function. " * times) for times in (1, 2, 5)] + [("", ""), ("a", "b")]


def test_pairs_keep_their_types_on_a_device(composed, cross_encoder, tmp_path, monkeypatch):
    """Alone and together, which is filled up and replayed, and in halves where memory is short."""
    checkpoint, cpu = cross_encoder
    request = Request(model="tiny", target="packed", checkpoint=checkpoint, check=False)
    on_device, wanted = Reranker.open(export(request, tmp_path / "packed").folder), cpu.score(PAIRS)
    np.testing.assert_allclose(on_device.score(PAIRS), wanted, atol=1e-6)
    np.testing.assert_allclose([on_device.score([pair])[0] for pair in PAIRS], wanted, atol=1e-6)
    assert on_device.session._on_devices[0]._recordings
    full_device(monkeypatch, sum(map(len, on_device.pairs.encode(PAIRS, max_tokens=512, query_max_tokens=None))) - 1)
    np.testing.assert_allclose(on_device.score(PAIRS), wanted, atol=1e-6)
    types = cpu.pairs.encode(PAIRS[:1], max_tokens=512, query_max_tokens=None)[0] >= SECOND
    assert types.any()


@pytest.mark.parametrize(("target", "limit"), [("cuda-fp32", 1e-6), ("cuda-fp16", 1e-3)])
def test_what_cuda_gets_of_a_cross_encoder(cross_encoder, tmp_path, target, limit):
    """Its fused operators in NumPy give the CPU's scores; the head computes in float32."""
    checkpoint, cpu = cross_encoder
    bundle = export(Request(model="tiny", target=target, checkpoint=checkpoint, check=False), tmp_path / "bundle")
    ids = cpu.pairs.encode(PAIRS, max_tokens=512, query_max_tokens=None)
    (batch,) = plan_batches(ids, layout="packed", pad_id=0)
    feeds = packed_inputs(batch, last=False, dense_alone=True, pad_id=0)
    model = onnx.load(bundle.folder / bundle.graph)
    evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
    (found,) = evaluator.run(None, {name: feeds[name] for name in evaluator.input_names})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], cpu.score([PAIRS[row] for row in batch.rows]), atol=limit)


@pytest.mark.parametrize("target", ["cuda-fp32", "cuda-fp16"])
def test_every_operator_of_a_layer_is_fused(m3_checkpoint, tmp_path, target):
    """A layer is ten nodes, and all that is left in standard operators is a handful of them."""
    request = Request(model="m3", target=target, checkpoint=m3_checkpoint, options=CLS, check=False)
    bundle = export(request, tmp_path / "bundle")
    nodes = onnx.load(bundle.folder / bundle.graph, load_external_data=False).graph.node
    layer = [node.op_type for node in nodes if node.name.startswith("encoder.layer.0.")]
    assert sorted(layer) == sorted(
        ["PackedMultiHeadAttention"] + ["MatMul"] * 6 + ["BiasGelu"] + ["SkipLayerNormalization"] * 2
    )
    host = {"Shape", "Size", "NonZero", "Range", "If", "Loop"}  # they wait for the host, or run there
    moving = {"Gemm"}  # multiplies its bias with a buffer that a larger batch moves, which recorded graphs miss
    assert not (host | moving) & {node.op_type for node in nodes}
    precision = {"cuda-fp32": "float32", "cuda-fp16": "float16"}[target]
    for node in nodes:
        assert node.op_type == "Constant" or precision in types_of(node.domain, node.op_type), node.op_type


def test_limits_follow_pytorchs_own_errors(m3_checkpoint, m3):
    """Below float32 a head may err twice as much as PyTorch in that precision, and 1e-4; exact vectors pass."""
    lowering = Lowering({}, precision="float16")
    expected = check.expect(m3_checkpoint, recipe_of(m3.bundle), lowering)
    assert expected.limits
    assert 1e-4 < expected.limits.vectors < 1e-2
    assert 1e-4 < expected.limits.sparse < 1e-1
    parity = compare(m3, expected, Limits(vectors=0, sparse=0))
    assert parity.passed
    assert parity.heads["dense"].limit == expected.limits.vectors
    dense = expected.heads.dense + expected.limits.vectors * 2
    doubled = dataclasses.replace(expected.heads, by_head={**expected.heads.by_head, "dense": dense})
    assert not compare(m3, dataclasses.replace(expected, heads=doubled), Limits()).passed


def test_a_check_without_its_provider_is_refused(tiny_checkpoint, tmp_path):
    """Exporting for CUDA where there is none says what to do; nothing is written."""
    request = Request(model="tiny", target="cuda-fp16", checkpoint=tiny_checkpoint, options=CLS)
    with pytest.raises(ProviderError, match="--no-check"):
        export(request, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("says", "found"),
    [
        ("CUDA failure 100: no CUDA-capable device is detected", "device 7: expected a GPU"),
        ("provider_options_utils.h: Invalid device ID: 7, must be between 0 and 1", "device 7: expected a GPU"),
        ("This session contains graph nodes that are assigned to the default CPU EP", "device 7: expected a GPU"),
        ("CUDA failure 2: out of memory ; GPU=7", "device 7: expected room for the weights"),
    ],
)
def test_what_is_wrong_with_a_device_is_said(tiny_checkpoint, tmp_path, monkeypatch, says, found):
    """Nothing falls back to the CPU, and ONNX Runtime's errors become ones that say what to do."""
    request = Request(model="tiny", target="cuda-fp16", checkpoint=tiny_checkpoint, options=CLS, check=False)
    bundle = export(request, tmp_path / "bundle")
    asked = {}

    def failing(path, options, *, providers, enable_fallback, disabled_optimizers):
        asked.update(providers=providers, enable_fallback=enable_fallback)
        asked["cpu"] = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        raise RuntimeError(says)

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA])
    monkeypatch.setattr("onnxruntime.InferenceSession", failing)
    with pytest.raises(ProviderError, match=found):
        Embedder.open(bundle.folder, devices=[7]).embed(["a"])
    ((name, options),) = asked["providers"]
    assert (name, options["device_id"], options["use_tf32"]) == (CUDA, "7", "0")
    assert (asked["cpu"], asked["enable_fallback"]) == ("1", 0)
