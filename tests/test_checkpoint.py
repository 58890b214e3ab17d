"""Reading a checkpoint: every form of its files gives the same vectors, every fault is named and nothing is guessed."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from bge_export.checkpoint.config import parse_config, read_json
from bge_export.checkpoint.recipe import Options
from bge_export.cli.main import cli as export_cli
from bge_export.export import export
from bge_export.models.bert import Config
from bge_export.models.families import MODELS
from bge_export.models.random_checkpoint import bert_tokenizer
from bge_export.recheck import check_bundle
from bge_export.request import Request
from bge_onnx import CheckpointError, Embedder
from tiny import (
    edit_json,
    read_weights,
    remove_weights,
    store_pickle,
    store_weights,
    write_checkpoint,
    write_json,
    write_m3_checkpoint,
    write_modules,
)

TEXTS = ["", "a", "what is bm25?", "one two three " * 40]
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 95826648\n"
FORM = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@pytest.fixture(scope="module", autouse=True)
def _torch_on_one_core():
    """Spinning threads of a tiny model only wait for each other where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint")


def vectors(checkpoint, out):
    request = Request(model="tiny", target="cpu-fp32", checkpoint=checkpoint, options=Options(pooling="cls"))
    return Embedder.open(export(request, out).folder, threads=1).embed(TEXTS).dense


def refusal(checkpoint):
    """The text of the CheckpointError that an export ends with; nothing is left of the bundle."""
    with pytest.raises(CheckpointError) as caught:
        vectors(checkpoint, checkpoint.parent / "bundle")
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    return str(caught.value)


def store_shards(folder, tensors):
    """Two pickles and their index, as transformers wrote large models."""
    remove_weights(folder)
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[:20], "pytorch_model-00002-of-00002.bin": names[20:]}
    for file, part in shards.items():
        torch.save({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})


def store_task_model(folder, tensors):
    """With a task's prefix, its head and the positions' buffer, as older versions of transformers wrote it."""
    extra = {"cls.predictions.bias": torch.zeros(400), "bert.pooler.dense.bias": torch.zeros(32)}
    extra["bert.embeddings.position_ids"] = torch.arange(512)[None]
    store_pickle(folder, {f"bert.{name}": tensor for name, tensor in tensors.items()} | extra)


