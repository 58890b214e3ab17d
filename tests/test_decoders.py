"""Mistral, Gemma2, Qwen2 and Qwen3: parity with transformers, windows, soft caps, padding on either side, prefixes."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import transformers

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.lowering import cpu_nbits
from bge_export.lowering.lower import Lowering
from bge_export.models import random_checkpoint
from bge_export.proof import layerwise
from bge_export.request import Request
from bge_onnx import CheckpointError, Embedder, InputError
from bge_onnx.embed.prefix import Prefix
from bge_onnx.run.session import Session
from bge_onnx.vectors.embeddings import VectorOptions
from tiny import edit_json, read_weights, store_weights

WINDOW = 8
LENGTHS = [1, 2, 5, 7, 8, 9, 15, 16, 17, 24]  # to three times the window
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "sliding_window": WINDOW,
}
CONFIGS = {
    "mistral": {**SIZES, "model_type": "mistral", "hidden_act": "silu", "rms_norm_eps": 1e-5},
    "gemma2": {
        **SIZES,
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 16,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 3.0,
    },
    "gemma": {**SIZES, "model_type": "gemma", "hidden_act": "gelu", "sliding_window": None, "head_dim": 16},
    "qwen3": {**SIZES, "model_type": "qwen3", "hidden_act": "silu", "sliding_window": None, "head_dim": 16},
    "qwen2": {**SIZES, "model_type": "qwen2", "hidden_act": "silu", "sliding_window": None},
}


def write_decoder(folder, config):
    """A seeded checkpoint whose attention looks at something: scores spread, and reach the soft cap."""
    folder.mkdir(parents=True, exist_ok=True)
    random_checkpoint.write(folder, config, seed=0, lower_case=False)
    store_weights(folder, {name: tensor * _factor(name) for name, tensor in read_weights(folder).items()})
    return folder


def _factor(name):
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return 15
    return 1 if "norm" in name else 4


@pytest.fixture(scope="module", params=["mistral", "gemma", "gemma2", "qwen2", "qwen3", "stories260k"])
def checkpoint(request, tmp_path_factory):
    """Shrunken Mistral and Gemma2 with seeded weights, and a tiny Mistral that was trained."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param != "stories260k":
        return write_decoder(folder, CONFIGS[request.param])
    source = request.getfixturevalue("data") / "stories260k-mistral"
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(source / name, folder / name)
    random_checkpoint.write_tokenizer(folder, json.loads((folder / "config.json").read_text()), lower_case=False)
    return folder


def export_decoder(checkpoint, out, **changes):
    request = {"model": "tiny", "target": "cpu-fp32", "checkpoint": checkpoint, "options": Options(pooling="last")}
    return export(Request(**request | changes), out)


@pytest.fixture(scope="module")
def embedder(checkpoint, tmp_path_factory):
    """The checkpoint for cpu-fp32."""
    out = tmp_path_factory.mktemp("bundle") / "decoder"
    export_decoder(checkpoint, out)
    return Embedder.open(out, threads=2)


@pytest.fixture(scope="module")
def model(checkpoint):
    """The checkpoint in transformers."""
    return transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()


def token_ids(count, length, seed=0):
    return list(np.random.default_rng(seed).integers(4, 290, (count, length)))


def padded(row, length, side):
    pad = length - len(row)
    return np.pad(row, (pad, 0) if side == "left" else (0, pad))


def unit(states):
    return torch.nn.functional.normalize(states, dim=-1).numpy()


@pytest.mark.parametrize("side", ["left", "right"])
def test_vectors_are_transformers(embedder, model, side):
    """Texts of all lengths in one padded batch of transformers, on either side, give our vectors."""
    texts = [ids for length in LENGTHS for ids in token_ids(2, length, seed=length)]
    longest = max(map(len, texts))
    ids = torch.tensor(np.stack([padded(text, longest, side) for text in texts]))
    mask = torch.tensor(np.stack([padded(np.ones_like(text), longest, side) for text in texts]))
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    last = hidden[:, -1] if side == "left" else hidden[torch.arange(len(texts)), mask.sum(dim=1) - 1]
    np.testing.assert_allclose(embedder.embed_token_ids(texts).dense, unit(last), atol=2e-6)


