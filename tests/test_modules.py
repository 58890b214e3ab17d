"""Poolings, Dense and Normalize modules of sentence-transformers: built into the graph, and equal to PyTorch's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from bge_export.checkpoint.modules import Dense, Normalize, read_modules
from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.recheck import check_bundle
from bge_export.request import Request
from bge_onnx import Bundle, CheckpointError, Embedder, InputError, similarity
from tiny import write_checkpoint, write_json

TEXTS = ["", "ab cd ef", "one two three " * 20]
FLAGS = {
    "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False, "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": False,
}  # fmt: skip
ACTIVATION = "torch.nn.modules.activation."


def write_dense(folder, inputs, outputs, *, activation="Tanh", bias=True, seed=0, pickled=False, **more):
    """A Dense module as sentence-transformers saves it; its weights."""
    generator = torch.Generator().manual_seed(seed)
    state = {"linear.weight": torch.randn(outputs, inputs, generator=generator) / inputs**0.5}
    if bias:
        state["linear.bias"] = torch.randn(outputs, generator=generator)
    name = "torch.nn.modules.linear.Identity" if activation == "Identity" else ACTIVATION + activation
    record = {"in_features": inputs, "out_features": outputs, "bias": bias, "activation_function": name}
    write_json(folder / "config.json", {**record, **more})
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    return state


def checkpoint(folder, *modules, pooling, **sizes):
    write_checkpoint(folder, modules=["Transformer", "Pooling", *modules], pooling_config=pooling, **sizes)
    return folder


def exported(folder, out, target="cpu-fp32"):
    request = Request(model="tiny", target=target, checkpoint=folder, options=Options())
    bundle = export(request, out)
    assert bundle.parity.passed
    return Embedder.open(bundle.folder, threads=1)


def states(folder, embedder, text):
    """The states (T, D) of one text, from transformers."""
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = torch.from_numpy(embedder.tokenizer.encode([text])[0])[None]
    with torch.inference_mode():
        return model(input_ids=ids).last_hidden_state[0]


POOLED = {
    "cls": lambda hidden: hidden[0],
    "max": lambda hidden: hidden.amax(dim=0),
    "mean": lambda hidden: hidden.mean(dim=0),
    "mean_sqrt_len_tokens": lambda hidden: hidden.sum(dim=0) / len(hidden) ** 0.5,
    "weightedmean": lambda hidden: (
        (hidden * torch.arange(1, len(hidden) + 1)[:, None]).sum(dim=0) / (len(hidden) * (len(hidden) + 1) / 2)
    ),
    "lasttoken": lambda hidden: hidden[-1],
}


@pytest.mark.parametrize("target", ["cpu-fp32", "portable"])
@pytest.mark.parametrize("modes", [*([mode] for mode in POOLED), ["mean", "cls"], ["max", "weightedmean", "lasttoken"]])
def test_every_pooling(tmp_path, modes, target):
    """Each mode, and several one behind another in the order that the file lists, is sentence-transformers'."""
    folder = checkpoint(tmp_path / "c", pooling={"embedding_dimension": 32, "pooling_mode": modes})
    embedder = exported(folder, tmp_path / "out", target)
    assert embedder.bundle.dims["dense"] == 32 * len(modes)
    found = embedder.embed(TEXTS).dense
    for row, text in zip(found, TEXTS, strict=True):
        hidden = states(folder, embedder, text)
        wanted = torch.cat([POOLED[mode](hidden) for mode in modes]).numpy()
        np.testing.assert_allclose(row, wanted, atol=2e-5 * np.linalg.norm(wanted))


