"""The three heads of a BGE-M3-like bundle: parity, independence of the batch, sparse folding, MCLS, bad input."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_onnx import CheckpointError, InputError
from bge_onnx.text.mcls import insert_cls
from bge_onnx.vectors.sparse import fold, join
from bge_onnx.vectors.vector_files import vector_file, write_vectors
from tiny import write_m3_bundle, write_m3_checkpoint

ALL = ("dense", "sparse", "colbert")


@pytest.mark.parametrize("target", ["cpu-fp32", "portable"])
def test_every_head_is_pytorchs(m3_checkpoint, tmp_path, target):
    """Dense, sparse and ColBERT stay within the limit, also for texts that spell out the padding token."""
    bundle = write_m3_bundle(m3_checkpoint, tmp_path / "bundle", target=target)
    assert bundle.parity.tokenizer_mismatches == 0
    assert {head: found.max_error < 2e-6 for head, found in bundle.parity.heads.items()} == dict.fromkeys(ALL, True)
    assert bundle.dims == {"dense": 32, "sparse": 900, "colbert": 32}
    assert bundle.max_tokens == 1000


def test_a_narrow_colbert_head(tmp_path):
    """The file decides how wide ColBERT rows are, as in fine-tuned checkpoints."""
    folder = tmp_path / "checkpoint"
    write_m3_checkpoint(folder)
    torch.save({"weight": torch.randn(8, 32), "bias": torch.randn(8)}, folder / "colbert_linear.pt")
    assert write_m3_bundle(folder, tmp_path / "bundle").dims["colbert"] == 8


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "expected sparse_linear.pt for the heads asked for, found colbert_linear.pt."),
        ({"weight": torch.zeros(2, 32), "bias": torch.zeros(2)}, "weight   expected (1, 32), found (2, 32)"),
        ({"weight": torch.zeros(1, 32)}, "sparse_linear.bias   expected (1,), found nothing"),
        ({"weight": torch.zeros(1, 32), "bias": torch.zeros(1), "x": torch.zeros(1)}, "sparse_linear.x   unknown"),
    ],
)  # fmt: skip
def test_a_faulty_head_is_refused(tmp_path, state, message):
    """A head that is missing, misshapen or more than a linear layer is an error, never made up."""
    folder = tmp_path / "checkpoint"
    write_m3_checkpoint(folder)
    (folder / "sparse_linear.pt").unlink()
    if state is not None:
        torch.save(state, folder / "sparse_linear.pt")
    with pytest.raises(CheckpointError) as caught:
        write_m3_bundle(folder, tmp_path / "bundle", heads=ALL)
    assert message in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 3, 8, 17, 33, 64, 257]), min_size=1, max_size=12), seed=st.integers(0, 9)
)
def test_no_head_depends_on_the_batch(m3, lengths, seed):
    """Each head of a text has the same bits alone and in any batch; other heads change dense by rounding at most."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 900, length) for length in lengths]
    together = m3.embed_token_ids(texts, heads=ALL, budget_tokens=600)
    dense = m3.embed_token_ids(texts, budget_tokens=600).dense
    np.testing.assert_allclose(together.dense, dense, rtol=0, atol=1e-6)
    for index, text in enumerate(texts):
        one = m3.embed_token_ids([text], heads=ALL)
        np.testing.assert_array_equal(one.dense[0], together.dense[index])
        np.testing.assert_array_equal(m3.embed_token_ids([text]).dense[0], dense[index])
        np.testing.assert_array_equal(one.colbert[0], together.colbert[index])
        assert one.sparse[0] == together.sparse[index]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_folding_is_flagembeddings_loop(data):
    """Vectorised folding gives the dicts, in the order, of FlagEmbedding's walk over the tokens."""
    count, tokens = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    ids = np.array(data.draw(st.lists(st.integers(0, 6), min_size=count * tokens, max_size=count * tokens)))
    weights = np.array(data.draw(st.lists(st.sampled_from([0, 0.25, 0.5, 1]), min_size=len(ids), max_size=len(ids))))
    ids, weights = ids.reshape(count, tokens), weights.astype(np.float32).reshape(count, tokens)
    rows = np.array(data.draw(st.permutations(range(count))))
    found = join(
        [fold(rows, np.repeat(np.arange(count), tokens), ids.ravel(), weights.ravel(), unused=[0, 2])],
        count=count,
        width=7,
    )
    for row, line, values in zip(rows, ids, weights, strict=True):
        wanted = {}
        for token, weight in zip(line.tolist(), values.tolist(), strict=True):
            if token not in (0, 2) and weight > wanted.get(token, 0):
                wanted[token] = weight
        assert list(found[int(row)].items()) == list(wanted.items())
    order = found.ids.tolist()
    matrix = found.to_csr()
    assert [dict(zip(*parts, strict=True)) for parts in _rows_of(matrix)] == list(found)
    assert found.ids.tolist() == order  # sorted in the matrix only


