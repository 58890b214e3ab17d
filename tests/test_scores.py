"""Scores between vectors: of every head, of pairs, and what is no score."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from bge_onnx import Embedder, InputError, colbert_score, colbert_scores, hybrid, lexical_score, top_k
from bge_onnx.vectors import scores
from bge_onnx.vectors.pairs import chunks_of_pairs

ALL = ("dense", "sparse", "colbert")
ROWS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def test_the_five_scores_of_pairs(m3):
    """Every mode is what its definition says, and a pair's scores do not depend on the other pairs."""
    pairs = [("ab cd", "cd ef gh"), ("xy", "ab cd"), ("ab cd", "ab")]
    found = m3.score(pairs, weights=(0.4, 0.2, 0.4))
    queries = m3.embed([query for query, _ in pairs], heads=ALL)
    passages = m3.embed([passage for _, passage in pairs], heads=ALL)
    for index in range(len(pairs)):
        left, right = queries.sparse[index], passages.sparse[index]
        sparse = sum(weight * right.get(token, 0) for token, weight in left.items())
        colbert = (queries.colbert[index] @ passages.colbert[index].T).max(axis=1).mean()
        dense = queries.dense[index] @ passages.dense[index]
        wanted = {
            "colbert": colbert,
            "sparse": sparse,
            "dense": dense,
            "sparse+dense": (0.2 * sparse + 0.4 * dense) / 0.6,
        }
        wanted["colbert+sparse+dense"] = 0.4 * colbert + 0.2 * sparse + 0.4 * dense
        assert {mode: found[mode][index] for mode in found} == pytest.approx(wanted, abs=1e-6)
    alone = m3.score(pairs[1:2], weights=(0.4, 0.2, 0.4))
    assert {mode: alone[mode][0] for mode in alone} == pytest.approx({mode: found[mode][1] for mode in found}, abs=1e-7)


@pytest.mark.parametrize(
    "weights",
    [(1, 2), (1, 2, 3, 4), (1, -1, 0), (0, 0, 0), "abc", (1, None, 1), (1, math.nan, 1), (0.1, 0.2, -0.3), b"abc"],
)
def test_weights_that_are_none(m3, weights):
    """Weights that are not three numbers, or have the sum 0, are refused with what they were."""
    with pytest.raises(InputError, match="weights: expected three numbers"):
        m3.score([("a", "b")], weights=weights)


def test_many_pairs_are_scored_in_parts(m3, monkeypatch):
    """Pairs that do not fit into one part give the same scores, in order; an iterator is as good as a list."""
    pairs = [("ab cd", "cd ef gh"), ("xy", "ab cd"), ("ab cd", "ab"), ("xy", "xy")]
    whole = m3.score(zip(*zip(*pairs, strict=True), strict=True))
    monkeypatch.setattr("bge_onnx.vectors.pairs.SCORE_PAIRS", 3)
    parts = m3.score(pairs)
    assert list(whole) == list(parts)
    np.testing.assert_allclose([*parts.values()], [*whole.values()], atol=1e-6)
    assert [len(values) for values in m3.score([]).values()] == [0] * 5


def test_scores_without_a_weight_are_no_numbers(m3):
    """Where dense and sparse weigh nothing, their weighted mean is no number, as in FlagEmbedding."""
    found = m3.score([("ab", "ab cd")], weights=(0, 0, 1))
    assert np.isnan(found["sparse+dense"]).all()
    assert found["colbert+sparse+dense"] == found["colbert"]


def test_colbert_scores_in_parts(monkeypatch):
    """Many passages go through several products and give what each gives alone; a floor lifts token scores."""
    passages = [ROWS[:1], ROWS[1:4], -ROWS[4:], ROWS]
    alone = [(ROWS[:2] @ passage.T).max(axis=1).mean() for passage in passages]
    monkeypatch.setattr(scores, "COLBERT_SCORES", 8)
    np.testing.assert_allclose(colbert_scores(ROWS[:2], passages), alone, atol=1e-6)
    floored = np.maximum(ROWS[:2] @ -ROWS[4:].T, 0).max(axis=1).mean()
    found = colbert_scores(ROWS[:2], passages, floors=np.array([-np.inf, -np.inf, 0, -np.inf], dtype=np.float32))
    np.testing.assert_allclose(found, [*alone[:2], floored, alone[3]], atol=1e-6)


@pytest.mark.parametrize(
    ("query", "passage"),
    [(ROWS, ROWS[:0]), (ROWS[:0], ROWS), (ROWS, ROWS[0]), (ROWS, ROWS[:, :3]), (ROWS, "abc"), (ROWS, {"1": 0.5})],
)
def test_rows_that_are_none(query, passage):
    """An empty passage, a vector, rows of another width and things that are no arrays are refused."""
    with pytest.raises(InputError, match=r"colbert: expected one or more rows \(T, C\) of one width C as "):
        colbert_score(query, passage)