def test_flags_of_several_modes(tmp_path):
    """In the old spelling several flags give several vectors, in the order of sentence-transformers' table."""
    pooling = {**FLAGS, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    assert read_modules(checkpoint(tmp_path / "c", pooling=pooling)).pooling == "cls+mean"
    assert read_modules(checkpoint(tmp_path / "d", pooling=FLAGS)).pooling == "mean"


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8", "portable"])
def test_dense_and_normalize_in_any_place(tmp_path, target):
    """Two Dense layers with a Normalize between and one at the end, from safetensors and from a pickle."""
    modules = ("Dense", "Normalize", "Dense", "Normalize")
    pooling = {**FLAGS, "pooling_mode_mean_tokens": True}
    folder = checkpoint(tmp_path / "c", *modules, pooling=pooling, hidden_size=64)
    first = write_dense(folder / "2_Dense", 64, 48, activation="GELU")
    second = write_dense(folder / "4_Dense", 48, 16, activation="Identity", bias=False, pickled=True)
    assert [type(step) for step in read_modules(folder).steps] == [Dense, Normalize, Dense]
    embedder = exported(folder, tmp_path / "out", target)
    assert embedder.bundle.pooling == "mean then Dense then Normalize then Dense"
    assert (embedder.bundle.dims["dense"], embedder.bundle.normalized) == (16, True)
    found = embedder.embed(TEXTS).dense
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    if target != "cpu-int8":
        for row, text in zip(found, TEXTS, strict=True):
            pooled = states(folder, embedder, text).mean(dim=0)
            hidden = torch.nn.functional.gelu(first["linear.weight"] @ pooled + first["linear.bias"])
            wanted = second["linear.weight"] @ torch.nn.functional.normalize(hidden, dim=0)
            np.testing.assert_allclose(row, torch.nn.functional.normalize(wanted, dim=0).numpy(), atol=2e-5)
    assert check_bundle(embedder.bundle.folder, folder).passed


@pytest.mark.parametrize("activation", ["Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU"])
def test_activations(tmp_path, activation):
    """Every activation that is read is the one that PyTorch has; vectors stay as they are without Normalize."""
    folder = checkpoint(tmp_path / "c", "Dense", pooling={**FLAGS, "pooling_mode_cls_token": True})
    state = write_dense(folder / "2_Dense", 32, 8, activation=activation)
    embedder = exported(folder, tmp_path / "out")
    hidden = states(folder, embedder, TEXTS[1])[0]
    module = getattr(torch.nn, activation)()
    wanted = module(state["linear.weight"] @ hidden + state["linear.bias"]).numpy()
    np.testing.assert_allclose(embedder.embed(TEXTS[1:2]).dense[0], wanted, atol=2e-5 * np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation_function": "os.system"}, "activation_function"),
        ({"activation_function": ACTIVATION + "Softmax"}, "activation_function"),
        ({"in_features": 31}, "expected a Dense for vectors of 32 components, found in_features 31."),
        ({"in_features": "32"}, "in_features and out_features"),
        ({"out_features": 9}, "2_Dense.linear.weight   expected (9, 32), found (8, 32)"),
        ({"use_residual": True}, "use_residual true"),
        ({"module_input_name": "token_embeddings"}, "module_input_name"),
    ],
)
def test_a_dense_that_is_not_computed(tmp_path, changes, said):
    """What a Dense may say and we do not compute, or what does not fit, is an error that names it."""
    folder = checkpoint(tmp_path / "c", "Dense", pooling={**FLAGS, "pooling_mode_cls_token": True})
    write_dense(folder / "2_Dense", 32, 8, **changes)
    with pytest.raises(CheckpointError) as caught:
        exported(folder, tmp_path / "out")
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_dense_without_weights(tmp_path):
    """A Dense of which the weights are missing is an error that names its folder."""
    folder = checkpoint(tmp_path / "c", "Dense", pooling={**FLAGS, "pooling_mode_cls_token": True})
    write_json(folder / "2_Dense/config.json", {"in_features": 32, "out_features": 8})
    with pytest.raises(CheckpointError, match=r"2_Dense: expected the weights of a Dense"):
        exported(folder, tmp_path / "out")


