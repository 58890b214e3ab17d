"""Manifests that were edited, and files that change under an open Embedder."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bge_onnx import Bundle, Embedder
from bge_onnx.bundle.manifest import sealed
from bge_onnx.bundle.records import FORMAT_VERSION, MANIFEST
from faults.outcomes import Child, Outcomes, ended

TEXTS = ["what is BM25?", "Tea is a drink. " * 300, ""]
"""The second is longer than any tiny model takes."""

HEADS = ("dense", "sparse", "colbert")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 51, 10**30, 10**400, 0.5, float("nan"), float("inf"), "", "dense", "mean",
    "cpu-fp32", "\ud800", 1000, "../x", "\0", "x" * 100_000, [], {}, [None], {"dense": 1}, {"a": {"b": []}}, [[[]]],
)  # fmt: skip


def edit_manifests(bundle: Path, folder: Path, count: int, seed: int = 0) -> Iterator[tuple[str, Outcomes]]:
    """Random values in random places of a manifest: as an editor leaves it, with its hash mended, and of format 4."""
    rng = random.Random(seed)
    copy = shutil.copytree(bundle, folder / "edited")
    record = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    vectors = _vectors(Embedder.open(bundle, threads=1))
    kinds = {"edited": Outcomes(), "edited, hash mended": Outcomes(), "edited, format 4": Outcomes()}
    for number in range(count):
        kind = list(kinds)[number % len(kinds)]
        changed, place = _edited(record, rng)
        if kind == "edited, hash mended":
            changed = sealed(changed)
        elif kind == "edited, format 4":
            changed = {key: value for key, value in changed.items() if key != "sha256"}
            changed["format_version"] = min(4, FORMAT_VERSION)
        (copy / MANIFEST).write_text(json.dumps(changed), encoding="utf-8")
        outcome, example = ended(lambda: _same(copy, vectors))
        if outcome == "other vectors" and kind != "edited":
            outcome = "a manifest of its own"  # a prompt or a length that could be right, and nothing tells otherwise
        kinds[kind].add(outcome, f"{place}: {example}")
    yield from kinds.items()


def _edited(record: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], str]:
    """A copy with one value changed, removed or added, and where."""
    copy = json.loads(json.dumps(record))
    inner, path = copy, []
    while True:
        key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        path.append(str(key))
        if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.8:
            inner = inner[key]
            continue
        break
    before, action = json.dumps(inner[key]), rng.random()
    if action < 0.1:
        del inner[key]
    elif action < 0.2 and isinstance(inner, dict):
        inner[f"{key}x"] = inner.pop(key)
    else:
        values = [value for value in VALUES if json.dumps(value) != before]
        inner[key] = rng.choice(values)
    return copy, ".".join(path)


def _vectors(embedder: Embedder) -> list[bytes]:
    heads = [head for head in HEADS if head in embedder.bundle.outputs]
    found = embedder.embed(TEXTS, heads=heads, prompt=embedder.bundle.prompts.get("query", ""))
    sparse = [found.sparse.ids.tobytes(), found.sparse.weights.tobytes()] if "sparse" in heads else []
    return [found.dense.tobytes(), *sparse, *([rows.tobytes() for rows in found.colbert] if "colbert" in heads else [])]


def _same(folder: Path, vectors: list[bytes]) -> str:
    return "the same vectors" if _vectors(Embedder.open(folder, threads=1)) == vectors else "other vectors"


def damage_tokenizers(bundle: Path, folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Bytes of tokenizer.json that changed, its size being the same: hashes tell when they are asked for, and without
    them whatever opens gives vectors that are finite, or an error.
    """
    rng, outcomes = random.Random(seed), Outcomes()
    copy = shutil.copytree(bundle, folder / "tokenizers")
    whole = (bundle / "tokenizer.json").read_bytes()
    letters = [place for place, byte in enumerate(whole) if chr(byte).isalnum()]
    for number in range(count):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            place = rng.choice(letters[:1500] if rng.random() < 0.5 else letters)
            content[place] = rng.choice(b"0123456789abcdefXYZ") if rng.random() < 0.8 else rng.randrange(256)
        (copy / "tokenizer.json").write_bytes(content)
        outcome, example = ended(lambda: "runs" if _vectors(Embedder.open(copy, threads=1)) else "")
        outcomes.add(outcome, f"{number}: {example}")
        asked, example = ended(lambda: "accepted" if Bundle.open(copy, verify=True) else "")
        if asked != "refused" and bytes(content) != whole:
            outcomes.add(asked, example)
    return outcomes


