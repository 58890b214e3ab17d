"""The embedder: the same vector for a text however it is run, order kept, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.request import Request
from bge_onnx import Embedder, InputError, similarity, top_k
from bge_onnx.run.session import TOGETHER_TOKENS, Session
from tiny import write_checkpoint

LENGTHS = [1, 2, 3, 15, 16, 17, 31, 33, 64, 65, 130, 257]


def token_ids(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 400, length) for length in lengths]


def alone(embedder, ids):
    return np.concatenate([embedder.embed_token_ids([row]).dense for row in ids])


@pytest.fixture(scope="session")
def single(tiny_bundle):
    return Embedder.open(tiny_bundle, threads=1)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=30),
    st.integers(0, 5),
    st.sampled_from([1, 64, 512, 100_000]),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_a_vector_is_bit_for_bit_the_same_everywhere(tiny, single, lengths, seed, budget, random, one_thread):
    """A text's vector is the same bits alone, in any batch, in any order, with one or two threads of batches."""
    ids = token_ids(lengths, seed)
    wanted = alone(tiny, ids)
    order = random.sample(range(len(ids)), len(ids))
    shuffled = [ids[row] for row in order]
    found = (single if one_thread else tiny).embed_token_ids(shuffled, budget_tokens=budget).dense
    np.testing.assert_array_equal(found, wanted[order])


@pytest.mark.checkpoint
def test_trained_vectors_are_bit_for_bit_the_same_everywhere(minilm_bundle, data):
    """So are the vectors of trained weights on real sentences of every length."""
    from bge_export.evaluate.tasks import open_task

    task = open_task("stsb", data)
    texts = [*task.left[:300], "one two three " * 60]
    embedder, single = Embedder.open(minilm_bundle, threads=2), Embedder.open(minilm_bundle, threads=1)
    wanted = alone(embedder, embedder.tokenizer.encode(texts))
    np.testing.assert_array_equal(embedder.embed(texts).dense, wanted)
    np.testing.assert_array_equal(single.embed(texts[::-1], budget_tokens=4096).dense[::-1], wanted)


def test_many_batches_take_several_threads(tiny, monkeypatch):
    """Work for several cores runs on a session of one thread, from as many Python threads as there are cores."""
    seen = set()
    run_one = Session._run_one

    def spy(self, session, batch, names, past):
        seen.add((threading.current_thread().name, session.get_session_options().intra_op_num_threads))
        return run_one(self, session, batch, names, past)

    monkeypatch.setattr(Session, "_run_one", spy)
    tiny.embed_token_ids(token_ids([257] * 40), budget_tokens=257)
    assert len(seen) == 2
    assert {threads for _, threads in seen} == {1}


def test_a_single_text_takes_all_cores(tiny, monkeypatch):
    """One text, and work too small to spread, runs with all cores on each operator."""
    loaded = []
    load = type(tiny.session).load
    monkeypatch.setattr(type(tiny.session), "load", lambda self, threads: loaded.append(threads) or load(self, threads))
    tiny.embed(["one text"])
    tiny.embed(["three", "short short", "texts of several lengths"])
    assert TOGETHER_TOKENS >= 20
    assert loaded == [2, 2]


def test_no_texts_give_an_empty_array(tiny):
    """An empty list gives an array (0, D), not an error."""
    assert tiny.embed([]).dense.shape == (0, 32)
    assert tiny.embed([]).dense.dtype == np.float32


def test_empty_texts_have_vectors(tiny):
    """Empty and white texts are texts: finite vectors of length 1."""
    dense = tiny.embed(["", "   ", "\n"]).dense
    np.testing.assert_allclose(np.linalg.norm(dense, axis=1), 1, atol=1e-6)


def test_queries_get_the_query_prompt(tiny):
    """embed_queries puts the model's instruction in front, embed_passages does not."""
    np.testing.assert_array_equal(tiny.embed_queries(["ab cd"]).dense, tiny.embed(["query: ab cd"]).dense)
    np.testing.assert_array_equal(tiny.embed_passages(["ab cd"]).dense, tiny.embed(["ab cd"]).dense)
    assert not np.array_equal(tiny.embed_queries(["ab cd"]).dense, tiny.embed(["ab cd"]).dense)


