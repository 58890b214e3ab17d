"""BERT exports: every pooling on every target is PyTorch's vector, and the graph has the savings it should have."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest

from bge_export.checkpoint import catalog
from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.lowering.lower import lower
from bge_export.lowering.targets import NAMES, TARGETS
from bge_export.proof import check, compare
from bge_export.recheck import check_bundle, recipe_of
from bge_export.request import Request
from bge_onnx import BundleError, CheckpointError, Embedder
from bge_onnx.bundle.records import HeadParity
from bge_onnx.bundle.targets import FACTS
from tiny import write_checkpoint

EVERY = [
    pytest.param(name, marks=[pytest.mark.cuda] if name.startswith("cuda-") else [], id=name)
    for name in TARGETS["bert"]
]
EXACT = [case for case in EVERY if not TARGETS["bert"][case.id].on_bytes]


def test_the_command_line_offers_every_target():
    """`--target` and the table of targets name the same ones."""
    assert set(FACTS) == set(NAMES)


@pytest.mark.parametrize("target", EXACT)
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_vectors_are_pytorchs(tiny_checkpoint, tmp_path, target, pooling):
    """Each pooling on each target stays within its limit of PyTorch, on lengths 1 to 512."""
    request = Request(model="tiny", target=target, checkpoint=tiny_checkpoint, options=Options(pooling=pooling))
    bundle = export(request, tmp_path / "bundle")
    assert bundle.parity.passed
    assert bundle.parity.texts == len(check.TEXTS) + sum(length <= 512 for length in check.LENGTHS)
    assert bundle.parity.heads["dense"].max_error < (1e-2 if target == "cuda-fp16" else 2e-6)


def test_unnormalised_vectors(tiny_checkpoint, tmp_path):
    """A checkpoint whose modules.json has no Normalize gives the plain vectors."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_checkpoint(folder, modules=("Transformer", "Pooling"), pooling_config={"pooling_mode": "cls"})
    bundle = export(Request(model="tiny", target="cpu-fp32", checkpoint=folder), tmp_path / "bundle")
    assert not bundle.normalized
    assert np.abs(np.linalg.norm(Embedder.open(bundle.folder).embed(["abc"]).dense) - 1) > 0.1


@pytest.fixture(scope="session")
def nodes(tiny_bundle):
    return list(onnx.load(tiny_bundle / "model.onnx", load_external_data=False).graph.node)


def test_attention_is_fused_in_every_layer(nodes):
    """cpu-fp32 has one mask-free MultiHeadAttention per layer, and no softmax."""
    operators = [node.op_type for node in nodes]
    assert operators.count("MultiHeadAttention") == 2
    assert "Softmax" not in operators
    assert all(len(node.input) == 3 for node in nodes if node.op_type == "MultiHeadAttention")


def test_cpu_graph_takes_ids_alone(tiny_bundle):
    """cpu-fp32 has no mask and no token types: one input, and the vectors with and without normalisation."""
    graph = onnx.load(tiny_bundle / "model.onnx", load_external_data=False).graph
    assert [value.name for value in graph.input] == ["input_ids"]
    assert [value.name for value in graph.output] == ["dense", "dense_raw"]
    assert not [tensor.name for tensor in graph.initializer if "token_type" in tensor.name]


def test_nodes_are_named_after_the_checkpoints_modules(nodes):
    """Profiles and errors use the checkpoint's words."""
    names = [node.name for node in nodes]
    assert "encoder.layer.1.attention.self.query.MatMul" in names
    assert "encoder.layer.0.attention.self.MultiHeadAttention" in names
    assert len(names) == len(set(names))