def store_views(folder, tensors):
    """Parameters that are views with strides."""
    turned = {name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    store_pickle(folder, {name: torch.nn.Parameter(tensor) for name, tensor in turned.items()})


FORMS = {
    "safetensors": store_weights,
    "pickle": store_pickle,
    "legacy pickle": lambda folder, tensors: store_pickle(folder, tensors, zipped=False),
    "sharded pickles": store_shards,
    "task model": store_task_model,
    "views": store_views,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weights_gives_the_same_bits(checkpoint, tiny, tmp_path, form):
    """The same weights give bit-identical vectors, however the checkpoint stores them."""
    FORMS[form](checkpoint, read_weights(checkpoint))
    np.testing.assert_array_equal(vectors(checkpoint, tmp_path / "bundle"), tiny.embed(TEXTS).dense)


def test_safetensors_are_taken_where_a_pickle_lies_beside(checkpoint, tiny, tmp_path):
    """A checkpoint with both kinds of weights is read from the safetensors; the pickle is not even opened."""
    (checkpoint / "pytorch_model.bin").write_bytes(b"no pickle")
    np.testing.assert_array_equal(vectors(checkpoint, tmp_path / "bundle"), tiny.embed(TEXTS).dense)


def test_a_masked_language_model_as_transformers_saves_it(checkpoint, tiny, tmp_path):
    """BertForMaskedLM's own folder, with the prefix `bert.` and a head `cls.`, gives the encoder's vectors."""
    config = transformers.BertConfig.from_pretrained(checkpoint)
    model = transformers.BertForMaskedLM(config)
    model.bert.load_state_dict(read_weights(checkpoint))
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    shutil.copy(checkpoint / "tokenizer.json", saved)
    shutil.copy(checkpoint / "tokenizer_config.json", saved)
    assert {name.split(".")[0] for name in model.state_dict()} == {"bert", "cls"}
    np.testing.assert_array_equal(vectors(saved, tmp_path / "bundle"), tiny.embed(TEXTS).dense)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_are_widened_exactly(checkpoint, tiny, tmp_path, dtype):
    """Weights stored in 16 bits give the vectors of the same values stored in float32."""
    halves = {name: tensor.to(dtype) for name, tensor in read_weights(checkpoint).items()}
    store_weights(checkpoint, halves)
    found = vectors(checkpoint, tmp_path / "halves")
    store_weights(checkpoint, {name: tensor.to(torch.float32) for name, tensor in halves.items()})
    np.testing.assert_array_equal(found, vectors(checkpoint, tmp_path / "wide"))
    assert np.abs(found - tiny.embed(TEXTS).dense).max() > 1e-6


def test_all_faulty_weights_are_listed_at_once(checkpoint):
    """One error names every weight that is missing, of another shape or unknown, with both shapes."""
    weights = read_weights(checkpoint)
    del weights["encoder.layer.0.output.dense.weight"], weights["encoder.layer.1.intermediate.dense.bias"]
    weights["embeddings.LayerNorm.bias"] = torch.zeros(31)
    weights["adapter.scale"] = torch.zeros(1)
    store_weights(checkpoint, weights)
    assert refusal(checkpoint) == (
        "bert: 2 weights missing, 1 of another shape, 1 unknown:\n"
        "    encoder.layer.0.output.dense.weight   expected (32, 64), found nothing\n"
        "    encoder.layer.1.intermediate.dense.bias   expected (64,), found nothing\n"
        "    embeddings.LayerNorm.bias   expected (32,), found (31,)\n"
        "    adapter.scale   unknown\n"
        "    Are config.json and the weights of the same model?"
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
def test_integer_weights_are_refused(checkpoint, dtype):
    """A quantised weight is named and refused: without its scale it would be another model."""
    weights = read_weights(checkpoint)
    weights["encoder.layer.0.output.dense.weight"] = weights["encoder.layer.0.output.dense.weight"].to(dtype)
    store_weights(checkpoint, weights)
    text = refusal(checkpoint)
    assert "encoder.layer.0.output.dense.weight" in text
    assert str(dtype).removeprefix("torch.") in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("embeddings.word_embeddings.weight", 12800),
        ("embeddings.token_type_embeddings.weight", 64),
        ("encoder.layer.0.intermediate.dense.weight", 2048),
        ("encoder.layer.1.output.dense.bias", 32),
    ],
)
def test_weights_that_are_not_finite_are_refused(checkpoint, name, size, value):
    """NaN and infinity in any weight, large or small, are an error that names it and counts them."""
    weights = read_weights(checkpoint)
    weights[name].view(-1)[7] = value
    store_weights(checkpoint, weights)
    text = refusal(checkpoint)
    assert f"{name}: expected finite weights, found 1 NaN or infinite of {size}." in text
    assert "take another" in text


@pytest.mark.parametrize("kept", [0, 4, 100, 50_000], ids=["empty", "in the length", "in the header", "in the data"])
def test_a_cut_safetensors_file_is_refused(checkpoint, kept):
    """A safetensors file cut anywhere is an error with its name, its size and the advice to download it again."""
    file = store_weights(checkpoint, read_weights(checkpoint))
    file.write_bytes(file.read_bytes()[:kept])
    text = refusal(checkpoint)
    assert f"{file}: expected a safetensors file, found {kept} bytes that are none" in text
    assert "Truncated or damaged: download it again." in text


@FORM
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_cut_pickle_is_refused(checkpoint, zipped, part):
    """A pickle cut anywhere is an error with its name and the advice to download it again."""
    file = store_pickle(checkpoint, read_weights(checkpoint), zipped=zipped)
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    text = refusal(checkpoint)
    assert f"{file}: truncated or damaged (" in text
    assert "Download it again." in text


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_named_as_one(checkpoint, file):
    """A repository cloned without its large files is told from a damaged one, with the command that fetches them."""
    remove_weights(checkpoint)
    (checkpoint / file).write_bytes(LFS_POINTER)
    text = refusal(checkpoint)
    assert "Git LFS" in text
    assert "git lfs pull" in text


class MakesFolder:
    """Something whose unpickling would run code."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@FORM
def test_a_pickle_with_code_is_not_run(checkpoint, tmp_path_factory, zipped):
    """A pickle that holds more than tensors is refused and its code is not run; nothing advises to run it."""
    trap = tmp_path_factory.mktemp("trap") / "sprung"
    file = store_pickle(checkpoint, read_weights(checkpoint) | {"trap": MakesFolder(trap)}, zipped=zipped)
    torch.load(file, weights_only=False)
    assert trap.is_dir(), "the trap itself does not work"
    trap.rmdir()
    text = refusal(checkpoint)
    assert not trap.exists()
    assert f"{file}: expected a pickle of tensors only, found more" in text
    assert "It was not run. Save the weights as safetensors" in text
    assert "weights_only" not in text


@FORM
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"epoch": 3}, "dict"),
        ({"state_dict": {"embeddings.LayerNorm.bias": torch.zeros(32)}}, "dict"),
        ({7: torch.zeros(1)}, "dict"),
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
    ],
    ids=["number", "nested", "key that is no name", "list", "tensor"],
)
def test_a_pickle_of_other_things_is_refused(checkpoint, zipped, value, kind):
    """A harmless pickle that is no dict of named tensors is refused, and what to save instead is said."""
    file = store_pickle(checkpoint, read_weights(checkpoint) | value if kind == "dict" else value, zipped=zipped)
    text = refusal(checkpoint)
    assert f"{file}: expected a dict of tensors, found {kind} with other things in it." in text
    assert "Save the model's state_dict() alone." in text


def test_a_weight_in_two_shards_is_refused(checkpoint):
    """A weight that two files hold has two values: neither is taken."""
    tensors = read_weights(checkpoint)
    store_shards(checkpoint, tensors)
    name = min(tensors)
    for shard in sorted(checkpoint.glob("pytorch_model-*.bin")):
        torch.save({**torch.load(shard, weights_only=True), name: tensors[name]}, shard)
    assert f"expected each weight in one file, found {name} in another too." in refusal(checkpoint)


def test_a_missing_shard_is_named(checkpoint):
    """An index that lists a file that is not there is an error that names the index and the file."""
    store_shards(checkpoint, read_weights(checkpoint))
    (checkpoint / "pytorch_model-00002-of-00002.bin").unlink()
    text = refusal(checkpoint)
    assert f"{checkpoint / 'pytorch_model.bin.index.json'} lists weights in pytorch_model-00002-of-00002.bin" in text
    assert "Download the checkpoint again." in text


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "not JSON"])
def test_a_damaged_index_is_named(checkpoint, content):
    """An index of shards that is no index is an error with its name, not a Python traceback."""
    (checkpoint / "model.safetensors.index.json").write_text(content)
    text = refusal(checkpoint)
    assert str(checkpoint / "model.safetensors.index.json") in text
    assert "Download the checkpoint again." in text


def test_no_weights(checkpoint):
    """A folder without weights is an error that lists the file names looked for."""
    remove_weights(checkpoint)
    text = refusal(checkpoint)
    assert f"{checkpoint}: expected weights (" in text
    assert "pytorch_model.bin, pytorch_model.bin.index.json), found none of them." in text
    assert "Give the folder that holds the model's own files." in text


def test_no_config(checkpoint):
    """A folder without config.json is an error that says which files belong together."""
    (checkpoint / "config.json").unlink()
    text = refusal(checkpoint)
    assert f"{checkpoint}: expected a checkpoint with config.json, found none." in text
    assert "Give the folder that holds config.json, the weights and the tokenizer." in text


@pytest.mark.parametrize("content", ["", "{'a': 1}", '{"model_type": "bert"', "\0\xff"])
def test_a_config_that_is_not_json(checkpoint, content):
    """A config.json that cannot be parsed is an error with its name and the place of the fault."""
    (checkpoint / "config.json").write_text(content, encoding="latin-1")
    text = refusal(checkpoint)
    assert f"{checkpoint / 'config.json'}: expected JSON, found " in text
    assert "Download the checkpoint again." in text


@pytest.mark.parametrize("content", ["[]", "null", '"bert"', '{"model_type": ["bert"]}'])
def test_a_config_that_is_no_object(checkpoint, content):
    """A config.json of valid JSON that is no configuration is an error with its name, not a Python traceback."""
    (checkpoint / "config.json").write_text(content)
    assert f"{checkpoint / 'config.json'}: expected" in refusal(checkpoint)


@pytest.mark.parametrize("model_type", ["roberta", "gemma3", "BERT", None])
def test_an_unknown_architecture(checkpoint, model_type):
    """A model_type that no model file stands for is refused, and those that are supported are listed."""
    edit_json(checkpoint / "config.json", model_type=model_type)
    text = refusal(checkpoint)
    known = "bert, xlm-roberta, mistral, gemma, gemma2, qwen2, qwen3"
    assert f"{checkpoint / 'config.json'}: expected a model_type out of {known}, found {model_type!r}." in text
    assert "This architecture is not supported." in text


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("hidden_act", "relu", "'gelu'"),
        ("hidden_act", "gelu_new", "'gelu'"),
        ("position_embedding_type", "relative_key", "'absolute'"),
        ("is_decoder", True, "False"),
        ("add_cross_attention", True, "False"),
        ("pruned_heads", {"0": [1]}, "{}"),
    ],
)
def test_an_unsupported_value_is_refused(checkpoint, key, value, wanted):
    """A key whose value our graph does not compute is an error with both values."""
    edit_json(checkpoint / "config.json", **{key: value})
    text = refusal(checkpoint)
    assert f"{key}   expected {wanted}, found {value!r}" in text
    assert "Each could change the vectors." in text


def test_all_faulty_keys_are_listed_at_once(checkpoint):
    """One error names every key of config.json that is missing, unknown, of a wrong kind or not supported."""
    changes = {"intermediate_size": "64", "is_decoder": True, "rope_scaling": {"factor": 2}}
    edit_json(checkpoint / "config.json", remove=["hidden_size"], **changes)
    assert refusal(checkpoint) == (
        f"{checkpoint / 'config.json'}: 4 keys that the exporter cannot honour:\n"
        "    hidden_size   missing\n"
        "    intermediate_size   expected a number, found '64'\n"
        "    is_decoder   expected False, found True\n"
        "    rope_scaling   unknown, found {'factor': 2}\n"
        "    Each could change the vectors. If one cannot, list it as harmless in the model's Config."
    )


def test_heads_that_do_not_divide_the_width(checkpoint):
    """A hidden size that is no multiple of the heads is an error with both numbers."""
    edit_json(checkpoint / "config.json", num_attention_heads=5)
    assert "expected hidden_size to be a multiple of num_attention_heads, found 32 and 5." in refusal(checkpoint)


@pytest.mark.parametrize(
    ("key", "value"), [("num_attention_heads", 0), ("num_attention_heads", -4), ("num_hidden_layers", 2.5)]
)
def test_a_size_that_is_no_size(checkpoint, key, value):
    """A size in config.json that is no whole number from 1 on is an error that names the key and the value."""
    edit_json(checkpoint / "config.json", **{key: value})
    text = refusal(checkpoint)
    assert key in text
    assert re.search(rf"found (\S+ and )?{re.escape(repr(value))}\b", text)


@pytest.mark.parametrize("folder", ["tokenizer-bge-small-zh-v1.5", "tokenizer-bge-small-en-v1.5"])
def test_the_published_configurations_are_read(data, folder):
    """Every key of the published BGE configurations is known, and the sizes arrive."""
    path = data / folder / "config.json"
    record = read_json(path)
    config = parse_config(Config, record, path)
    sizes = {key: getattr(config, key) for key in ("hidden_size", "num_hidden_layers", "layer_norm_eps", "vocab_size")}
    assert sizes == {key: record[key] for key in sizes}


def test_a_tokenizer_with_more_tokens_than_the_word_table(checkpoint):
    """A tokenizer whose ids the weights have no row for is refused with both numbers."""
    bert_tokenizer(450, lower_case=True).save(str(checkpoint / "tokenizer.json"))
    text = refusal(checkpoint)
    assert "expected ids below 400, the rows of the word table, found 449." in text
    assert "Are tokenizer and weights of the same model?" in text


def test_a_tokenizer_of_a_vocabulary_alone(checkpoint, tiny, tmp_path):
    """A checkpoint with vocab.txt and no tokenizer.json, as older ones are, gives the same vectors."""
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (checkpoint / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", encoding="utf-8")
    (checkpoint / "tokenizer.json").unlink()
    np.testing.assert_array_equal(vectors(checkpoint, tmp_path / "bundle"), tiny.embed(TEXTS).dense)


@pytest.mark.parametrize(
    "removed", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]], ids=["settings left", "none left"]
)
def test_no_tokenizer(checkpoint, removed):
    """A folder without a tokenizer is refused; nothing stands in for it."""
    for name in removed:
        (checkpoint / name).unlink()
    text = refusal(checkpoint)
    assert f"{checkpoint}: expected a tokenizer" in text
    assert "tokenizer.json" in text


@pytest.mark.parametrize("content", ["", '{"version": "1.0", "added_to', "{}", "[]"])
def test_a_damaged_tokenizer_is_named(checkpoint, content):
    """A tokenizer.json that is cut or is none is an error with its name, not a Python traceback."""
    path = checkpoint / "tokenizer.json"
    path.write_text(content)
    assert f"{path}: expected" in refusal(checkpoint)


def test_the_tokenizers_own_padding_and_truncation_are_dropped(checkpoint, tiny, tmp_path):
    """A tokenizer.json that stores padding and truncation, as some on the Hub do, gives the same vectors."""
    stored = {"padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}}
    stored["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    stored["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    edit_json(checkpoint / "tokenizer.json", **stored)
    np.testing.assert_array_equal(vectors(checkpoint, tmp_path / "bundle"), tiny.embed(TEXTS).dense)
    record = json.loads((tmp_path / "bundle/tokenizer.json").read_text(encoding="utf-8"))
    assert record["padding"] is None
    assert record["truncation"] is None


# Of config.json files on the Hub: intfloat's, unsloth's, our own portable folder's, old versions of transformers'.
HARMLESS = {
    "tokenizer_class": "XLMRobertaTokenizer", "unsloth_version": "2024.9", "_attn_implementation_autoset": True,
    "transformers.js_config": {"use_external_data_format": True}, "torchscript": False, "max_length": 20,
    "do_sample": False, "bad_words_ids": None, "use_bfloat16": False, "task_specific_params": None,
    "add_pooling_layer": False, "architectures": ["BertModel"], "decoder_start_token_id": None, "num_beams": 4,
    "top_k": 50, "prefix": None, "id2label": {"0": "a", "1": "b"}, "early_stopping": False, "tf_legacy_loss": False,
    "chunk_size_feed_forward": 2, "sep_token_id": 3, "mask_token_id": 4, "_name_or_path": "x", "dtype": "float32",
}  # fmt: skip


def test_keys_that_change_nothing_are_skipped(checkpoint, tiny, tmp_path):
    """Keys for generation, tokenizers, training and other tools leave the vectors as they are."""
    edit_json(checkpoint / "config.json", **HARMLESS)
    np.testing.assert_array_equal(vectors(checkpoint, tmp_path / "bundle"), tiny.embed(TEXTS).dense)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_key_that_transformers_writes_is_decided(model, tmp_path):
    """No key of a config.json that transformers writes is unknown, for each architecture."""
    model_type = model.Config.required["model_type"]
    record = transformers.CONFIG_MAPPING[model_type]().to_dict()
    write_json(tmp_path / "config.json", record)
    parse_config(model.Config, read_json(tmp_path / "config.json"), tmp_path)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_no_key_of_the_models_own_is_harmless_by_chance(model):
    """What a configuration class defines itself is read, required or listed for that model; nothing else of it."""
    from bge_export.checkpoint.config import HARMLESS_KEYS, harmless_keys

    model_type = model.Config.required["model_type"]
    own = {*vars(transformers.CONFIG_MAPPING[model_type]())} - {*vars(transformers.PretrainedConfig())}
    assert own & harmless_keys(model_type) <= HARMLESS_KEYS
    assert not (HARMLESS_KEYS | harmless_keys(model_type)) & {
        "hidden_act", "is_causal", "layer_norm_eps", "layer_types", "num_hidden_layers", "per_layer_config",
        "position_embedding_type", "quantization_config", "rope_parameters", "rope_theta", "sliding_window",
        "use_bidirectional_attention",
    }  # fmt: skip


def test_no_more_than_ten_faults_are_listed(checkpoint):
    """An error lists ten faulty keys and counts the others, and cuts what it quotes."""
    strange = {f"strange_{number}": "x" * 100_000 for number in range(1000)}
    edit_json(checkpoint / "config.json", **strange, **{"y" * 100_000: 1})
    text = refusal(checkpoint)
    assert "1001 keys that the exporter cannot honour" in text
    assert "and 991 more" in text
    assert len(text) < 3000


def store_gamma_and_beta(folder, tensors):
    """LayerNorms as TensorFlow called their parts, with and without a task's prefix."""
    renamed = {
        re.sub(r"LayerNorm.weight$", "LayerNorm.gamma", re.sub(r"LayerNorm.bias$", "LayerNorm.beta", name)): tensor
        for name, tensor in tensors.items()
    }
    store_pickle(folder, {f"bert.{name}": tensor for name, tensor in renamed.items()})


def store_beside_shards(folder, tensors):
    """One file, beside the index and the shards of other weights, as an older commit left them."""
    index, shard = folder / "model.safetensors.index.json", folder / "model-00000.safetensors"
    kept = index.read_bytes()
    store_weights(folder, tensors)
    index.write_bytes(kept)
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, shard)