def _rows_of(matrix):
    """Column indices and values of each row."""
    return [
        (matrix.indices[start:stop].tolist(), matrix.data[start:stop].tolist())
        for start, stop in itertools.pairwise(matrix.indptr)
    ]


def test_an_empty_list_and_an_empty_text(m3):
    """No texts give empty results of every head; an empty text has a dense vector, no weights, the end token's row."""
    nothing = m3.embed([], heads=ALL)
    assert (nothing.dense.shape, list(nothing.sparse), nothing.colbert) == ((0, 32), [], [])
    empty = m3.embed([""], heads=ALL)
    assert (empty.dense.shape, list(empty.sparse), empty.colbert[0].shape) == ((1, 32), [{}], (1, 32))


def test_vectors_as_they_are_and_shortened(m3):
    """normalize=False gives plain vectors; truncate_dim cuts before normalising, as FlagEmbedding does."""
    plain = m3.embed(["ab cd"], heads=("dense", "colbert"), normalize=False)
    assert abs(np.linalg.norm(plain.dense) - 1) > 0.1
    cut = m3.embed(["ab cd"], heads=("dense", "colbert"), truncate_dim=8)
    wanted = plain.dense[:, :8] / np.linalg.norm(plain.dense[:, :8])
    np.testing.assert_allclose(cut.dense, wanted, atol=1e-6)
    rows = plain.colbert[0][:, :8]
    np.testing.assert_allclose(cut.colbert[0], rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)


def test_a_cut_is_the_same_for_every_head(m3):
    """max_tokens cuts the text, and each head sees what is left."""
    cut, short = m3.embed(["ab cd ef gh"], heads=ALL, max_tokens=4), m3.tokenizer.encode(["ab cd ef gh"])[0]
    wanted = m3.embed_token_ids([[*short[:3], short[-1]]], heads=ALL)
    np.testing.assert_array_equal(cut.dense, wanted.dense)
    np.testing.assert_array_equal(cut.colbert[0], wanted.colbert[0])
    assert cut.sparse[0] == wanted.sparse[0]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "expected 1 to 1000 token ids"),
        ([[1, 2]], r"expected 1 to 1000 token ids, found \(1, 2\)"),
        ([0.5], "expected whole numbers, found float64"),
        ([0, 900], "expected ids from 0 to 899, found 0 to 900"),
        ([-1], "found -1 to -1"),
    ],
)
def test_token_ids_that_are_none(m3, ids, message):
    """Ids outside the vocabulary, no ids and no integers are refused with what they were."""
    with pytest.raises(InputError, match=message):
        m3.embed_token_ids([[5], ids])


@pytest.mark.parametrize(("words", "places"), [(0, [0]), (255, [0]), (256, [0]), (257, [0, 257]), (600, [0, 257, 514])])
def test_where_mcls_puts_a_cls(words, places):
    """A CLS stands in front of every 256 tokens of the text; the end token stays last and gets none of its own."""
    ids = np.array([0, *range(10, 10 + words), 2])
    found = insert_cls(ids, max_tokens=1000)
    assert np.flatnonzero(found == 0).tolist() == places
    assert found[-1] == 2
    np.testing.assert_array_equal(found[found >= 10], ids[1:-1])


