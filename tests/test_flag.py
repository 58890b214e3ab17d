"""FlagEmbedding's classes on bundles: shapes and types; scripts/compare-flagembedding compares the numbers."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from bge_onnx import InputError, ProviderError
from bge_onnx.flag import BGEM3FlagModel, FlagAutoModel, FlagModel
from test_heads import bundle_of, checkpoint  # noqa: F401 - a fixture

PAIRS = [("ab cd", "cd ef gh ij kl"), ("xy", "ab")]


@pytest.fixture(scope="module")
def m3_bundle(checkpoint, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("flag") / "m3"
    bundle_of(checkpoint, out)
    return str(out)


@pytest.fixture(scope="module")
def model(m3_bundle):
    return BGEM3FlagModel(m3_bundle, return_sparse=True, return_colbert_vecs=True)


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
    query, passage = (model.encode(text)["colbert_vecs"] for text in PAIRS[1])
    padded = np.maximum((query @ passage.T).max(axis=1), 0).mean()
    assert together["colbert"][1] == pytest.approx(padded, abs=1e-6)
    assert model.compute_score([]) == []


def test_lexical_helpers(model):
    """Two dicts give a number, two lists an array, one of each is FlagEmbedding's ValueError."""
    first, second = {"5": 0.5, "6": 0.25}, {"6": 2.0}
    assert model.compute_lexical_matching_score(first, second) == 0.5
    assert model.compute_lexical_matching_score([first, second], [second]).tolist() == [[0.5], [4.0]]
    with pytest.raises(ValueError, match="expected two dicts or two lists"):
        model.compute_lexical_matching_score(first, [second])
    assert isinstance(model.convert_id_to_token(first), dict)


def test_auto_model_lets_the_bundle_decide(m3_bundle, tiny_bundle):
    """A bundle with more heads than dense is a BGEM3FlagModel, another a FlagModel; the constructor refuses."""
    assert isinstance(FlagAutoModel.from_finetuned(m3_bundle), BGEM3FlagModel)
    assert isinstance(FlagAutoModel.from_finetuned(str(tiny_bundle)), FlagModel)
    with pytest.raises(OSError, match="from_finetuned"):
        FlagAutoModel()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"devices": "cuda:0"}, ProviderError, "devices: expected 'cpu'"),
        ({"devices": ["cpu", "cpu"]}, ProviderError, "devices: expected 'cpu'"),
        ({"pooling_method": "mean"}, InputError, "pooling_method: expected 'cls'"),
        ({"colbert_dim": 8}, InputError, "colbert_dim: expected 32"),
        ({"no_such": 1}, InputError, "found no_such"),
    ],
)
def test_arguments_that_a_bundle_cannot_honour(m3_bundle, arguments, error, message):
    """Devices, pooling and widths that the bundle has not are refused with what it has."""
    with pytest.raises(error, match=message):
        BGEM3FlagModel(m3_bundle, **arguments)


def test_no_head_is_flagembeddings_error(model):
    """Asking for no head is an AssertionError, as in FlagEmbedding."""
    with pytest.raises(AssertionError, match="expected one of return_dense"):
        model.encode(["a"], return_dense=False, return_sparse=False, return_colbert_vecs=False)