def test_similarity_is_the_inner_product(tiny):
    """similarity gives (Q, P) cosines, instructions applied."""
    scores = tiny.similarity(["ab", "cd"], ["ab", "ef", "gh"])
    wanted = tiny.embed_queries(["ab", "cd"]).dense @ tiny.embed_passages(["ab", "ef", "gh"]).dense.T
    np.testing.assert_array_equal(scores, wanted)


def test_top_k_is_best_first_and_stable():
    """The best columns first; equal scores in column order; never more than there are."""
    scores = np.array([[0.1, 0.9, 0.9, 0.2]], dtype=np.float32)
    assert top_k(scores, 3).tolist() == [[1, 2, 3]]
    assert top_k(scores, 9).shape == (1, 4)


@pytest.mark.parametrize(("left", "right"), [((3,), (2, 3)), ((2, 3), (2, 4))])
def test_vectors_of_other_shapes_are_refused(left, right):
    """Scores between arrays that do not fit are an error with both shapes."""
    with pytest.raises(InputError, match="expected arrays"):
        similarity(np.zeros(left, np.float32), np.zeros(right, np.float32))


def test_a_stream_equals_a_list(tiny):
    """An iterator in, an iterator out: the same vectors in the same order, without reading ahead."""
    texts = [f"text {'ab ' * (row % 9)}{row}" for row in range(50)]
    taken = []

    def source():
        for text in texts:
            taken.append(text)
            yield text

    chunks = tiny.stream(source(), window=8)
    first = next(chunks)
    assert len(taken) == len(first) == 8
    dense = np.concatenate([first.dense, *(chunk.dense for chunk in chunks)])
    np.testing.assert_array_equal(dense, tiny.embed(texts).dense)


@pytest.mark.parametrize("texts", ["one text", b"bytes"])
def test_a_stream_of_characters_is_refused(tiny, texts):
    """A single string is not taken for a stream of its characters."""
    with pytest.raises(InputError, match="found one string"):
        next(tiny.stream(texts))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 2], []], r"token_ids\[1\]: expected 1 to 512 token ids, found 0"),
        ([[1] * 513], r"token_ids\[0\]: expected 1 to 512 token ids, found 513"),
        ([[5, 400]], r"token_ids\[0\]: expected ids from 0 to 399, found 5 to 400"),
        ([[-1, 4]], r"token_ids\[0\]: expected ids from 0 to 399, found -1 to 4"),
    ],
)
def test_token_ids_out_of_range_are_refused(tiny, ids, message):
    """Ids that the model has no row for never reach the graph."""
    with pytest.raises(InputError, match=message):
        tiny.embed_token_ids([np.array(row, dtype=np.int64) for row in ids])


def test_several_threads_may_share_an_embedder(tiny):
    """Calls from several Python threads at once give what calls in turn give."""
    texts = [[f"text {row} " + "ab " * row for row in range(start, start + 20)] for start in range(8)]
    wanted = [tiny.embed(chunk).dense for chunk in texts]
    found = [None] * len(texts)

    def work(place):
        found[place] = tiny.embed(texts[place]).dense

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_huge_text_takes_bounded_memory(tiny_bundle):
    """A text of 10 MB is cut to the model's limit, and takes at most 150 MB more than a short one."""
    code = """
import resource, sys
from bge_onnx import Embedder
bge = Embedder.open(sys.argv[1], threads=1)
bge.embed(["short"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
vector = bge.embed(["word " * 2_000_000]).dense
assert (vector == bge.embed(["word " * 600]).dense).all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    result = subprocess.run([sys.executable, "-c", code, tiny_bundle], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 150


def test_a_large_run_gives_its_memory_back(tmp_path):
    """After a run that took 150 MB and more, little more is held than before it."""
    checkpoint = write_checkpoint(tmp_path / "wide", intermediate_size=2048)
    options = Options(pooling="cls")
    export(Request(model="wide", target="cpu-fp32", checkpoint=checkpoint, options=options), tmp_path / "bundle")
    code = """
import sys
import numpy as np
from bge_onnx import Embedder

def mib_of(kind):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind)) // 1024

bge = Embedder.open(sys.argv[1], threads=1)
bge.embed(["short"])
before = mib_of("VmRSS")
bge.embed_token_ids([np.full(512, 7)] * 40, budget_tokens=40 * 512)
print(mib_of("VmHWM") - before, mib_of("VmRSS") - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "bundle"], capture_output=True, text=True, check=True
    )
    peak, held = map(int, result.stdout.split())
    assert peak > 150
    assert held < 40
