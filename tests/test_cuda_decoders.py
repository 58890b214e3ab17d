"""Decoders for GPUs: the composed graph, the lowered one in float32 and float16 on the CPU, and what it is made of."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from safetensors.torch import load_file

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.lowering import cuda_decoder
from bge_export.lowering.lower import Lowering
from bge_export.lowering.targets import TARGETS, Target
from bge_export.request import Request
from bge_onnx import CheckpointError, Embedder, ProviderError
from bge_onnx.embed.prefix import Prefix
from bge_onnx.run.cuda import CUDA, Device
from bge_onnx.run.onnx_runtime import ort
from bge_onnx.vectors.embeddings import VectorOptions
from cuda_kernels import types_of
from test_decoders import CONFIGS, write_decoder
from tiny import store_weights

LAST = Options(pooling="last")
SAYS = (
    "CUDA failure 2: out of memory",
    "Available memory of 512 is smaller than requested bytes of 4096",  # the arena's limit, `device_memory`
)
HALVES = {"mistral": "cuda-fp16", "gemma2": "cuda-bf16"}


@pytest.fixture(scope="module", params=["mistral", "gemma2"])
def kind(request):
    """A kind of decoder."""
    return request.param


@pytest.fixture(scope="module")
def checkpoint(kind, tmp_path_factory):
    """A shrunken one with seeded weights."""
    return write_decoder(tmp_path_factory.mktemp(kind), CONFIGS[kind])


def export_for_cpu(monkeypatch, kind, checkpoint, out, lowering):
    """A graph without a prefix, run by the CPU provider; the export checks it against PyTorch."""
    target = Target(
        name="cuda-fp16", causal=True, provider="CPUExecutionProvider", layout="whole", lowering=lambda *_: lowering
    )
    monkeypatch.setitem(TARGETS, kind, {**TARGETS[kind], "cuda-fp16": target})
    return export(Request(model="tiny", target="cuda-fp16", checkpoint=checkpoint, options=LAST), out)


@pytest.mark.parametrize("lowering", [Lowering({}), cuda_decoder.lowering("float32")], ids=["composed", "lowered"])
def test_whole_texts_are_pytorchs(monkeypatch, kind, checkpoint, tmp_path, lowering):
    """Without a prefix, composed and with every fused operator, vectors are float32 PyTorch's."""
    bundle = export_for_cpu(monkeypatch, kind, checkpoint, tmp_path / "bundle", lowering)
    assert bundle.parity.passed
    assert bundle.parity.heads["dense"].limit == 2e-5
    embedder = Embedder.open(bundle.folder)
    ids = np.arange(10, 40)
    whole = embedder.embed_token_ids([ids]).dense
    prefix = Prefix.of_token_ids(embedder, "", ids[:20])
    assert prefix.past is None
    np.testing.assert_array_equal(prefix.embed_whole([ids], VectorOptions()).dense, whole)
    texts = [np.arange(4, 4 + length) for length in (1, 30, 8, 17, 9)]  # one batch, padded on the right
    alone = np.concatenate([embedder.embed_token_ids([text]).dense for text in texts])
    np.testing.assert_allclose(embedder.embed_token_ids(texts).dense, alone, atol=2e-6)


def test_float16_errs_as_pytorch_does(monkeypatch, tmp_path):
    """In float16 the graph's error is at most twice PyTorch's own in float16, and 1e-4."""
    checkpoint = write_decoder(tmp_path / "checkpoint", CONFIGS["mistral"])
    bundle = export_for_cpu(monkeypatch, "mistral", checkpoint, tmp_path / "bundle", cuda_decoder.lowering("float16"))
    dense = bundle.parity.heads["dense"]
    assert bundle.parity.passed
    assert 1e-5 < dense.max_error < dense.limit < 0.05