@pytest.mark.parametrize("store", [store_gamma_and_beta, store_beside_shards])
def test_weights_are_those_that_transformers_loads(checkpoint, tiny, tmp_path, store):
    """Old names of LayerNorm's parts are read; one whole file counts before an index of shards."""
    store(checkpoint, read_weights(checkpoint))
    np.testing.assert_array_equal(vectors(checkpoint, tmp_path / "bundle"), tiny.embed(TEXTS).dense)


@pytest.mark.parametrize("prefix", ["0.auto_model.", "model.", "module.", "base_model.model.", "module.bert."])
def test_weights_behind_a_wrappers_name(checkpoint, prefix):
    """Weights saved with what was around the model, which transformers does not find, are one line with the prefix."""
    tensors = read_weights(checkpoint)
    store_weights(checkpoint, {prefix + name: tensor for name, tensor in tensors.items()})
    text = refusal(checkpoint)
    assert text.startswith("bert: expected weights named as transformers names them, embeddings.")
    assert f"found them behind {prefix!r}.\n    They were saved with a wrapper around the model" in text
    assert text.count("\n") == 1


def test_a_weight_under_two_names_is_refused(checkpoint):
    """A weight with and without the task's prefix has two values: neither is taken."""
    tensors = read_weights(checkpoint)
    store_weights(checkpoint, tensors | {"bert.embeddings.LayerNorm.bias": torch.zeros(32)})
    assert "expected each weight once, found embeddings.LayerNorm.bias under another name too." in refusal(checkpoint)