@pytest.mark.parametrize(
    ("query", "passage", "message"),
    [
        ({5: 0.5}, {"5": 0.5}, "expected token ids of one type, found int in the query, str in the passage"),
        ({5: 0.5}, [0.5], r"expected a mapping of token id to weight as passage, found \[0.5\]"),
        ({5: "x"}, {5: 0.5}, "expected a mapping of token id to weight as query"),
    ],
)
def test_weights_that_do_not_match(query, passage, message):
    """Ids as numbers against ids as strings would match nowhere and score 0: refused, as is what is no mapping."""
    with pytest.raises(InputError, match=message):
        lexical_score(query, passage)


def test_hybrid_takes_numbers_and_arrays_of_one_shape():
    """Three numbers give a number, three arrays an array; shapes that differ are refused, not broadcast."""
    assert hybrid(0.5, 0.2, 0.8, (1, 1, 2)) == pytest.approx(0.575)
    np.testing.assert_allclose(hybrid([0.5, 1], [0.2, 0], [0.8, 2]), [0.5, 1], atol=1e-6)
    with pytest.raises(InputError, match=r"hybrid: expected scores of one shape, found \(2,\), \(1,\), \(\)"):
        hybrid([0.5, 1], [0.2], 0.8)


def test_colbert_rows_are_copied_some_at_a_time(monkeypatch):
    """Many passages of wide rows are compared in blocks of bounded size, with the same scores."""
    rng = np.random.default_rng(0)
    query, passages = rng.normal(size=(3, 16)), [rng.normal(size=(rows, 16)) for rows in (5, 1, 9, 2, 30)]
    wanted = colbert_scores(query, passages)
    copied = []
    concatenate = np.concatenate
    monkeypatch.setattr(scores, "COLBERT_NUMBERS", 16 * 10)
    monkeypatch.setattr(
        np, "concatenate", lambda rows, **more: copied.append(sum(map(len, rows))) or concatenate(rows, **more)
    )
    np.testing.assert_allclose(colbert_scores(query, passages), wanted, rtol=1e-6)
    assert copied
    assert max(copied) <= 10


def test_long_and_narrow_rows_are_no_copies(monkeypatch):
    """A product of a long query with a long passage, and float32 made of float16, take 64 MB at a time each."""
    rng = np.random.default_rng(0)
    long = rng.normal(size=(16384, 8)).astype(np.float32)
    halves = [rng.normal(size=(4096, 64)).astype(np.float16)] * 400
    wanted = (long[:4] @ long.T).max(axis=1).mean()
    tracemalloc.start()
    found = colbert_scores(np.tile(long[:4], (4096, 1)), [long])
    of_halves = colbert_scores(halves[0][:2], halves)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(found, [wanted], rtol=1e-5)
    assert np.ptp(of_halves) < 1e-4
    assert peak_bytes < 160 << 20


@pytest.mark.parametrize("kind", ["f2", "f8", "i4", "list"])
def test_rows_of_any_numbers(kind):
    """Rows that are kept as halves, doubles, integers or lists score as float32."""
    rows = [ROWS.tolist() if kind == "list" else (ROWS * 9).astype(kind) for _ in range(2)]
    as_floats = np.asarray(rows[0], dtype=np.float32)
    wanted = colbert_scores(as_floats[:2], [as_floats, as_floats])
    np.testing.assert_array_equal(colbert_scores(rows[0][:2], rows), wanted)


def test_pairs_are_scored_some_at_a_time():
    """Pairs of long texts are few at a time, those of short ones 256, and none is lost; an empty list is one chunk."""
    short, long = ("a", "b"), ("a", "b " * 50_000)
    pairs = [short] * 600 + [long] * 30
    chunks = chunks_of_pairs(pairs, max_tokens=8192, width=1024)
    assert [pair for chunk in chunks for pair in chunk] == pairs
    assert max(map(len, chunks)) == 256
    assert all(sum(pair is long for pair in chunk) <= 8 for chunk in chunks)
    assert chunks_of_pairs([], max_tokens=8192, width=1024) == [[]]


@pytest.mark.parametrize("pairs", [{("q", "p"): 1}, {("q", "p")}, "qp", None])
def test_pairs_are_a_list(m3, pairs):
    """What has keys, no order or no pairs is refused: nobody could tell whose score a row is."""
    with pytest.raises(InputError, match=r"pairs: expected a list of pairs \(query, passage\), found "):
        m3.score(pairs)


@pytest.mark.parametrize(
    "call",
    [
        lambda m3: m3.score([("a\ud800", "b")]),
        lambda m3: m3.score([("a", "b")], max_tokens="x"),
        lambda _: Embedder.open(None),
        lambda _: top_k([1, 2], 5),
        lambda _: top_k([["x"]], 5),
        lambda _: hybrid("x", 1, 1),
    ],
)
def test_arguments_of_other_types(m3, call):
    """Each is an InputError, whatever numpy or tokenizers would say."""
    with pytest.raises(InputError):
        call(m3)
