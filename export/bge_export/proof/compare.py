"""Parity: a bundle's vectors against those that PyTorch gave. The runtime alone is imported here, no PyTorch."""

from __future__ import annotations

import dataclasses
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_export.lowering.limits import Limits
from bge_onnx import BundleError, Embedder, Embeddings, Reranker
from bge_onnx.bundle.heads import HEADS, Gives
from bge_onnx.bundle.records import HeadParity, Measure, Parity
from bge_onnx.embed.prefix import Prefix
from bge_onnx.embed.vectors_of import vectors_of
from bge_onnx.errors import BgeError
from bge_onnx.model import open_model
from bge_onnx.vectors.embeddings import VectorOptions

SHORT_TOKENS = 512
REPLAYED = (1, 3, 8)
"""Texts of small batches of a packed bundle."""

TINY_SCORE = 1e-6
"""Scores are compared with the largest one's size, or with this."""

PREFIXES = 3
"""So many texts of a decoder are also given with their first half as a prefix."""

PAIRS = 12
"""So many pairs are also scored from their texts, as users have them."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What PyTorch gives: token ids per text, the vectors of those and of random ids of each length."""

    token_ids: list[NDArray[np.int64]]
    texts: tuple[Any, ...]  # of the first token_ids, pairs of strings for a reranker; the other ids are random
    heads: Embeddings
    reference: str  # what gave them
    limits: Limits | None = None  # of a precision below float32; None for the target's own


def compare(model: Embedder | Reranker, expected: Expected, limits: Limits, *, progress: bool = False) -> Parity:
    """Compare a bundle, by every head, with what PyTorch gave."""
    limits = expected.limits or limits
    whole = dataclasses.replace(model.bundle, truncate_dim=None)  # all components are compared
    model = dataclasses.replace(model, bundle=whole)
    if isinstance(model, Reranker):
        ours = model.pairs.encode(expected.texts, max_tokens=whole.max_tokens, query_max_tokens=None)
    else:
        ours = model.tokenizer.encode(expected.texts)
    mismatches = sum(not np.array_equal(a, b) for a, b in zip(ours, expected.token_ids, strict=False))
    wanted_of = VectorOptions(heads=tuple(whole.outputs))
    found = vectors_of(whole, model.session, expected.token_ids, wanted_of, None, None, progress=progress or None)
    wanted = {head: vectors for head, vectors in expected.heads.by_head.items() if vectors is not None}
    errors = {
        head: errors_of(HEADS[head].gives, found.by_head[head], theirs, limits.of(head)[0])
        for head, theirs in wanted.items()
    }
    pooled = whole.of_pooled
    for places, vectors in _other_ways(model, expected):
        among_all = wanted[pooled].copy()  # a score's error is relative to the largest score of all
        among_all[places] = vectors
        again = errors_of(HEADS[pooled].gives, among_all, wanted[pooled], limits.of(pooled)[0])
        errors[pooled] = np.maximum(errors[pooled], again)
    tokens = [len(ids) for ids in expected.token_ids]
    return Parity(
        texts=len(expected.token_ids),
        heads={head: worst(found, tokens, *limits.of(head)) for head, found in errors.items()},
        tokenizer_mismatches=mismatches,
        reference=expected.reference,
    )


def compare_apart(folder: Path, expected: Expected, limits: Limits, *, progress: bool = False) -> Parity:
    """As `compare`, of the bundle in `folder`, in a process of its own that holds the runtime and nothing else.

    The weights of billions of parameters fit into memory then where they would not beside PyTorch's.
    Raises BgeError: what the bundle raises. BundleError: it cannot be run, for want of memory above all.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bge_export.proof.compare"],
        input=pickle.dumps((folder, expected, limits, progress)),
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise BundleError(
            f"{folder}: expected the bundle to run, found that its process ended with {done.returncode}.\n"
            "    -9 means that memory did not suffice: free some, or export for a target with fewer bits."
        )
    answer: Any = pickle.loads(done.stdout)  # noqa: S301 - our own process wrote it
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, Parity)
    return answer


def _run_apart() -> None:
    """The process of `compare_apart`: pickles in and out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this one
    folder, expected, limits, progress = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own process wrote it
    try:
        answer: Any = compare(open_model(folder), expected, limits, progress=progress)
    except BgeError as error:
        answer = error
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common class but Exception
        answer = BundleError(f"{folder}: expected the bundle to run, found {type(error).__name__}: {error}")
    sys.stdout.buffer.write(pickle.dumps(answer))