def change_open_files(bundle: Path, other: Path, folder: Path, count: int, seed: int = 0) -> Outcomes:
    """A process embeds without end while its bundle is changed in one of several ways at a random moment."""
    rng, outcomes = random.Random(seed), Outcomes()
    for number in range(count):
        copy = shutil.copytree(bundle, folder / f"open{number}")
        link = folder / f"link{number}"
        link.symlink_to(copy)
        name, change = CHANGES[number % len(CHANGES)]
        child = Child(lambda: _embed_on(link, copy, waits=change is _cut_between))  # noqa: B023 - it forks at once
        while child.running() and not (folder / f"{copy.name}.ready").exists():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        change(copy, link, other)
        (folder / f"{copy.name}.changed").touch()
        outcome, example = child.end()
        if outcome == f"signal {signal.SIGBUS:d}" and change in (_cut, _overwrite):  # copying over a file cuts it first
            outcome = CUT_IN_A_RUN
        outcomes.add(outcome, f"{name}: {example}")
        shutil.rmtree(copy, ignore_errors=True)
    return outcomes


def _embed_on(link: Path, copy: Path, *, waits: bool) -> str:
    """Embed one text again and again, then many, which load a second session; a vector that changes is told.

    waits  run nothing while the files change
    """
    embedder = Embedder.open(link, threads=2)
    first = embedder.embed(TEXTS[:1]).dense
    copy.with_name(f"{copy.name}.ready").touch()
    changed = copy.with_name(f"{copy.name}.changed")
    while waits and not changed.exists():
        time.sleep(0.005)
    for rest in range(20, 0, -1):
        while True:
            if not np.array_equal(embedder.embed(TEXTS[:1]).dense, first):
                return "other vectors"
            if changed.exists() or rest < 20:
                break
    many = embedder.embed(TEXTS[:1] + [f"text {number} about tea and coffee" for number in range(300)]).dense
    return "the same vectors" if np.array_equal(many[:1], first) else "other vectors"


def _cut(copy: Path, _: Path, __: Path) -> None:
    os.truncate(copy / "model.onnx_data", 4096)


def _cut_between(copy: Path, link: Path, other: Path) -> None:
    _cut(copy, link, other)


def _overwrite(copy: Path, _: Path, other: Path) -> None:
    shutil.copyfile(other / "model.onnx_data", copy / "model.onnx_data")


def _rename(copy: Path, _: Path, other: Path) -> None:
    shutil.copyfile(other / "model.onnx_data", copy / "new")
    (copy / "new").rename(copy / "model.onnx_data")


def _replace(copy: Path, _: Path, other: Path) -> None:
    copy.rename(copy.with_name(f"{copy.name}.old"))
    shutil.copytree(other, copy)


def _remove(copy: Path, _: Path, __: Path) -> None:
    shutil.rmtree(copy)


def _point_elsewhere(_: Path, link: Path, other: Path) -> None:
    link.unlink()
    link.symlink_to(other)


CUT_IN_A_RUN = "ended by the system, cut in the middle of a run"
"""Weights are mapped into memory. A file that is cut short between two runs is a BundleError. While a run reads it
Linux ends the process, which nothing in Python can prevent: the README says so. No vector comes of it.
"""

Change = Callable[[Path, Path, Path], None]
CHANGES: tuple[tuple[str, Change], ...] = (
    ("weights cut", _cut),
    ("weights cut between two runs", _cut_between),
    ("weights overwritten", _overwrite),
    ("weights replaced", _rename),
    ("bundle replaced", _replace),
    ("bundle removed", _remove),
    ("link pointed elsewhere", _point_elsewhere),
)
