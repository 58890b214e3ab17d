"""FlagEmbedding's classes on bundles: shapes and types; scripts/compare-flagembedding compares the numbers."""

from __future__ import annotations

import dataclasses
import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.request import Request
from bge_onnx import InputError, ProviderError
from bge_onnx.flag import BGEM3FlagModel, FlagAutoModel, FlagModel
from tiny import truncated, write_m3_bundle

SHORT = Options(pooling="cls", max_tokens=16)
PAIRS = [("ab cd", "cd ef gh ij kl"), ("xy", "ab"), (",oavTV!u", "")]


@pytest.fixture(scope="module")
def model(m3_bundle):
    return BGEM3FlagModel(str(m3_bundle), return_sparse=True, return_colbert_vecs=True)


def test_flag_model_gives_arrays(tiny_bundle):
    """A list gives (N, D), a string (D,); queries get the instruction in its template, a literal \\n a newline."""
    model = FlagModel(str(tiny_bundle), query_instruction_for_retrieval="Find:", query_instruction_format="{}\\n{}")
    assert model.encode(["ab", "cd"]).shape == (2, 32)
    assert model.encode("ab").shape == (32,)
    np.testing.assert_array_equal(model.encode_queries("ab"), model.encode("Find:\nab"))
    np.testing.assert_array_equal(model.encode_corpus(["ab"]), model.encode(["ab"]))


def test_m3_gives_three_keys(model):
    """The dict has all three keys; weights are defaultdicts with string ids; of one string nothing is in a list."""
    many, one = model.encode(["ab cd", ""]), model.encode("ab cd", return_colbert_vecs=False)
    assert list(many) == list(one) == ["dense_vecs", "lexical_weights", "colbert_vecs"]
    assert many["dense_vecs"].shape == (2, 32)
    assert isinstance(many["lexical_weights"][0], defaultdict)
    assert all(isinstance(token, str) for token in many["lexical_weights"][0])
    assert [rows.shape[1] for rows in many["colbert_vecs"]] == [32, 32]
    assert one["dense_vecs"].shape == (32,)
    assert one["lexical_weights"] == many["lexical_weights"][0]
    assert one["colbert_vecs"] is None


def test_compute_score_depends_on_its_batch_as_flagembeddings_does(model):
    """A shorter passage has rows of zeros in FlagEmbedding's batches, which win over negative token scores."""
    together, alone = model.compute_score(PAIRS), [model.compute_score(pair) for pair in PAIRS]
    assert list(together) == ["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"]
    assert together["colbert"][0] == alone[0]["colbert"]
    query, passage = (model.encode(text)["colbert_vecs"] for text in PAIRS[2])
    best = (query @ passage.T).max(axis=1)
    assert best.min() < -0.01
    assert together["colbert"][2] == pytest.approx(np.maximum(best, 0).mean(), abs=1e-6)
    assert alone[2]["colbert"] == pytest.approx(best.mean(), abs=1e-6)
    assert model.compute_score(PAIRS[2:], batch_size=1)["colbert"] == pytest.approx([best.mean()], abs=1e-6)
    assert model.compute_score([]) == []


def test_attributes_may_be_assigned_to(tiny_bundle):
    """FlagEmbedding's own evaluation sets the instruction on a model that is there already."""
    model = FlagModel(str(tiny_bundle))
    plain = model.encode_queries("ab")
    model.query_instruction_for_retrieval = "Find:"
    np.testing.assert_array_equal(model.encode_queries("ab"), model.encode("Find:ab"))
    np.testing.assert_array_equal(
        model.encode("ab", instruction="Find:", instruction_format="{}{}"), model.encode("Find:ab")
    )
    assert np.abs(model.encode_queries("ab") - plain).max() > 1e-4
    model.truncate_dim = 8
    assert model.encode("ab").shape == (8,)
    model.stop_self_pool()