@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_is_named(checkpoint, alone, monkeypatch):
    """Without peft a LoRA adapter, alone or beside a full model, is an error that says how to merge it."""
    monkeypatch.setattr("bge_export.checkpoint.adapter.importlib.util.find_spec", lambda _: None)
    if alone:
        remove_weights(checkpoint)
    write_json(checkpoint / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "other"})
    text = refusal(checkpoint)
    assert f"{checkpoint / 'adapter_config.json'}: expected a whole model, found a LoRA adapter" in text
    assert "`pip install peft`, and the export merges it" in text


@pytest.fixture
def adapter(checkpoint, tmp_path):
    """A LoRA adapter of the checkpoint, trained on nothing but far from zero, and its model's CLS vectors of TEXTS."""
    return make_adapter(checkpoint, tmp_path)


def make_adapter(checkpoint, tmp_path):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_pretrained(checkpoint)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["query", "dense"]))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    inputs = tokenizer(TEXTS, truncation=True, max_length=512, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model.eval()(**inputs).last_hidden_state[:, 0]
    return tmp_path / "adapter", torch.nn.functional.normalize(states, dim=-1).numpy()


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_merged_where_peft_is(checkpoint, adapter, tiny, tmp_path, beside):
    """An adapter beside its base, or naming its base's folder, gives peft's own vectors."""
    folder, wanted = adapter
    if beside:
        shutil.copytree(folder, checkpoint, dirs_exist_ok=True)
    found = vectors(checkpoint if beside else folder, tmp_path / "bundle")
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - tiny.embed(TEXTS).dense).max() > 0.1