def test_the_last_layer_computes_one_row_per_text(tiny_bundle):
    """With CLS pooling the last layer's feed-forward runs on the first token alone: its output has one row a text."""
    inferred = onnx.load(tiny_bundle / "model.onnx")
    layer, last = "encoder.layer.0.intermediate.dense.MatMul", "encoder.layer.1.intermediate.dense.MatMul"
    by_name = {node.name: node.output[0] for node in inferred.graph.node}
    for name in (layer, last):
        inferred.graph.output.append(onnx.helper.make_empty_tensor_value_info(by_name[name]))
    import onnxruntime as ort

    session = ort.InferenceSession(inferred.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.ones((3, 9), dtype=np.int64)
    whole, pruned = session.run([by_name[layer], by_name[last]], {"input_ids": ids})
    assert whole.shape == (3, 9, 64)
    assert pruned.shape == (3, 1, 64)


@pytest.fixture(scope="session")
def portable(tiny_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("portable") / "bundle"
    options = Options(pooling="mean", query_prompt="query: ")
    export(Request(model="tiny", target="portable", checkpoint=tiny_checkpoint, options=options), out)
    return out


def test_portable_passes_the_checker_in_full(portable):
    """portable holds standard operators of opset 21 only and passes onnx.checker with shape inference."""
    path = portable / "onnx/model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 21)}
    assert not model.functions
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in model.graph.output] == ["sentence_embedding", "last_hidden_state"]


def test_padding_changes_no_portable_vector(portable):
    """A portable vector moves by rounding only when its batch is padded."""
    embedder = Embedder.open(portable)
    texts = ["ab", "ab cd " * 20, "xy " * 60, ""]
    together = embedder.embed(texts, budget_tokens=10_000).dense
    alone = np.concatenate([embedder.embed([text]).dense for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_transformers_reads_the_portable_folder(portable):
    """The files beside a portable graph are a configuration and a tokenizer that transformers loads."""
    import transformers

    assert transformers.AutoConfig.from_pretrained(portable).hidden_size == 32
    tokenizer = transformers.AutoTokenizer.from_pretrained(portable)
    assert tokenizer("ab cd")["input_ids"] == Embedder.open(portable).tokenizer.encode(["ab cd"])[0].tolist()


def test_lowering_says_how_many_calls_it_swapped():
    """lower returns the calls it swapped: none where a target swaps nothing."""
    from bge_export.graph import ops
    from test_ops import ATTENTION

    def model():
        graph = ops.Graph("test")
        q, bias = graph.input("q", ["B", "T", 24]), graph.input("bias", ["B", 1, 1, "T"])
        return graph.finish({"y": (graph.call("attention", "m", q, q, q, bias, attributes=ATTENTION), ["B", "T", 24])})

    assert lower(model(), TARGETS["bert"]["cpu-fp32"].lowering(None, None).swaps) == 1
    assert lower(model(), TARGETS["bert"]["portable"].lowering(None, None).swaps) == 0


def test_a_wrong_graph_is_not_written(tiny_checkpoint, tmp_path, monkeypatch):
    """A bundle whose vectors are not PyTorch's is refused with the error, its place and its limit."""
    worst = HeadParity(max_error=0.5, measure="difference", limit=2e-5, text=7, tokens=33)
    monkeypatch.setattr(compare, "worst", lambda *_: worst)
    request = Request(model="tiny", target="cpu-fp32", checkpoint=tiny_checkpoint, options=Options(pooling="cls"))
    with pytest.raises(
        BundleError, match=r"within 2e-05 of PyTorch's, found 5\.0e-01 \(dense\) at a text of 33 tokens"
    ):
        export(request, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, 1e-3, -1e-3])
def test_parity_finds_the_worst_text(bad):
    """The largest absolute error counts, of either sign; NaN is worse than any number."""
    wanted = np.eye(4, dtype=np.float32)
    found = wanted.copy()
    found[0, 1] = 1e-4
    found[2, 3] += bad
    head = compare.worst(compare.vector_errors(found, wanted), [3, 4, 5, 6], "difference", 2e-5)
    assert (head.text, head.tokens, head.passed) == (2, 5, False)


def test_random_weights_are_the_same_for_the_same_seed(tmp_path):
    """A seed gives the same weights in every process, and another seed others."""
    for name in "abc":
        (tmp_path / name).mkdir()
    code = (
        "import sys; from pathlib import Path; from tiny import write_checkpoint; write_checkpoint(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True, cwd=__file__.rsplit("/", 1)[0])
    write_checkpoint(tmp_path / "b")
    write_checkpoint(tmp_path / "c", seed=1)
    first, second, third = ((tmp_path / name / "model-00000.safetensors").read_bytes() for name in "abc")
    assert first == second
    assert first != third


@pytest.mark.parametrize("name", ["BAAI/bge-reranker-v2-minicpm-layerwise", "gte-Qwen2-1.5B-instruct"])
def test_models_that_are_left_out_say_why(tiny_checkpoint, tmp_path, name):
    """Before a download, and of a folder too: its files may look like those of a model that we know."""
    for checkpoint in (None, tiny_checkpoint):
        with pytest.raises(CheckpointError, match=r"(code of its own|code on the Hub)"):
            export(Request(model=name, target="cpu-fp32", checkpoint=checkpoint), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_catalog_knows_all_models():
    """All names of v1 and v1.5, bge-m3 and the decoders, each with its own pinned revision, instruction and licence.

    Those whose commits nobody told us are taken as they are now.
    """
    names = {
        f"bge-{size}-{language}{v}"
        for size in ("small", "base", "large")
        for language in ("en", "zh")
        for v in ("", "-v1.5")
    }
    pinned = {*names, "bge-m3", "bge-en-icl", "bge-multilingual-gemma2"}
    others = {"bge-large-zh-noinstruct", "bge-m3-unsupervised", "bge-code-v1", "Qwen3-Embedding-0.6B"}
    others |= {f"bge-reranker-{size}" for size in ("base", "large", "v2-m3", "v2-gemma")}
    found = {entry.short_name for entry in catalog.ENTRIES if entry not in catalog.OTHERS}
    assert found == pinned | others
    assert len({entry.short_name for entry in catalog.ENTRIES}) == len(catalog.ENTRIES)
    assert len({entry.revision for entry in catalog.ENTRIES if entry.short_name in pinned}) == 15
    assert {entry.licence for entry in catalog.ENTRIES} == {"mit", "apache-2.0", "gemma", "cc-by-nc-4.0"}
    lengths = {entry.short_name: len(entry.revision) for entry in catalog.ENTRIES}
    assert lengths == {name: 40 if name in pinned else len("main") for name in lengths}
    prompts = {entry.short_name: entry.query_prompt for entry in catalog.ENTRIES}
    assert prompts["bge-base-en"] == "Represent this sentence for searching relevant passages: "
    assert prompts["bge-base-zh-v1.5"] == "为这个句子生成表示以用于检索相关文章："


@pytest.mark.parametrize("entry", catalog.ENTRIES, ids=lambda entry: entry.short_name)
def test_catalog_sizes_give_the_published_parameters(entry):
    """Each architecture, an encoder's pooler included, has as many parameters as BAAI's."""
    from bge_export.models.families import MODELS

    model = MODELS[entry.config["model_type"]]
    config = {key: value for key, value in entry.config.items() if key in model.Config.__dataclass_fields__}
    shapes = model.weight_shapes(model.Config(**config))
    width = entry.config["hidden_size"]
    pooler = 0 if model.causal else width * width + width  # a reranker's hidden layer has as many
    score = width + 1 if "score" in entry.heads and not model.causal else 0
    assert sum(int(np.prod(shape)) for shape in shapes.values()) + pooler + score == entry.parameters


@pytest.mark.checkpoint
@pytest.mark.parametrize("target", EVERY)
@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "bge-small-zh"])
def test_full_size_models_with_random_weights(tmp_path, name, target):
    """A model of true size and seeded weights exports, opens and checks again from its manifest alone."""
    bundle = export(Request(model=name, target=target, seed=0), tmp_path / "bundle")
    assert bundle.source.seed == 0
    assert recipe_of(bundle).pooling == "cls"
    parity = check_bundle(bundle.folder, None)
    assert parity.passed
    if target == "portable":
        onnx.checker.check_model(str(bundle.folder / bundle.graph), full_check=True)