def test_lengths(m3_bundle, tiny_checkpoint, tmp_path):
    """A default length gives way to a smaller limit of the model; one that was asked for is refused."""
    export(Request(model="t", target="cpu-fp32", checkpoint=tiny_checkpoint, options=SHORT), tmp_path / "short")
    assert FlagModel(str(tmp_path / "short")).encode("ab " * 99).shape == (32,)
    model = BGEM3FlagModel(str(m3_bundle))
    with pytest.raises(InputError, match=r"max_tokens: expected 3 to 1000 .*, found 8193"):
        model.encode("ab", max_length=8193)
    with pytest.raises(InputError, match="found 0"):
        model.encode("ab", max_length=0)


def test_things_that_are_no_texts_are_named_before_their_instruction(m3_bundle):
    """None is no text, and does not become the text "None" behind an instruction."""
    model = BGEM3FlagModel(str(m3_bundle), query_instruction_for_retrieval="Find:")
    with pytest.raises(InputError, match=r"texts\[1\]: None"):
        model.encode_queries(["a", None])


def test_truncate_dim_is_a_slice_of_each_head(m3_checkpoint, tmp_path):
    """Where a ColBERT row is narrower than `truncate_dim`, it stays whole, as in FlagEmbedding."""
    folder = shutil.copytree(m3_checkpoint, tmp_path / "checkpoint")
    torch.save({"weight": torch.randn(8, 32), "bias": torch.randn(8)}, folder / "colbert_linear.pt")
    write_m3_bundle(folder, tmp_path / "bundle")
    model = BGEM3FlagModel(str(tmp_path / "bundle"), truncate_dim=16)
    found = model.encode("ab cd", return_colbert_vecs=True)
    assert (found["dense_vecs"].shape, found["colbert_vecs"].shape[1]) == ((16,), 8)
    assert model.encode("ab", return_dense=False, return_colbert_vecs=True)["colbert_vecs"].shape[1] == 8


def test_lexical_helpers(model):
    """Two dicts give a number, two lists an array, one of each is FlagEmbedding's ValueError."""
    first, second = {"5": 0.5, "6": 0.25}, {"6": 2.0}
    assert model.compute_lexical_matching_score(first, second) == 0.5
    assert model.compute_lexical_matching_score([first, second], [second]).tolist() == [[0.5], [4.0]]
    with pytest.raises(ValueError, match="expected two dicts or two lists"):
        model.compute_lexical_matching_score(first, [second])
    assert isinstance(model.convert_id_to_token(first), dict)
    with pytest.raises(InputError, match="expected token ids from 0 to 899, found '900'"):
        model.convert_id_to_token({"900": 0.5})


def test_auto_model_lets_the_bundle_decide(m3_bundle, tiny_bundle):
    """A bundle with more heads than dense is a BGEM3FlagModel, another a FlagModel; the constructor refuses."""
    assert isinstance(FlagAutoModel.from_finetuned(str(m3_bundle)), BGEM3FlagModel)
    assert isinstance(FlagAutoModel.from_finetuned(str(m3_bundle), model_class="encoder-only-base"), FlagModel)
    assert isinstance(FlagAutoModel.from_finetuned(str(tiny_bundle)), FlagModel)
    with pytest.raises(OSError, match="from_finetuned"):
        FlagAutoModel()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"devices": "cuda:0"}, ProviderError, "devices: expected 'cpu'"),
        ({"devices": ["cpu", "cuda:0"]}, ProviderError, "devices: expected 'cpu'"),
        ({"pooling_method": "mean"}, InputError, "pooling_method: expected 'cls'"),
        ({"colbert_dim": 8}, InputError, "colbert_dim: expected 32"),
    ],
)
def test_arguments_that_a_bundle_cannot_honour(m3_bundle, arguments, error, message):
    """Devices, pooling and widths that the bundle has not are refused with what it has."""
    with pytest.raises(error, match=message):
        BGEM3FlagModel(str(m3_bundle), **arguments)


def test_no_head_is_flagembeddings_error(model):
    """Asking for no head is an AssertionError, as in FlagEmbedding."""
    with pytest.raises(AssertionError, match="expected one of return_dense"):
        model.encode(["a"], return_dense=False, return_sparse=False, return_colbert_vecs=False)