def test_the_oracle_of_one_layer_at_a_time_is_transformers(checkpoint, model):
    """Layer by layer gives the states of the whole model."""
    texts = [ids for length in (1, 9, 24) for ids in token_ids(1, length)]
    with torch.inference_mode():
        wanted = [model(input_ids=torch.tensor(ids[None])).last_hidden_state[0, -1].numpy() for ids in texts]
    np.testing.assert_allclose(layerwise.last_states(checkpoint, texts), wanted, rtol=1e-5, atol=1e-5)


def test_a_vector_does_not_depend_on_its_batch(embedder):
    """The same bits alone and among others, whatever the batch."""
    texts = [ids for length in (3, 3, 3, 17, 17, 40) for ids in token_ids(1, length, seed=length)]
    together = embedder.embed_token_ids(texts, budget_tokens=64).dense
    for index, text in enumerate(texts):
        np.testing.assert_array_equal(embedder.embed_token_ids([text]).dense[0], together[index])


def test_the_window_matters(tmp_path):
    """A checkpoint whose window is wider gives other vectors for texts longer than the narrow one."""
    narrow = write_decoder(tmp_path / "narrow", CONFIGS["mistral"])
    wide = write_decoder(tmp_path / "wide", CONFIGS["mistral"] | {"sliding_window": None})
    found = [export_decoder(folder, tmp_path / f"{folder.name}-bundle").folder for folder in (narrow, wide)]
    short, long = token_ids(1, WINDOW), token_ids(1, 3 * WINDOW)
    left, right = (Embedder.open(folder) for folder in found)
    np.testing.assert_allclose(left.embed_token_ids(short).dense, right.embed_token_ids(short).dense, atol=1e-6)
    assert np.abs(left.embed_token_ids(long).dense - right.embed_token_ids(long).dense).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling   expected None"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type   expected 'default', found 'yarn'"),
        ({"attention_bias": True}, "attention_bias   expected False"),
        ({"num_key_value_heads": 3}, "expected num_attention_heads to be a multiple of num_key_value_heads"),
        ({"hidden_act": "gelu"}, "hidden_act   expected 'silu'"),
    ],
)
def test_what_the_graph_does_not_compute(tmp_path, changes, message):
    """Rotary scaling, biases and other activations are refused, with the key and its value."""
    folder = write_decoder(tmp_path / "checkpoint", CONFIGS["mistral"])
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError) as caught:
        export_decoder(folder, tmp_path / "bundle")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "portable"}, "expected one for mistral models, cpu-fp32"),
        ({"options": Options(pooling="cls")}, "expected pooling last"),
    ],
)
def test_what_decoders_have_not(tmp_path, changes, message):
    """Targets and poolings of encoders are refused."""
    folder = write_decoder(tmp_path / "checkpoint", CONFIGS["mistral"])
    with pytest.raises(CheckpointError, match=message):
        export_decoder(folder, tmp_path / "bundle", **changes)