def test_what_the_gpu_gets(kind, checkpoint, tmp_path):
    """Matrices in half precision, norms in float32, and only operators that ONNX Runtime has for CUDA."""
    target = HALVES[kind]
    request = Request(model="tiny", target=target, checkpoint=checkpoint, options=LAST, check=False)
    bundle = export(request, tmp_path / "bundle")
    assert (bundle.provider, bundle.layout, bundle.weights) == (CUDA, "whole", target.removeprefix("cuda-"))

    model = onnx.load(bundle.folder / bundle.graph)
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    half = {"mistral": np.dtype(np.float16), "gemma2": np.dtype(ml_dtypes.bfloat16)}[kind]
    assert {array.dtype for array in weights.values() if array.ndim > 1} == {half}
    assert all(array.dtype == np.float32 for name, array in weights.items() if "norm" in name)
    wanted = load_file(checkpoint / "model.safetensors")["layers.1.mlp.up_proj.weight"].numpy().astype(half)
    np.testing.assert_array_equal(weights["layers.1.mlp.up_proj.weight.half"], wanted)
    layer = [node.op_type for node in model.graph.node if node.name.startswith("layers.1.")]
    assert layer.count("GroupQueryAttention") == 1
    assert layer.count("FusedMatMul") == 7
    assert_cuda_has(model, half)
    if kind == "mistral":  # whose types the CPU's provider takes
        ort.InferenceSession(bundle.folder / bundle.graph, providers=["CPUExecutionProvider"])
    else:  # ONNX Runtime has checked all types when it finds that a kernel for the CPU is missing
        with pytest.raises(Exception, match="Could not find an implementation"):
            ort.InferenceSession(bundle.folder / bundle.graph, providers=["CPUExecutionProvider"])


def assert_cuda_has(model: onnx.ModelProto, half: np.dtype) -> None:
    """Every node's operator has a CUDA kernel for the precision, and none waits for the host."""
    assert not {"Shape", "Size", "If", "Loop", "NonZero", "Range"} & {node.op_type for node in model.graph.node}
    for node in model.graph.node:
        assert node.op_type == "Constant" or half.name in types_of(node.domain, node.op_type), node.op_type


def test_gemma2_is_not_offered_in_float16(tmp_path):
    """Its states leave float16's range: the error names the targets there are."""
    checkpoint = write_decoder(tmp_path / "checkpoint", CONFIGS["gemma2"])
    request = Request(model="tiny", target="cuda-fp16", checkpoint=checkpoint, options=LAST, check=False)
    with pytest.raises(CheckpointError, match=r"expected one for gemma2 models, .*cuda-bf16, found cuda-fp16"):
        export(request, tmp_path / "bundle")


def test_weights_that_float16_does_not_hold(tmp_path):
    """A weight beyond 65504 is named, and nothing is written."""
    checkpoint = write_decoder(tmp_path / "checkpoint", CONFIGS["mistral"])
    weights = load_file(checkpoint / "model.safetensors")
    weights["layers.0.mlp.up_proj.weight"][3, 5] = 1e5
    store_weights(checkpoint, weights)
    request = Request(model="tiny", target="cuda-fp16", checkpoint=checkpoint, options=LAST, check=False)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight: expected weights up to 65504"):
        export(request, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("says", SAYS)
def test_a_batch_too_large_for_the_device_runs_in_halves(monkeypatch, tmp_path, says):
    """Texts of one length on a device without memory for all: halves run, and order is kept."""
    checkpoint = write_decoder(tmp_path / "checkpoint", CONFIGS["mistral"])
    bundle = export_for_cpu(monkeypatch, "mistral", checkpoint, tmp_path / "bundle", cuda_decoder.lowering("float32"))
    embedder = Embedder.open(bundle.folder)
    ids = list(np.random.default_rng(0).integers(4, 290, (6, 9)))
    wanted = embedder.embed_token_ids(ids).dense
    run = Device._run

    def failing(self, ready, names):
        if len(ready.batch.rows) > 3:
            raise RuntimeError(says)
        return run(self, ready, names)

    monkeypatch.setattr(Device, "_run", failing)
    np.testing.assert_allclose(embedder.embed_token_ids(ids).dense, wanted, atol=1e-6)
    with pytest.raises(ProviderError, match=r"device memory: expected room for 4 texts with 3\d tokens"):
        embedder.embed_token_ids([*ids, ids[0][:8], ids[1][:8]])
