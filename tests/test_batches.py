"""plan_batches, by properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_onnx import InputError
from bge_onnx.run.batches import plan_batches

lengths = st.lists(st.integers(1, 40), max_size=60)
layouts = st.sampled_from(["equal", "padded", "packed"])


def ids_of(lengths: list[int]) -> list[np.ndarray]:
    return [np.full(length, 7 + row, dtype=np.int64) for row, length in enumerate(lengths)]


@given(lengths, st.integers(1, 200), layouts)
def test_every_text_runs_once_with_its_own_tokens(lengths, budget, layout):
    """Each text stands in exactly one batch row, whole and unchanged."""
    token_ids = ids_of(lengths)
    seen = {}
    for batch in plan_batches(token_ids, budget_tokens=budget, layout=layout, pad_id=0):
        for line, row in enumerate(batch.rows):
            assert int(row) not in seen
            if batch.packed:
                seen[int(row)] = batch.input_ids[batch.starts[line] : batch.starts[line + 1]]
                continue
            mask = batch.attention_mask[line]
            seen[int(row)] = batch.input_ids[line][mask == 1]
            assert (batch.input_ids[line][mask == 0] == 0).all()
    assert sorted(seen) == list(range(len(lengths)))
    assert all(np.array_equal(seen[row], ids) for row, ids in enumerate(token_ids))


@given(lengths, st.integers(1, 200), layouts)
def test_the_budget_holds(lengths, budget, layout):
    """No batch has more tokens than the budget, padding included, unless it is one text alone."""
    for batch in plan_batches(ids_of(lengths), budget_tokens=budget, layout=layout, pad_id=0):
        assert batch.input_ids.size <= budget or len(batch.rows) == 1


@given(lengths, st.integers(1, 200))
def test_equal_batches_hold_one_length(lengths, budget):
    """With layout `equal` nothing is padded and there is no mask."""
    token_ids = ids_of(lengths)
    for batch in plan_batches(token_ids, budget_tokens=budget, layout="equal", pad_id=0):
        assert {len(token_ids[row]) for row in batch.rows} == {batch.input_ids.shape[1]}
        assert batch.attention_mask.all()


@given(lengths, st.integers(1, 200), layouts)
def test_longest_first(lengths, budget, layout):
    """Batches come in order of falling length, so that threads finish together."""
    batches = plan_batches(ids_of(lengths), budget_tokens=budget, layout=layout, pad_id=0)
    widths = [int(batch.lengths.max()) for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_batches_are_as_full_as_the_budget_allows():
    """Ten texts of four tokens in a budget of twelve make batches of three."""
    batches = plan_batches(ids_of([4] * 10), budget_tokens=12, layout="equal", pad_id=0)
    assert [len(batch.rows) for batch in batches] == [3, 3, 3, 1]


def test_a_budget_below_one_is_refused():
    """A budget of zero is an error that says so, not an endless loop."""
    with pytest.raises(InputError, match="budget_tokens: expected a whole number, at least 1, found 0"):
        plan_batches(ids_of([1]), budget_tokens=0, layout="equal", pad_id=0)


def test_packed_batches_bound_what_attention_holds():
    """Texts as long as the longest, squared, stay below the bound, whatever the budget; a longer text runs alone."""
    for length, texts in ((4096, 4), (8192, 1), (9000, 1)):
        batches = plan_batches(ids_of([length] * 5), budget_tokens=10**6, layout="packed", pad_id=0)
        assert max(len(batch.rows) for batch in batches) == texts


@given(st.lists(st.integers(1, 3000), max_size=80), st.integers(1, 5000))
def test_packed_batches_bound_attentions_buffers(lengths, budget):
    """Buffers are as large as if all texts were as long as the longest: of at most twice the budget's tokens."""
    for batch in plan_batches(ids_of(lengths), budget_tokens=budget, layout="packed", pad_id=0):
        assert len(batch.rows) * batch.lengths.max() <= 2 * budget or len(batch.rows) == 1


def test_a_long_text_among_short_ones_does_not_widen_them():
    """Of 4096 tokens and then 400 texts of ten: three run with it, the others together."""
    batches = plan_batches(ids_of([4096, *[10] * 400]), layout="packed", pad_id=0)
    assert [len(batch.rows) for batch in batches] == [4, 397]