def test_an_adapter_in_the_first_modules_folder(checkpoint, adapter, tmp_path):
    """Base and adapter in the oldest form's folder are merged there."""
    folder, wanted = adapter
    inner = tmp_path / "old/0_Transformer"
    shutil.copytree(checkpoint, inner)
    shutil.copytree(folder, inner, dirs_exist_ok=True)
    modules = [{"path": "0_Transformer/", "type": "x.Transformer"}, {"path": "1_Pooling/", "type": "x.Pooling"}]
    write_json(tmp_path / "old/modules.json", [*modules, {"path": "2_Normalize", "type": "x.Normalize"}])
    write_json(tmp_path / "old/1_Pooling/config.json", {"pooling_mode": "cls"})
    np.testing.assert_allclose(vectors(tmp_path / "old", tmp_path / "bundle"), wanted, atol=1e-5)


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_keeps_heads_and_modules(tmp_path, beside):
    """What stands beside the base's transformer is not lost when an adapter is merged."""
    base = write_m3_checkpoint(tmp_path / "base")
    write_modules(base, "Transformer", "Pooling", "Dense")
    write_json(base / "1_Pooling/config.json", {"pooling_mode": "cls"})
    identity = {"in_features": 32, "out_features": 16, "bias": False, "activation_function": "torch.nn.Identity"}
    write_json(base / "2_Dense/config.json", identity)
    save_file({"linear.weight": torch.eye(16, 32)}, base / "2_Dense/model.safetensors")
    folder, _ = make_adapter(base, tmp_path)
    if beside:
        shutil.copytree(folder, base, dirs_exist_ok=True)
    request = Request(model="tiny", target="cpu-fp32", checkpoint=base if beside else folder)
    bundle = export(request, tmp_path / "bundle")
    assert bundle.dims == {"dense": 16, "sparse": bundle.dims["sparse"], "colbert": bundle.dims["colbert"]}
    assert bundle.parity.passed
    assert check_bundle(bundle.folder, request.checkpoint).passed