def test_mcls_keeps_the_limit():
    """What does not fit with its CLS tokens is cut, and no more than that."""
    assert len(insert_cls(np.array([0, *[5] * 8190, 2]), max_tokens=8192)) == 8192


def test_mcls_of_a_short_text_is_the_plain_vector(m3):
    """Up to 256 tokens nothing changes; a longer text's vector is the mean over its CLS states."""
    short, long = "ab cd", "ab cd " * 150
    np.testing.assert_allclose(m3.embed([short], mcls=True).dense, m3.embed([short]).dense, atol=1e-6)
    assert np.abs(m3.embed([long], mcls=True).dense - m3.embed([long]).dense).max() > 1e-4
    np.testing.assert_array_equal(m3.embed([long, short], mcls=True).dense[0], m3.embed([long], mcls=True).dense[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": ("dense", "bm25")}, "expected one or more of dense, sparse, colbert"),
        ({"heads": ()}, "found none"),
        ({"truncate_dim": 33}, "truncate_dim: expected 1 to 32"),
        ({"max_tokens": 1001}, "max_tokens: expected 3 to 1000"),
        ({"mcls": True, "heads": ALL}, r"mcls: expected heads=\('dense',\)"),
    ],
)
def test_what_a_bundle_cannot_give(m3, arguments, message):
    """Heads, widths and lengths that the bundle has not are refused with what it has."""
    with pytest.raises(InputError, match=message):
        m3.embed(["a"], **arguments)


def write(chunks, path):
    """Write the vectors of a stream, whose texts have no ids."""
    with vector_file(path, force=False) as partial:
        pairs = ((chunk, [None] * len(chunk)) for chunk in chunks)
        return write_vectors(pairs, partial, arrays=path.suffix == ".npz")


def test_no_texts_make_a_file_of_every_head(m3, tmp_path):
    """An empty input gives arrays without entries, and its heads are checked all the same."""
    assert write(m3.stream([], heads=ALL), tmp_path / "v.npz") == 0
    with np.load(tmp_path / "v.npz") as arrays:
        shapes = {name: arrays[name].shape[0] for name in arrays}
    assert shapes == {
        "dense": 0, "sparse_starts": 1, "sparse_ids": 0, "sparse_weights": 0, "colbert_starts": 1, "colbert": 0,
    }  # fmt: skip
    with pytest.raises(InputError, match="expected one or more of"):
        list(m3.stream([], heads=("bm25",)))


def test_a_head_that_was_not_asked_for(m3):
    """Reading a head that was not asked for says how to ask."""
    with pytest.raises(InputError, match=r"sparse: expected it among the heads asked for, found dense"):
        _ = m3.embed(["a"]).sparse


def test_files_hold_every_head(m3, tmp_path):
    """An .npz file and JSON lines give back what was embedded, over the chunks of a stream."""
    texts = ["ab cd", "", "ef gh ij"]
    wanted = m3.embed(texts, heads=ALL)
    for name in ("v.npz", "v.jsonl"):
        assert write(m3.stream(texts, heads=ALL, window=2), tmp_path / name) == 3
    with np.load(tmp_path / "v.npz") as arrays:
        np.testing.assert_array_equal(arrays["dense"], wanted.dense)
        np.testing.assert_array_equal(arrays["sparse_starts"], wanted.sparse.starts)
        np.testing.assert_array_equal(arrays["sparse_ids"], wanted.sparse.ids)
        np.testing.assert_array_equal(arrays["sparse_weights"], wanted.sparse.weights)
        np.testing.assert_array_equal(np.split(arrays["colbert"], arrays["colbert_starts"][1:-1])[2], wanted.colbert[2])
    lines = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert lines[2]["sparse"] == pytest.approx({str(key): value for key, value in wanted.sparse[2].items()}, abs=1e-7)
    np.testing.assert_allclose(lines[0]["colbert"], wanted.colbert[0], atol=1e-7)
