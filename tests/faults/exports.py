"""Exports that are killed, exports to one place, and checkpoints that somebody has damaged."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.request import Request
from bge_onnx import Bundle, BundleError
from faults.outcomes import Child, Outcomes


def _export(checkpoint: Path, out: Path, name: str, *, force: bool = False, temporary: Path | None = None) -> str:
    if temporary:
        tempfile.tempdir = None
        os.environ["TMPDIR"] = str(temporary)
    options = Options(pooling="cls")
    export(Request(model=name, target="cpu-fp32", checkpoint=checkpoint, options=options), out, force=force)
    return "whole"


def kill(checkpoint: Path, folder: Path, count: int, *, force: bool, seed: int = 0) -> Outcomes:
    """Exports that are killed at random moments: at the place is a whole bundle or, without force, nothing."""
    rng, outcomes, out = random.Random(seed), Outcomes(), folder / "killed"
    _export(checkpoint, out, "first")
    start = time.perf_counter()
    _export(checkpoint, out, "again", force=True)  # as long as each of those that follow
    seconds = time.perf_counter() - start
    for number in range(count):
        if not force:
            shutil.rmtree(out, ignore_errors=True)
        child = Child(lambda: _export(checkpoint, out, f"n{number}", force=force))  # noqa: B023 - it forks at once
        time.sleep(rng.uniform(0, 1.2 * seconds))
        child.kill()
        outcome, example = child.end()
        if outcome not in ("killed", "whole"):
            outcomes.add(outcome, example)
        outcomes.add(*_found(out, needed=force))
    _export(checkpoint, out, "last", force=True)
    left = [path.name for path in folder.iterdir() if path != out and path.name.startswith(".")]
    outcomes.add("left behind" if left else "clean", left)
    shutil.rmtree(out)
    return outcomes


def _found(out: Path, *, needed: bool) -> tuple[str, str]:
    if not out.exists():
        return ("lost" if needed else "nothing"), str(out)
    try:
        Bundle.open(out, verify=True)
    except BundleError as error:
        return "half", str(error)
    return "whole", ""


def compete(checkpoint: Path, folder: Path, count: int) -> Outcomes:
    """Two exporters to one place, each with a temporary folder of its own, as in two containers: one wins."""
    outcomes = Outcomes()
    places = [folder / "tmp0", folder / "tmp1"]
    for place in places:
        place.mkdir(exist_ok=True)
    for number in range(count):
        out = folder / f"shared{number}"
        children = [
            Child(lambda index=index, place=place: _export(checkpoint, out, f"n{index}", temporary=place))  # noqa: B023
            for index, place in enumerate(places)
        ]
        ends = [child.end() for child in children]
        kinds = sorted(outcome for outcome, _ in ends)
        outcome, example = _found(out, needed=True)
        winner = next((index for index, end in enumerate(ends) if end[0] == "whole"), None)
        if outcome == "whole" and kinds != ["refused", "whole"]:
            outcome = "lost: both were told that theirs is there" if kinds == ["whole"] * 2 else kinds[-1]
        elif outcome == "whole" and Bundle.open(out).model != f"n{winner}":
            outcome = "lost: the loser's bundle is there"
        outcomes.add(outcome, example or ends)
        shutil.rmtree(out, ignore_errors=True)
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    outcomes.add("left behind" if left else "clean", left)
    return outcomes


def damage_checkpoints(checkpoint: Path, folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Checkpoints with a file that is damaged: a clear refusal, or a bundle that passed its check."""
    rng, outcomes = random.Random(seed), Outcomes()
    for number in range(count):
        copy = shutil.copytree(checkpoint, folder / "damaged")
        damage = rng.choice(DAMAGES)
        what = damage(copy, rng)
        child = Child(lambda: _export(copy, folder / "from_damaged", "damaged"))  # noqa: B023 - it forks at once
        outcome, example = child.end()
        outcomes.add(outcome, f"{number} {damage.__name__} {what}: {example}")
        for path in (copy, folder / "from_damaged"):
            shutil.rmtree(path, ignore_errors=True)
    return outcomes


def flip_bytes(copy: Path, rng: random.Random) -> str:
    """Random bytes in the first part of a file, where its header is."""
    path = rng.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(min(len(content), 4000))] = rng.randrange(256)
    path.write_bytes(content)
    return path.name


def cut(copy: Path, rng: random.Random) -> str:
    """A file of which the end is missing."""
    path = rng.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
    os.truncate(path, rng.randrange(path.stat().st_size))
    return path.name


def edit(copy: Path, rng: random.Random) -> str:
    """Another value in one of the JSON files."""
    path = rng.choice(sorted(copy.rglob("*.json")))
    record = json.loads(path.read_text(encoding="utf-8"))
    key = rng.choice(sorted(record))
    record[key] = rng.choice([None, True, -1, 0, 3, 10**9, 10**30, 0.5, "x", "x" * 10**6, [], {}, [None], {"a": 1}])
    path.write_text(json.dumps(record), encoding="utf-8")
    return f"{path.name} {key} = {str(record[key])[:40]}"


def deep(copy: Path, rng: random.Random) -> str:
    """JSON that is nested without end, or a number with thousands of digits."""
    path = rng.choice(sorted(copy.rglob("*.json")))
    path.write_text(rng.choice(["[" * 100_000, '{"a":' * 100_000, '{"hidden_size": ' + "9" * 5000 + "}"]))
    return path.name


def fifo(copy: Path, rng: random.Random) -> str:
    """Something in the place of a file that would be waited for."""
    path = rng.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
    path.unlink()
    os.mkfifo(path)
    return path.name


DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (flip_bytes, cut, edit, edit, deep, fifo)