def test_an_adapter_is_evaluated(checkpoint, adapter, tmp_path, monkeypatch):
    """The checkpoint that a bundle was made from, an adapter in it, is what it is compared with."""
    monkeypatch.setenv("BGE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(adapter[0], checkpoint, dirs_exist_ok=True)
    request = Request(model="tiny", target="cpu-fp32", checkpoint=checkpoint, options=Options(pooling="cls"))
    export(request, tmp_path / "bundle")
    (tmp_path / "pairs.csv").write_text("ab,ab cd,5\nab,xy,1\ncd,cd,4\n")
    arguments = ["evaluate", str(tmp_path / "bundle"), "--task", str(tmp_path / "pairs.csv"), "--json"]
    found = CliRunner().invoke(export_cli, [*arguments, "--checkpoint", str(checkpoint)], catch_exceptions=False)
    assert json.loads(found.stdout)["fidelity"]["cosine_min"] == pytest.approx(1, abs=1e-5)


def test_an_adapter_of_other_weights_is_refused(checkpoint, adapter):
    """An adapter with weights that its base has no place for is an error with the first of them."""
    shutil.copytree(adapter[0], checkpoint, dirs_exist_ok=True)
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    renamed = {name.replace("model.encoder", "model.bert.encoder"): tensor for name, tensor in tensors.items()}
    save_file(renamed, checkpoint / "adapter_model.safetensors")
    shutil.rmtree(adapter[0])
    assert "expected an adapter for the weights of its base, found " in refusal(checkpoint)


@pytest.mark.parametrize("place", ["0_Transformer", "0_BERT"])
def test_a_model_in_the_first_modules_folder(checkpoint, tmp_path, place):
    """The oldest form of sentence-transformers, the model's files in the first module's folder: the same vectors."""
    old = tmp_path / "old"
    shutil.copytree(checkpoint, old / place)
    write_json(old / "modules.json", [
        {"idx": 0, "name": "0", "path": place, "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ])  # fmt: skip
    write_json(old / "1_Pooling/config.json", {"pooling_mode_cls_token": True})
    write_json(old / place / "sentence_bert_config.json", {"max_seq_length": 16})
    hidden = transformers.AutoModel.from_pretrained(old / place).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(old / place)
    inputs = tokenizer(TEXTS, truncation=True, max_length=16, padding=True, return_tensors="pt")
    with torch.inference_mode():
        wanted = hidden(**inputs).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(vectors(old, tmp_path / "bundle"), wanted, atol=1e-5)


def test_positions_without_end(tmp_path):
    """A decoder's positions, which no weight tells, are refused where their tables would fill the memory."""
    record = transformers.MistralConfig(max_position_embeddings=10**12).to_dict()
    with pytest.raises(CheckpointError, match="expected max_position_embeddings of at most 16777216, found 1000000000"):
        parse_config(MODELS["mistral"].Config, record, tmp_path)


def test_more_layers_than_weights(checkpoint):
    """A billion layers are refused before anything is made for them."""
    edit_json(checkpoint / "config.json", num_hidden_layers=10**9)
    assert "expected num_hidden_layers of at most 37, as many as there are weights, found 1000000000." in refusal(
        checkpoint
    )


def test_a_fifo_is_refused(checkpoint):
    """A FIFO in the place of a file, which would be waited for, is an error with its name."""
    (checkpoint / "tokenizer_config.json").unlink()
    os.mkfifo(checkpoint / "tokenizer_config.json")
    assert f"{checkpoint / 'tokenizer_config.json'}: expected a file, found a FIFO." in refusal(checkpoint)


@pytest.mark.parametrize("content", ["[" * 100_000 + "]" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json"])
def test_json_that_python_cannot_read(checkpoint, file, content):
    """JSON nested 100,000 deep and numbers of 5,000 digits are one short error in every file."""
    (checkpoint / file).write_text(content)
    text = refusal(checkpoint)
    assert file in text
    assert len(text) < 600


@pytest.mark.parametrize(("key", "value"), [("layer_norm_eps", float("nan")), ("layer_norm_eps", float("inf"))])
def test_a_number_that_is_not_finite(checkpoint, key, value):
    """NaN and infinity, which Python's JSON knows, are no sizes."""
    edit_json(checkpoint / "config.json", **{key: value})
    assert f"{key}   expected a number from 0 on, found {value!r}" in refusal(checkpoint)


@pytest.mark.parametrize("place", range(0, 600, 25))
def test_a_damaged_pickle_header(checkpoint, place):
    """A pickle damaged in its first bytes is a CheckpointError, whatever PyTorch raises."""
    file = store_pickle(checkpoint, read_weights(checkpoint), zipped=False)
    content = bytearray(file.read_bytes())
    content[place : place + 4] = b"\xff\x80.("
    file.write_bytes(content)
    assert len(refusal(checkpoint)) < 3000


def test_a_template_with_ids_past_the_table(checkpoint):
    """A tokenizer.json whose template adds an id that the word table has no row for is refused."""
    path = checkpoint / "tokenizer.json"
    record = json.loads(path.read_text())
    record["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [99_999]
    write_json(path, record)
    edit_json(checkpoint / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    text = refusal(checkpoint)
    assert "expected ids below 400, the rows of the word table, found 99999." in text


def test_an_empty_template(checkpoint):
    """A tokenizer.json without a template is refused: no text would begin with [CLS]."""
    edit_json(checkpoint / "tokenizer.json", post_processor=None)
    edit_json(checkpoint / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    text = refusal(checkpoint)
    assert "expected an empty text to become its first and last token (101, 102), found []." in text


def test_a_tokenizer_without_padding(checkpoint):
    """A tokenizer without a token that fills batches up is an error that says what to add."""
    edit_json(checkpoint / "tokenizer_config.json", pad_token=None)
    assert "Add pad_token to tokenizer_config.json." in refusal(checkpoint)


@pytest.mark.parametrize("name", ["BertJapaneseTokenizer", "CanineTokenizer"])
def test_a_tokenizer_of_python_alone(checkpoint, name):
    """A tokenizer that the tokenizers library does not have is refused by its name."""
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (checkpoint / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", encoding="utf-8")
    edit_json(checkpoint / "tokenizer_config.json", tokenizer_class=name)
    text = refusal(checkpoint)
    assert f"expected a tokenizer that the tokenizers library has too, found {name}." in text
    assert "this model is not supported" in text


@pytest.mark.parametrize("name", ["checkpoint", "./checkpoint"])
def test_a_folder_in_the_place_of_a_name(checkpoint, tmp_path, monkeypatch, name):
    """A folder given as MODEL is told to go with --checkpoint."""
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(CheckpointError) as caught:
        export(Request(model=name, target="cpu-fp32"), tmp_path / "bundle")
    assert f"`bge-export run checkpoint --checkpoint {name} --out OUT`" in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a b/c", "owner/tiny/bert", "bge-nothing"])
def test_a_name_that_the_hub_cannot_have(tmp_path, name):
    """A MODEL that is neither known nor a name on the Hub is an error before any request."""
    with pytest.raises(CheckpointError, match=r"expected a known model .* or a Hub name OWNER/NAME, found neither"):
        export(Request(model=name, target="cpu-fp32"), tmp_path / "bundle")


@pytest.mark.parametrize("metadata", [True, [], "x"])
def test_what_transformers_cannot_load(checkpoint, metadata):
    """An index that transformers stumbles over, though we do not, is one error with its reason."""
    edit_json(checkpoint / "model.safetensors.index.json", metadata=metadata)
    text = refusal(checkpoint)
    assert f"{checkpoint}: expected a checkpoint that transformers loads, found TypeError: " in text
    assert len(text) < 600