def _other_ways(model: Embedder | Reranker, expected: Expected) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Dense vectors that come another way through the graph, with their places: alone, and behind a prefix."""
    bundle, token_ids = model.bundle, expected.token_ids
    pooled = VectorOptions(heads=(bundle.of_pooled,))

    def dense(places: list[int]) -> NDArray[np.float32]:
        ids = [token_ids[index] for index in places]
        found: NDArray[np.float32] = vectors_of(bundle, model.session, ids, pooled, None, None, progress=False).by_head[
            bundle.of_pooled
        ]
        return found

    short = [index for index, ids in enumerate(token_ids) if len(ids) <= SHORT_TOKENS]
    if len(bundle.outputs) > 1:  # dense alone takes a shorter way through the last layer
        yield short, dense(short)
    if bundle.layout == "packed":  # alone and in small batches, which CUDA graphs replay
        for size in REPLAYED:
            for start in range(0, len(short), size):
                places = short[start : start + size]
                yield places, dense(places)
    if isinstance(model, Reranker):
        texts = expected.texts[:PAIRS]
        yield list(range(len(texts))), model.score(texts, progress=False)  # behind a query that is computed once
    elif bundle.causal and bundle.layout != "whole":
        for index in sorted(short, key=lambda index: len(token_ids[index]))[-PREFIXES:]:
            ids = token_ids[index]
            prefix = Prefix.of_token_ids(model, "", ids[: len(ids) // 2])
            yield [index], prefix.embed_whole([ids], VectorOptions()).dense


def errors_of(gives: Gives, found: Any, wanted: Any, measure: Measure) -> NDArray[np.float64]:
    """The error of each of N texts, by one head that gives vectors (N, D), or rows (T, C) or weights of each text, or
    scores (N,) of pairs.
    """
    if gives == "vector":
        return (vector_errors if measure == "difference" else cosine_errors)(found, wanted)
    if gives == "score":
        errors: NDArray[np.float64] = np.abs(found - wanted) / max(float(np.abs(wanted).max()), TINY_SCORE)
        return errors
    pairs = zip(found, wanted, strict=True)
    if gives == "rows":
        return np.array([errors_of("vector", ours, theirs, measure).max(initial=0) for ours, theirs in pairs])
    if measure == "difference":
        return np.array([sparse_error(*both) for both in pairs])
    largest = max((weight for row in wanted for weight in row.values()), default=1.0)
    return np.array([relative_error(*both, least=largest) for both in pairs])


def cosine_errors(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 - cosine of each of N vectors (N, D)."""
    left, right = (vectors.astype(np.float64) for vectors in (found, wanted))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    errors: NDArray[np.float64] = 1 - np.einsum("nd,nd->n", left, right) / lengths
    return errors


def vector_errors(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest absolute difference of each of N vectors (N, D), as if those wanted had length 1."""
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    errors: NDArray[np.float64] = (np.abs(found - wanted) / lengths).max(axis=1)
    return errors


def sparse_error(found: Mapping[int, float], wanted: Mapping[int, float]) -> float:
    """The largest absolute difference of two sparse vectors' weights; a token that one has not weighs 0 there."""
    return max((abs(found.get(token, 0) - wanted.get(token, 0)) for token in {*found, *wanted}), default=0.0)


def relative_error(found: Mapping[int, float], wanted: Mapping[int, float], *, least: float) -> float:
    """The length of two sparse vectors' difference over the length of the one wanted, or over `least` if that is more:
    a text of few tokens may have small weights alone.
    """
    differences = [found.get(token, 0) - wanted.get(token, 0) for token in {*found, *wanted}]
    length = float(np.linalg.norm([*wanted.values()]))
    return float(np.linalg.norm(differences)) / max(length, least)


def worst(errors: NDArray[np.float64], tokens: Sequence[int], measure: Measure, limit: float) -> HeadParity:
    """The largest of N texts' errors, with its place and length; NaN counts as infinite."""
    errors = np.where(np.isnan(errors), np.inf, errors)
    text = int(errors.argmax())
    return HeadParity(max_error=float(errors[text]), measure=measure, limit=limit, text=text, tokens=tokens[text])


if __name__ == "__main__":
    _run_apart()