@pytest.mark.parametrize("pooling", ["max", ["cls", "mean"]])
def test_gpus_have_three_poolings(tmp_path, pooling):
    """Packed targets refuse what they do not have, before anything is written."""
    folder = checkpoint(tmp_path / "c", pooling={"pooling_mode": pooling})
    with pytest.raises(CheckpointError, match="found cuda-fp16, which supports only cls, mean, last"):
        exported(folder, tmp_path / "out", "cuda-fp16")


@pytest.mark.parametrize("kept", [True, False])
def test_a_saved_truncate_dim(tmp_path, kept):
    """Vectors are cut to what the model was saved with, unless a caller asks for more."""
    folder = checkpoint(tmp_path / "c", "Normalize", pooling={**FLAGS, "pooling_mode_cls_token": True})
    write_json(folder / "config_sentence_transformers.json", {"truncate_dim": 8 if kept else None})
    embedder = exported(folder, tmp_path / "out")
    whole = embedder.embed(TEXTS, truncate_dim=32).dense
    assert whole.shape == (3, 32)
    found = embedder.embed(TEXTS).dense
    if kept:
        np.testing.assert_allclose(found, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1)[:, None], atol=1e-6)
    else:
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("name", [None, "cosine", "dot", "euclidean", "manhattan"])
def test_the_models_own_similarity(tmp_path, name):
    """`similarity` compares as the model was published: cosines by default, of vectors of any length."""
    folder = checkpoint(tmp_path / "c", pooling={**FLAGS, "pooling_mode_mean_tokens": True})
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": name})
    embedder = exported(folder, tmp_path / "out")
    assert embedder.bundle.similarity == (name or "cosine")
    left, right = embedder.embed(TEXTS).dense, embedder.embed(["ab", "xy zz"]).dense
    by_hand = {
        "cosine": lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b),
        "dot": lambda a, b: a @ b,
        "euclidean": lambda a, b: -np.linalg.norm(a - b),
        "manhattan": lambda a, b: -np.abs(a - b).sum(),
    }[name or "cosine"]
    wanted = [[by_hand(a.astype(np.float64), b.astype(np.float64)) for b in right] for a in left]
    np.testing.assert_allclose(embedder.similarity(TEXTS, ["ab", "xy zz"]), wanted, rtol=1e-5)


def test_similarity_by_another_name():
    """A name that is none is refused with those that there are."""
    with pytest.raises(InputError, match="expected by out of cosine, dot, euclidean, manhattan, found 'l2'"):
        similarity(np.ones((1, 2), dtype=np.float32), np.ones((1, 2), dtype=np.float32), by="l2")


def test_portable_files_say_the_same(tmp_path):
    """Modules, prompts, lengths and settings of a portable bundle read back as those of the checkpoint."""
    folder = checkpoint(tmp_path / "c", "Dense", "Normalize", pooling={"pooling_mode": ["mean", "cls"]})
    write_dense(folder / "2_Dense", 64, 16)
    settings = {
        "prompts": {"query": "q: ", "document": "d: ", "other": "o: "}, "default_prompt_name": "other",
        "similarity_fn_name": "dot", "truncate_dim": 8,
    }  # fmt: skip
    write_json(folder / "config_sentence_transformers.json", settings)
    record = json.loads((folder / "tokenizer_config.json").read_text()) | {"max_length": 16, "model_max_length": 256}
    write_json(folder / "tokenizer_config.json", record)
    out = exported(folder, tmp_path / "out", "portable").bundle.folder
    assert read_modules(out) == read_modules(folder)
    assert json.loads((out / "config_sentence_transformers.json").read_text()) == settings
    assert Bundle.open(out).prompts == {"query": "q: ", "passage": "d: "}
    lengths = json.loads((out / "tokenizer_config.json").read_text())
    assert (lengths["max_length"], lengths["model_max_length"]) == (256, 256)
    assert json.loads((out / "tokenizer.json").read_text())["truncation"] is None
    assert json.loads((out / "sentence_bert_config.json").read_text())["max_seq_length"] == 256