def test_further_arguments_are_kept(m3_bundle):
    """As in FlagEmbedding they become attributes; a warning says that they change nothing."""
    with pytest.warns(UserWarning, match="no_such: these arguments change nothing"):
        model = BGEM3FlagModel(str(m3_bundle), no_such=1, passage_instruction_for_retrieval="p: ")
    assert (model.no_such, model.kwargs["no_such"]) == (1, 1)
    assert model.passage_instruction_for_retrieval == "p: "


def test_pools_of_processes(m3_bundle):
    """Code with a pool runs unchanged, and gives what `encode` gives; a pool that was stopped is refused."""
    model = BGEM3FlagModel(str(m3_bundle), devices=["cpu", "cpu"], query_instruction_for_retrieval="find: ")
    pool = model.start_multi_process_pool(model._encode_multi_process_worker)
    assert pool["processes"] == ["cpu", "cpu"]
    found = model.encode_multi_process(["ab", "cd"], pool, max_length=64, return_sparse=True)
    wanted = model.encode(["ab", "cd"], max_length=64, return_sparse=True)
    np.testing.assert_array_equal(found["dense_vecs"], wanted["dense_vecs"])
    assert found["lexical_weights"] == wanted["lexical_weights"]
    np.testing.assert_array_equal(
        model.encode_single_device(["ab"], 12, 64, device="cpu")["dense_vecs"], wanted["dense_vecs"][:1]
    )
    with pytest.raises(InputError, match="texts: expected a list of strings, found one string"):
        model.encode_multi_process("ab", pool)
    with pytest.raises(InputError, match="process_target_func: expected None or BGEM3FlagModel"):
        model.start_multi_process_pool(print)
    model.stop_multi_process_pool(pool)
    with pytest.raises(InputError, match="found none, or one that was stopped"):
        model.encode_multi_process(["ab"], pool)
    with pytest.raises(InputError, match="found none, or one that was stopped"):
        model.encode_multi_process(["ab"], {"processes": ["cpu"]})


def test_one_device_has_flagembeddings_defaults(tiny_bundle, m3_bundle):
    """`encode_single_device` and pools take 512 tokens and dense vectors, whatever the constructor was given."""
    text = "ab cd ef gh " * 20
    model = FlagModel(str(tiny_bundle), passage_max_length=8)
    wanted = model.encode(text, max_length=512)
    assert np.abs(wanted - model.encode(text)).max() > 1e-4
    np.testing.assert_array_equal(model.encode_single_device(text), wanted)
    np.testing.assert_array_equal(model.encode_single_device(text, 12, 512, True, "cpu"), wanted)
    np.testing.assert_array_equal(model.encode_multi_process([text], model.start_multi_process_pool()), wanted[None])
    with pytest.raises(InputError, match="found instruction"):
        model.encode_single_device(text, instruction="Find:")
    m3 = BGEM3FlagModel(str(m3_bundle), return_sparse=True, return_colbert_vecs=True)
    found = m3.encode_single_device(["ab"], 12, 64, True, True, False, "cpu")
    assert [key for key, vectors in found.items() if vectors is not None] == ["dense_vecs", "lexical_weights"]
    found = m3.encode_multi_process(["ab"], m3.start_multi_process_pool())
    assert [key for key, vectors in found.items() if vectors is not None] == ["dense_vecs"]


def test_the_checkpoints_own_truncate_dim_is_not_read(tiny_bundle):
    """FlagEmbedding gives all components unless `truncate_dim` says otherwise; 99 of 32 are all."""
    model = FlagModel(str(tiny_bundle))
    bundle = dataclasses.replace(model.embedder.bundle, truncate_dim=8)
    model.embedder = dataclasses.replace(model.embedder, bundle=bundle)
    assert model.embedder.embed(["ab"]).dense.shape == (1, 8)
    assert model.encode("ab").shape == (32,)
    model.truncate_dim = 99
    assert model.encode("ab").shape == (32,)