def test_the_end_token_is_put_where_the_tokenizer_leaves_it_out(tmp_path):
    """A tokenizer.json without an end token gets one: its state is the vector."""
    folder = write_decoder(tmp_path / "checkpoint", CONFIGS["mistral"])
    record = json.loads((folder / "tokenizer.json").read_text())
    record["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(record))
    bundle = export_decoder(folder, tmp_path / "bundle")
    assert Embedder.open(bundle.folder).tokenizer.encode([""])[0].tolist() == [1, 2]


def test_a_tokenizer_without_end_token_is_refused(tmp_path):
    """Without an end token there is nothing to pool."""
    folder = write_decoder(tmp_path / "checkpoint", CONFIGS["mistral"])
    edit_json(folder / "tokenizer_config.json", remove=["eos_token"])
    with pytest.raises(CheckpointError, match="begins every text and one that ends it, found 1 and None"):
        export_decoder(folder, tmp_path / "bundle")


PREFIX = "one two three four five six, "
TEXTS = ["seven eight", "", "nine", "seven eight", "ten eleven twelve thirteen fourteen fifteen sixteen seventeen"]


def test_a_prefix_gives_the_vectors_of_the_whole_text(embedder):
    """Keys and values of a beginning, computed once, give what the whole texts give; also behind the window."""
    wanted = embedder.embed([PREFIX + text for text in TEXTS]).dense
    prefix = embedder.with_prefix(PREFIX)
    np.testing.assert_allclose(prefix.embed(TEXTS).dense, wanted, atol=2e-6)
    np.testing.assert_allclose(prefix.embed(TEXTS[:1]).dense, wanted[:1], atol=2e-6)
    assert prefix.embed([]).dense.shape == (0, 64)
    assert len(prefix.token_ids) > WINDOW
    assert prefix.past.nbytes == prefix.past.keys.nbytes * 2 > 0


def test_a_prefix_ends_where_its_tokens_do(embedder):
    """Where the tokenizer merges the prefix's last letters with the text's first, less is shared: nothing is wrong."""
    whole = [f"one two thr{text}" for text in ("ee four", "ice", " x")]
    prefix = embedder.with_prefix("one two thr")
    found = prefix.embed([text.removeprefix("one two thr") for text in whole]).dense
    np.testing.assert_allclose(found, embedder.embed(whole).dense, atol=2e-6)


def test_texts_that_share_a_part_of_the_prefix(embedder):
    """Keys and values of the shared tokens alone are used, whatever part of the prefix that is."""
    (ids,) = token_ids(1, 20)
    texts = [np.concatenate([ids[:shared], [291, 292, 293]]) for shared in (0, 1, 7, 12, 19, 20)]
    found = Prefix.of_token_ids(embedder, "", ids).embed_whole(texts, VectorOptions()).dense
    np.testing.assert_allclose(found, embedder.embed_token_ids(texts).dense, atol=2e-6)


def test_only_what_is_not_shared_is_computed(embedder, monkeypatch):
    """The session sees each text's own tokens, and the prefix only when it is made."""
    prefix = embedder.with_prefix(PREFIX)
    seen = []
    run_one = Session._run_one

    def spy(self, session, batch, names, past):
        seen.append((batch.input_ids.shape[1], past.keys.shape[2]))
        return run_one(self, session, batch, names, past)

    monkeypatch.setattr(Session, "_run_one", spy)
    prefix.embed(["seven"])
    whole = len(embedder.tokenizer.encode([PREFIX + "seven"])[0])
    assert [own + shared for own, shared in seen] == [whole]
    assert seen[0][1] >= len(prefix.token_ids) - 1


@pytest.mark.parametrize(("prefix", "message"), [("ab " * 600, "expected at most 510 tokens"), (7, r"texts\[0\]: int")])
def test_a_prefix_that_cannot_be(embedder, prefix, message):
    """A prefix that leaves no room for a text, or is no string, is refused."""
    with pytest.raises(InputError, match=message):
        embedder.with_prefix(prefix)


def test_bidirectional_models_have_no_prefix(tiny):
    """In BERT a text's end changes its beginning."""
    with pytest.raises(InputError, match="expected a bundle of a causal model"):
        tiny.with_prefix("query: ")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_rounded_weights_give_the_vectors_of_these_weights(tmp_path, monkeypatch, kind, bits):
    """The graph of rounded weights computes what float32 PyTorch computes with the same rounded weights."""
    monkeypatch.setattr(cpu_nbits, "ACCURACY_LEVEL", 0)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    random_checkpoint.write(folder, CONFIGS[kind] | {"intermediate_size": 100}, seed=0, lower_case=False)
    bundle = export_decoder(folder, tmp_path / "bundle", target=f"cpu-int{bits}")
    texts = [ids for length in (1, 9, 24) for ids in token_ids(2, length, seed=length)]
    found = Embedder.open(bundle.folder).embed_token_ids(texts).dense
    states = layerwise.last_states(folder, texts, lowering=Lowering({}, partial(cpu_nbits.rounded, bits=bits)))
    np.testing.assert_allclose(found, unit(torch.tensor(states)), atol=2e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_weights_give_the_same_bits_in_any_batch(tmp_path, bits):
    """Activations are rounded row by row: a text's vector does not depend on its neighbours, nor on their number."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    random_checkpoint.write(folder, CONFIGS["mistral"] | {"hidden_size": 256}, seed=0, lower_case=False)
    embedder = Embedder.open(export_decoder(folder, tmp_path / "bundle", target=f"cpu-int{bits}").folder)
    texts = [ids for length in (1, 3, 3, 3, 17, 17, 40) for ids in token_ids(1, length, seed=length + bits)]
    together = embedder.embed_token_ids(texts, budget_tokens=64).dense
    alone = [embedder.embed_token_ids([text]).dense[0] for text in texts]
    np.testing.assert_array_equal(together, alone)
    whole = [np.concatenate([texts[-1], text]) for text in texts]
    prefix = Prefix.of_token_ids(embedder, "", texts[-1])
    found = prefix.embed_whole(whole, VectorOptions()).dense
    cosines = np.einsum("nd,nd->n", found, embedder.embed_token_ids(whole).dense)
    assert cosines.min() > 0.9999