def test_long_pairs_are_scored_in_parts(model, monkeypatch):
    """A batch whose rows do not fit together has the scores of a batch that is padded together."""
    pairs = [*PAIRS, ("ab", "cd " * 30)]
    wanted = model.compute_score(pairs)
    parts = []
    monkeypatch.setattr("bge_onnx.vectors.pairs.SCORED_NUMBERS", 32)
    score_part = BGEM3FlagModel._score_part
    monkeypatch.setattr(BGEM3FlagModel, "_score_part", lambda *given: parts.append(given[1]) or score_part(*given))
    found = model.compute_score(pairs)
    assert [len(part) for part in parts] == [1, 1, 1, 1]
    np.testing.assert_allclose([*found.values()], [*wanted.values()], atol=1e-6)
    with pytest.raises(InputError, match=r"pairs\[0\]: expected a query and a passage"):
        model.compute_score(np.array(pairs))
    with pytest.raises(InputError, match="batch_size: expected at least 1, found 0"):
        model.compute_score(pairs, batch_size=0)


def test_the_tokenizer_and_the_model(tiny_bundle, tiny):
    """`model.tokenizer` gives ids and tokens as transformers' does, `model.model` is the Embedder."""
    model = FlagModel(str(tiny_bundle), query_max_length=512)
    tokenizer, ids = model.tokenizer, tiny.tokenizer.encode(["ab cd"])[0].tolist()
    assert tokenizer("ab cd") == {"input_ids": ids, "attention_mask": [1] * len(ids)}
    assert tokenizer(["ab cd"] * 2)["input_ids"] == [ids, ids]
    assert tokenizer("ab cd", add_special_tokens=False)["input_ids"] == ids[1:-1]
    assert tokenizer("ab " * 50, truncation=True, max_length=10)["input_ids"] == truncated(
        tiny.tokenizer.with_max_tokens(10), "ab " * 50
    )
    assert tokenizer.encode("ab cd") == ids
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "[CLS]"
    assert tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(ids)) == ids
    assert tokenizer.tokenize("ab cd") == tokenizer.convert_ids_to_tokens(ids[1:-1])
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab cd"
    assert len(tokenizer) == len(tokenizer.get_vocab()) == 400
    assert model.model is model.embedder
    assert tokenizer("ab cd", truncation=True, max_length=1, add_special_tokens=False)["input_ids"] == ids[1:2]
    assert tokenizer("ab cd", max_length=3)["input_ids"] == [*ids[:2], ids[-1]]
    assert tokenizer("ab cd", truncation=False, max_length=3)["input_ids"] == ids
    assert tokenizer(["ab cd"], truncation=True, max_length=2)["input_ids"] == [[ids[0], ids[-1]]]
    assert len(tokenizer("ab " * 999, truncation=True)["input_ids"]) == 512
    assert tokenizer.decode(np.int64(ids[1])) == tokenizer.decode(ids[1:2])
    assert tokenizer.convert_ids_to_tokens(np.array(ids)[0]) == "[CLS]"
    with pytest.raises(InputError, match=r"tokenizer: expected truncation, .*, found padding, return_tensors"):
        tokenizer(["ab"], padding=True, return_tensors="pt")


@pytest.mark.parametrize("ids", [-1, [1, -1], [[1]], [[1], [1, 2]], "ab", 1.5, None, 1 << 40])
def test_what_is_no_token_id(tiny_bundle, ids):
    """Negative and broken numbers, and what is no number, are refused."""
    tokenizer = FlagModel(str(tiny_bundle)).tokenizer
    for ask in (tokenizer.decode, tokenizer.convert_ids_to_tokens):
        with pytest.raises(InputError, match="token ids: expected whole numbers from 0 on, found"):
            ask(ids)


def test_a_length_for_special_tokens_alone(tiny_bundle, tiny):
    """max_length=2 leaves no word: FlagEmbedding embeds [CLS] [SEP], and so do we."""
    found = FlagModel(str(tiny_bundle), passage_max_length=512).encode(["ab", "cd ef"], max_length=2)
    np.testing.assert_array_equal(found, tiny.embed(["", ""]).dense)
    with pytest.raises(InputError, match="max_tokens: expected 3 to 512"):
        FlagModel(str(tiny_bundle)).encode(["ab"], max_length=1)


@pytest.mark.parametrize(
    ("use_fp16", "use_bf16", "wanted"), [(True, False, "f2"), (False, False, "f4"), (True, True, "f4")]
)
def test_vectors_of_gpus_are_halves(tiny_bundle, monkeypatch, use_fp16, use_bf16, wanted):
    """FlagEmbedding gives float16 where it computed in float16, which is on GPUs alone."""
    model = FlagModel(str(tiny_bundle), use_fp16=use_fp16, use_bf16=use_bf16)
    assert model.encode(["ab"]).dtype == np.float32
    bundle = dataclasses.replace(model.embedder.bundle, provider="CUDAExecutionProvider")  # its session is the CPU's
    model.embedder = dataclasses.replace(model.embedder, bundle=bundle)
    assert model.encode(["ab"]).dtype == np.dtype(wanted)


def test_weights_and_rows_of_gpus_are_halves(m3_bundle):
    """Lexical weights and ColBERT rows have the type of dense vectors; a GPU that is named twice counts once."""
    model = BGEM3FlagModel(str(m3_bundle), return_sparse=True, return_colbert_vecs=True)
    bundle = dataclasses.replace(model.embedder.bundle, provider="CUDAExecutionProvider")  # its session is the CPU's
    model.embedder = dataclasses.replace(model.embedder, bundle=bundle)
    found = model.encode(["ab cd ef gh ij kl"])
    assert {type(weight) for weight in found["lexical_weights"][0].values()} == {np.float16}
    assert (found["dense_vecs"].dtype, found["colbert_vecs"][0].dtype) == (np.float16, np.float16)
    assert model._target_devices(["cuda", "cuda:0", "cuda:1"]) == ["cuda:0", "cuda:1"]
    assert model._target_devices([1, 1]) == ["cuda:1"]
    with pytest.raises(ProviderError, match="devices: expected 'cuda'"):
        model._target_devices([])


@pytest.mark.parametrize(("visible", "folders", "wanted"), [("0,1", 8, 2), (None, 3, 3), (None, 0, 1), ("", 2, 1)])
def test_all_gpus_are_taken(monkeypatch, tmp_path, visible, folders, wanted):
    """Without devices= every GPU that is visible counts."""
    from bge_onnx.run import cuda

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for number in range(folders):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
    monkeypatch.setattr(cuda, "DRIVER", tmp_path)
    assert cuda.device_count() == wanted


def test_templates_and_prompts_of_other_publishers(tmp_path):
    """The catalog's template stands in the bundle: of FlagAutoModel's queries, and of a task for `embed`."""
    from bge_export.export import export
    from bge_export.request import Request
    from bge_onnx import Embedder
    from bge_onnx.flag import FlagAutoModel
    from test_decoders import CONFIGS, write_decoder
    from tiny import write_checkpoint

    folder = write_decoder(tmp_path / "mistral", CONFIGS["mistral"])
    request = Request(model="e5-mistral-7b-instruct", target="cpu-fp32", checkpoint=folder, check=False)
    bundle = export(request, tmp_path / "instructed")
    assert bundle.prompts == {"query": "", "passage": "", "task": "Instruct: {}\nQuery: {}"}
    assert Embedder.open(bundle.folder).task_prompt("Find it.") == "Instruct: Find it.\nQuery: "
    model = FlagAutoModel.from_finetuned(str(bundle.folder), query_instruction_for_retrieval="Find it.")
    found = model.encode_queries(["what is tea"])
    np.testing.assert_array_equal(found, model.encode(["Instruct: Find it.\nQuery: what is tea"]))
    request = Request(
        model="e5-small-v2", target="cpu-fp32", checkpoint=write_checkpoint(tmp_path / "bert"), check=False
    )
    bundle = export(request, tmp_path / "e5")
    assert (bundle.pooling, bundle.prompts) == ("mean", {"query": "query: ", "passage": "passage: "})
